"""Draws images from a model, as a grid, a folder or an array.

    python -m pdistill.sample --model=DIR --num=64 --out=grid.png
    python -m pdistill.sample --model=DIR --num=50000 --label=0-9 --out=samples.npz
    python -m pdistill.sample --model=DIR --seeds=0-99 --out=samples/
    python -m pdistill.sample --model=DIR --prompt "red heart" "blue heart" --out=hearts.png
    python -m pdistill.sample --model=DIR --latents --out=latents.npz

A grid is one picture, with the prompts if they differ; a folder has one PNG an image; an .npz has
"images", uint8 [N, H, W, C], and their "label", "prompt" or "seed", where they have one.
pdistill.evaluate measures the last two. With --latents an .npz has "latents" instead, float32
[N, h, w, c].
"""

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pdistill.cli.options import (
    check_pictures,
    codec_option,
    command_parser,
    guide_option,
    load_model,
    numbers,
    own_code_option,
    prompts_option,
    read_prompts,
    seed_option,
    steps_option,
    text_encoder_option,
)
from pdistill.model import Model
from pdistill.model.card import works_on_latents
from pdistill.model.sampling import generate_batches
from pdistill.report.grids import captioned, tile
from pdistill.runtime.files import check_folder, check_writable, in_home, write_arrays
from pdistill.runtime.lock import is_written, writing
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.temporary import TEMPORARY, passing, replacing, sweep, temporary_path
from pdistill.runtime.terminal import format_count, plain_errors
from pdistill.samplers import format_steps
from pdistill.samplers.noise import GENERATOR

SMALLEST, WIDTH = 32, 512  # pixels of an image, and of a grid
CAPTIONED, BROAD = 96, 768  # pixels of an image with its prompt, and of a grid of such
PART = "images"  # of a name in a folder that images are being written into
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with plain_errors(ValueError, OSError):
        mesh = make_mesh()
        model = load_model(options, mesh)
        out = in_home(options.out)
        _check(options, out, model)
        num, extra, batches = _draw(options, model, mesh)
        kind = "latents" if options.latents else "images"
        if _is_folder(options.out):
            _write_folder(out, batches, options.seeds or range(num))
        elif out.suffix == ".npz":
            write_arrays(out, {kind: np.concatenate(list(batches))} | extra)
        else:
            images = np.concatenate(list(batches))
            _picture(images, options.scale, extra.get("prompt", ())).save(out)
    steps = format_count(format_steps(options.num_steps or model.sampling.num_steps), "step")
    print(f"{num} {kind}, {steps} -> {out}")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    codec_option(parser)
    own_code_option(parser)
    guide_option(parser)
    text_encoder_option(parser)
    parser.add_argument(
        "--latents", action="store_true", help="leave latents as they are, in an .npz"
    )
    parser.add_argument(
        "--num", type=int, help="number of images (default: one for each --prompt, else 64)"
    )
    parser.add_argument(
        "--out", default="grid.png", help="picture, .npz or folder/ to write (default grid.png)"
    )
    seed_option(parser, "all images")
    parser.add_argument(
        "--seeds", type=numbers, help="a seed for each image instead, such as 0-99 or 1,5,7"
    )
    parser.add_argument(
        "--label",
        help="label of all images, or those that take turns, such as 0-9 or cat,dog; for a model "
        "with labels (default: all in turn, or none for a model that knows images without)",
    )
    parser.add_argument(
        "--prompt",
        nargs="+",
        action="extend",
        help='prompt of all images, or those that take turns, such as "red heart" "blue heart", '
        "for a model with text",
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
        help="side of the square that shows a pixel of a grid (default: so that an image is "
        f"about {SMALLEST} wide, or the grid {WIDTH})",
    )
    parser.add_argument("--batch_size", type=int, default=500, help="images drawn at a time")
    return parser


def _labels(text: str, model: Model) -> list[int]:
    """Labels by their names, "cat,dog", which may be of digits, or their numbers, "0-9"."""
    names = [name.strip() for name in text.split(",")]
    known, digits = set(model.label_names), re.fullmatch(r"[\d,\s-]*", text)
    if set(names) <= known or (known and not digits):
        return model.label_numbers(names)
    try:
        return numbers(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--label: {error}") from error


def _check(options: argparse.Namespace, out: Path, model: Model) -> None:
    """Raises ValueError for what cannot be written, or said, before anything is drawn."""
    folder = _is_folder(options.out)
    if options.seeds and (options.num or options.seed):
        raise ValueError("--seeds gives each image its seed; leave out --num and --seed")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds has a seed twice, whose images would be the same")
    if options.prompt and options.prompts:
        raise ValueError("give either --prompt or --prompts")
    for name in ("prompt", "prompts"):
        if getattr(options, name) and not model.network.takes_text:
            raise ValueError(f"{options.model} takes no prompts; leave --{name} out")
    if options.latents and not works_on_latents(model.card):
        raise ValueError("the model makes images, not latents; leave --latents out")
    if options.scale is not None and options.scale < 1:
        raise ValueError(f"--scale must be at least 1; got {options.scale}")
    if options.latents and (folder or out.suffix != ".npz"):
        raise ValueError(f"--latents are written to an .npz; got --out={out}")
    if out.name == "samples.npz" and (out.parent / "model").exists() and out.exists():
        raise ValueError(f"{out} is what the run keeps of its own samples; give another name")
    if not folder and out.suffix != ".npz" and out.suffix.lower() not in PICTURES:
        raise ValueError(
            f"--out must be a folder, .npz or {', '.join(PICTURES)}; got {out}: if that is to be a "
            f"folder, write {out}/"
        )
    if folder:
        _sweep(out)
        check_folder(out if out.exists() else out.resolve().parent)
    else:
        check_writable(out, in_place=out.suffix != ".npz")
    if not options.latents:
        advice = "give --codec, or --latents for an .npz of what it makes"
        check_pictures(model, options.model, advice)


def _is_folder(out: str) -> bool:
    """Whether images go into a folder: one that is there, or a name without a suffix, or with /."""
    path = in_home(out)
    return out.endswith("/") or not path.suffix or path.is_dir()


def _draw(
    options: argparse.Namespace, model: Model, mesh: jax.sharding.Mesh
) -> tuple[int, dict[str, np.ndarray], Iterator[np.ndarray]]:
    """The number of images, what an array of them has besides, and batches of them."""
    key, extra = jax.random.key(options.seed, impl=GENERATOR), {}
    num = len(options.prompt or range(64)) if options.num is None else options.num
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
        told = told.replace(guidance=None, guidance_levels=None)
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
    lines = options.prompt or (options.prompts and read_prompts(options.prompts))
    return lines and [lines[i % len(lines)] for i in range(num)]


def _picture(images: np.ndarray, scale: int | None, prompts: Sequence[str]) -> Image.Image:
    """Images uint8 [N, H, W, C] as a grid; if their prompts differ, below these where they fit."""
    num, width, turns = len(images), images.shape[2], len(set(prompts))
    in_rounds = 1 < turns < num and num % turns == 0  # of the prompts, a row for each
    if turns > 1:
        columns = turns if in_rounds else math.ceil(num / max(1, round(math.sqrt(num / 3))))
        shown = max(math.ceil(CAPTIONED / width), round(BROAD / columns / width))
        shown = shown if scale is None else scale
        if shown * width >= CAPTIONED:
            return captioned(images, prompts, shown, columns)
    columns = turns if in_rounds else math.ceil(math.sqrt(num))
    if scale is None:
        scale = max(1, round(max(SMALLEST, WIDTH / columns) / width))
    return Image.fromarray(tile(images, scale, columns))


def _sweep(folder: Path) -> None:
    """Deletes what a command that was killed has left in an empty folder.

    Raises:
      ValueError: the folder is not empty, or a command that still runs is writing into it.
    """
    if not folder.exists():
        return
    remnants = list(folder.glob(f"{PART}{TEMPORARY}"))
    if {*folder.iterdir()} - {*remnants}:
        raise ValueError(f"{folder} is not empty; give a new folder")
    if any(map(is_written, remnants)):
        raise ValueError(f"another command is writing into {folder}; give a new folder")
    sweep(remnants)


def _write_folder(folder: Path, batches: Iterator[np.ndarray], names: list[int] | range) -> None:
    """Writes 000000.png and so on, one an image, called by their numbers or seeds; all or none."""
    numbers = iter(names)

    def write(into: Path) -> None:
        for images in batches:
            for image in images:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                    into / f"{next(numbers):06}.png"
                )

    if not folder.exists():
        with replacing(folder.resolve()) as temporary:
            temporary.mkdir()
            write(temporary)
        return
    _sweep(folder)
    temporary = temporary_path(folder / PART)  # the folder itself stays
    with passing(temporary):
        temporary.mkdir()
        with writing(temporary):
            write(temporary)
            for picture in sorted(temporary.iterdir()):
                picture.rename(folder / picture.name)
