"""Draws images from a model, as a grid, a folder or an array.

    python -m pdistill.sample --model=DIR --num=64 --out=grid.png
    python -m pdistill.sample --model=DIR --num=50000 --label=0-9 --out=samples.npz
    python -m pdistill.sample --model=DIR --seeds=0-99 --out=samples/
    python -m pdistill.sample --model=DIR --prompt="red heart" --num=4 --out=hearts.png
    python -m pdistill.sample --model=DIR --latents --out=latents.npz

A grid is one picture; a folder has one PNG an image; an .npz has "images", uint8 [N, H, W, C],
and their "label", "prompt" or "seed", where they have one. pdistill.evaluate measures the last
two. With --latents an .npz has "latents" instead, float32 [N, h, w, c].
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pdistill.cli.options import (
    codec_option,
    command_parser,
    guide_option,
    load_model,
    numbers,
    prompts_option,
    read_prompts,
    steps_option,
    text_encoder_option,
)
from pdistill.model import Model
from pdistill.model.sampling import generate_batches
from pdistill.report.grids import tile
from pdistill.runtime.files import write_arrays
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.terminal import plain_errors
from pdistill.samplers import format_steps
from pdistill.samplers.noise import GENERATOR

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with plain_errors(ValueError, OSError):
        mesh = make_mesh()
        model = load_model(options, mesh)
        out = Path(options.out)
        _check(options, out, model)
        num, extra, batches = _draw(options, model, mesh)
        kind = "latents" if options.latents else "images"
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() in PICTURES:
            turns = len(set(extra.get("prompt", ())))  # a row for each round of the prompts
            columns = turns if 1 < turns < num and num % turns == 0 else None
            images = np.concatenate(list(batches))
            Image.fromarray(tile(images, options.scale, columns)).save(out)
        elif out.suffix == ".npz":
            write_arrays(out, {kind: np.concatenate(list(batches))} | extra)
        else:
            _write_folder(out, batches, options.seeds or range(num))
    steps = format_steps(options.num_steps or model.sampling.num_steps)
    print(f"{num} {kind}, {steps} steps -> {out}")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    codec_option(parser)
    guide_option(parser)
    text_encoder_option(parser)
    parser.add_argument(
        "--latents", action="store_true", help="leave a codec's latents as they are, in an .npz"
    )
    parser.add_argument("--num", type=int, help="number of images (default 64)")
    parser.add_argument(
        "--out", default="grid.png", help="picture, .npz or folder to write (default grid.png)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all images (default 0)")
    parser.add_argument(
        "--seeds", type=numbers, help="a seed for each image instead, such as 0-99 or 1,5,7"
    )
    parser.add_argument(
        "--label",
        help="label of all images, or those that take turns, such as 0-9 or cat,dog; for a model "
        "with labels (default: all in turn, or none for a model that can be guided)",
    )
    parser.add_argument(
        "--prompt", help='prompt of all images, such as "red heart", for a model with text'
    )
    prompts_option(parser)
    parser.add_argument(
        "--guidance", type=float, help="guidance weight, for a model that takes one"
    )
    parser.add_argument(
        "--guidance_levels",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="log-SNRs between which guidance acts, if not at all or as the model's card says",
    )
    steps_option(parser)
    parser.add_argument("--solver", help="solver instead of the model's own, such as gamma:0.5")
    parser.add_argument(
        "--scale",
        type=int,
        help="side of the square that shows a pixel of a grid (default: about 32 an image)",
    )
    parser.add_argument("--batch_size", type=int, default=500, help="images drawn at a time")
    return parser


def _labels(text: str, model: Model) -> list[int]:
    """Labels by their numbers, "0-9", or their names, "cat,dog"."""
    if not model.label_names or re.fullmatch(r"[\d,\s-]*", text):
        try:
            return numbers(text)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--label: {error}") from error
    return model.label_numbers([name.strip() for name in text.split(",")])


def _check(options: argparse.Namespace, out: Path, model: Model) -> None:
    """Raises ValueError for what cannot be written, or said, before anything is drawn."""
    if options.seeds and (options.num or options.seed):
        raise ValueError("--seeds gives each image its seed; leave out --num and --seed")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds has a seed twice, whose images would be the same")
    if options.prompt is not None and options.prompts:
        raise ValueError("give either --prompt or --prompts")
    if options.latents and not model.network.codec:
        raise ValueError("the model makes images, not latents; leave --latents out")
    if options.latents and out.suffix != ".npz":
        raise ValueError(f"--latents are written to an .npz; got --out={out}")
    folder = not out.suffix or out.is_dir()
    if not folder and out.suffix.lower() not in (*PICTURES, ".npz"):
        raise ValueError(f"--out must be a folder, .npz or {', '.join(PICTURES)}; got {out}")
    if folder and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder")
    if (channels := model.image_shape[-1]) not in (1, 3):
        raise ValueError(
            f"the model makes arrays of {channels} channels, which are no pictures; of "
            "a model of latents give --codec"
        )


def _draw(
    options: argparse.Namespace, model: Model, mesh: jax.sharding.Mesh
) -> tuple[int, dict[str, np.ndarray], Iterator[np.ndarray]]:
    """The number of images, what an array of them has besides, and batches of them."""
    key, extra = jax.random.key(options.seed, impl=GENERATOR), {}
    num = 64 if options.num is None else options.num
    if options.seeds:
        num, extra["seed"] = len(options.seeds), np.array(options.seeds)
        key = jax.vmap(lambda seed: jax.random.key(seed, impl=GENERATOR))(
            jnp.asarray(options.seeds)
        )
    label, labels = None, options.label and _labels(options.label, model)
    if labels is None and model.needs_label:
        labels = range(model.network.num_labels)
        print(f"labels 0-{labels[-1]} take turns; --label says others")
    if labels and num > 0:
        label = extra["label"] = np.resize(labels, num).astype(np.int32)
    prompts = _prompts(options, num)
    told = model.told(num, label, options.guidance, options.guidance_levels, prompts)
    if model.network.effective_guidance(options.guidance) is None:
        told = told.replace(guidance=None, levels=None)
    sampling = model.sampling_with(options.num_steps, options.solver)
    network = model.network.of_latents if options.latents else model.network
    batches = generate_batches(
        network, key, num, sampling=sampling, told=jax.tree.map(np.asarray, told),
        batch_size=options.batch_size, mesh=mesh, description="images", raw=options.latents,
    )  # fmt: skip
    if prompts and not options.latents:
        extra["prompt"] = np.array(prompts)
    return num, extra, batches


def _prompts(options: argparse.Namespace, num: int) -> list[str] | None:
    """The prompt of each image; None for none."""
    if options.prompt is not None:
        return [options.prompt] * num
    lines = options.prompts and read_prompts(options.prompts)
    return lines and [lines[i % len(lines)] for i in range(num)]


def _write_folder(folder: Path, batches: Iterator[np.ndarray], names: list[int] | range) -> None:
    """Writes 000000.png and so on, one an image, called by their numbers or seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = iter(names)
    for images in batches:
        for image in images:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                folder / f"{next(numbers):06}.png"
            )


if __name__ == "__main__":
    main()
