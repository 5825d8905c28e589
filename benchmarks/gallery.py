"""Makes the page of pictures by trained models, of students beside their teachers.

    python -m benchmarks.gallery --models zoo/*/* --guidance zoo/emoji/teacher=2

Writes docs/gallery.md and its pictures: for each data set that the models are of, their samples by
number of steps and, as an animation, how each model's images come about, all from the same noise.
Beside them are the prompts, and the time of an image. --guidance has weights of models.
"""

import argparse
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import pdistill
from benchmarks.common import ROOT, described, machine, medians, take_turns
from pdistill import samplers
from pdistill.data import to_uint8
from pdistill.model import Model, ModelError
from pdistill.model.card import made_for
from pdistill.model.sampling import decoded, enlarge
from pdistill.report.grids import arrange, tile
from pdistill.report.mosaics import GREY, samples
from pdistill.runtime.cpu import set_xla_flags, use_huge_pages
from pdistill.samplers.noise import GENERATOR
from pdistill.training import count

NUM, ANIMATED = 16, 9  # images of a grid, and of an animation
LARGEST = 300_000  # bytes of a picture
FRAMES, SECONDS, LAST = 24, 4.0, 2.0  # of an animation, its run, and how long its end stays
PROMPTS = (
    *("fluent red heart", "noto red heart", "fluent blue heart", "noto green heart"),
    *("fluent crying face", "noto angry face", "fluent grinning face", "noto sleeping face"),
    *("fluent dog face", "noto dog face", "fluent red apple", "noto green apple"),
    *("fluent pizza", "noto pizza", "fluent frog", "noto owl"),
)
INTRODUCTION = """# Gallery

All pictures of a data set are from the same noise. In the animations a second is as many network
evaluations for each model: a student has its image when its teacher has hardly begun. Times are
medians of {rounds} calls in turns after compilation, on {device}, without the encoding of prompts.
`python -m benchmarks.gallery` has made this page{arguments}.
"""


class Shown(NamedTuple):
    """A model of the gallery.

    Attributes:
      name: its folder.
      told: what `Model.sample` is told of NUM images.
      prompts: of these images; () for a model without text.
    """

    name: str
    model: Model
    told: dict[str, Any]
    prompts: Sequence[str]

    @property
    def data(self) -> str:
        return self.model.card["data"].get("name", "images").partition(":")[0]

    @property
    def counts(self) -> tuple[samplers.Steps, ...]:
        """The only step counts that it takes; () for any."""
        only_one = self.model.sampling.solver.max_steps == 1
        return made_for(self.model.card) or (1,) * only_one

    @property
    def nfe(self) -> int:
        """Network evaluations of an image; two at each where a pair of them guides it."""
        pairs = self.model.network.evaluations(self.told.get("guidance"))
        return self.model.sampling.nfe * pairs

    def _first(self, num: int) -> dict[str, Any]:
        return jax.tree.map(lambda a: a[:num] if np.ndim(a) else a, self.told)

    def draw(self, num: int = NUM, steps: samplers.Steps | None = None) -> jax.Array:
        """Images [num, H, W, C] in [-1, 1]."""
        return self.model.sample(jax.random.key(0), num, num_steps=steps, **self._first(num))

    def states(self) -> list[np.ndarray]:
        """What ANIMATED images are after each step, from noise on: uint8 [B, H, W, C] each."""
        network, sampling = self.model.network, self.model.sampling
        key = jax.random.key(0, impl=GENERATOR)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(ANIMATED))
        x, states = samplers.sample(
            sampling.function(network, self.model.told(ANIMATED, **self._first(ANIMATED))),
            keys, (ANIMATED, *network.shape), schedule=network.schedule,
            num_steps=sampling.num_steps, solver=sampling.solver, clip=sampling.clip,
            return_trajectory=True,
        )  # fmt: skip
        images = (decoded(network, z) for z in [*states[:-1], x])
        return [np.asarray(to_uint8(enlarge(z, network.enlarged))) for z in images]


def read(folder: str, guidance: float | None) -> Shown:
    model, told, prompts = pdistill.load(folder), {}, ()
    if model.network.takes_text:
        prompts = PROMPTS
        told["prompt"] = model.prompts(list(prompts))
    elif labels := model.network.num_labels:
        told["label"] = np.arange(NUM) % labels
    if guidance is not None and told and model.guidance_range is not None:
        told["guidance"] = guidance
    return Shown(folder, model, told, prompts)


def grids(shown: Sequence[Shown]) -> dict[str, dict[int | str, np.ndarray]]:
    """Images by row and steps; models that take any number are drawn at each of the others too."""
    of_others = {n for one in shown for n in one.counts}
    rows: dict[str, dict[int | str, np.ndarray]] = {}
    for one in shown:
        own = one.model.sampling.num_steps
        of_one = one.counts or [n for n in {own, *of_others} if type(n) is type(own)]
        images = {samplers.format_steps(n): np.asarray(to_uint8(one.draw(steps=n))) for n in of_one}
        shared = "students" if one.counts else one.name
        taken = images.keys() & rows.get(shared, {}).keys()
        rows.setdefault(one.name if taken else shared, {}).update(images)
    return rows


def frames(shown: Sequence[Shown]) -> tuple[list[Image.Image], list[int]]:
    """An animation with a panel a model, after the same number of evaluations each.

    Returns its pictures, and the milliseconds that each stays.
    """
    states = [one.states() for one in shown]
    evaluations = [one.nfe for one in shown]
    longest = max(evaluations)
    moments = [*range(min(longest, FRAMES // 2)), *evaluations]
    moments = np.unique([*moments, *np.linspace(0, longest, FRAMES, dtype=int)])
    pictures = []
    for moment in moments:
        done = [min(moment, n) for n in evaluations]
        panels = [
            tile(each[k * (len(each) - 1) // n], scale=max(1, 64 // each[0].shape[2]))
            for each, k, n in zip(states, done, evaluations, strict=True)
        ]
        titles = [f"{k} of {n}" for k, n in zip(done, evaluations, strict=True)]
        pictures.append(panelled(panels, titles))
    stays = np.diff(moments) * SECONDS * 1000 / longest
    return pictures, [*stays.round().astype(int).tolist(), int(LAST * 1000)]


def panelled(panels: Sequence[np.ndarray], titles: Sequence[str]) -> Image.Image:
    """Pictures side by side, each below its title, on a ground that lets any page through."""
    picture, middles, [top] = arrange([panels], gap=12, above=24)
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    shade = round(255 * float(GREY))
    for middle, title in zip(middles, titles, strict=True):
        draw.text((middle, top - 6), title, (shade, shade, shade, 255), font, anchor="ms")
    return image


def write(path: Path, pictures: Sequence[Image.Image], stays: Sequence[int] = ()) -> None:
    """Writes a picture, or an animation, as WebP: without loss, or as good as it fits."""
    more = {"save_all": True, "append_images": pictures[1:], "duration": stays, "loop": 0}
    for quality in (None, 90, 75, 60, 45, 30):
        data = io.BytesIO()
        how = {"lossless": True} if quality is None else {"quality": quality}
        pictures[0].save(data, "webp", **how, **(more if stays else {}))
        if data.tell() <= LARGEST:
            break
    path.write_bytes(data.getvalue())


def times(shown: Sequence[Shown], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of one image alone, and of an image of NUM, by model."""
    calls = {(one.name, num): functools.partial(one.draw, num) for one in shown for num in (1, NUM)}
    seconds = medians(take_turns(calls, rounds))
    return {one.name: (seconds[one.name, 1], seconds[one.name, NUM] / NUM) for one in shown}


def section(data: str, shown: Sequence[Shown], folder: Path, rounds: int) -> str:
    """Draws the pictures of a data set's models; returns their part of the page."""
    figure, buffer = samples(grids(shown)), io.BytesIO()
    figure.savefig(buffer, format="png")
    write(folder / f"{data}.webp", [Image.open(buffer)])
    size = "x".join(map(str, shown[0].model.image_shape))
    lines = [
        f"## {data}",
        f"Images of {size}. The same noise by number of steps:",
        f"![Images by model and steps](gallery/{data}.webp)",
    ]
    if prompts := shown[0].prompts:
        rows = [", ".join(row) for row in np.reshape(prompts, (math.isqrt(NUM), -1))]
        lines.append(f"Prompts, row by row: {'; '.join(rows)}.")
    moving = [one for one in shown if not isinstance(one.model.sampling.num_steps, tuple)]
    write(folder / f"{data}_steps.webp", *frames(moving))
    names = ", ".join(f"`{one.name}`" for one in moving)
    lines += [
        f"From noise to images, after so many evaluations, by {names}:",
        f"![Images that come about](gallery/{data}_steps.webp)",
        table(shown, times(shown, rounds)),
        *earlier(shown),
    ]
    return "\n\n".join(lines)


def table(shown: Sequence[Shown], seconds: Mapping[str, tuple[float, float]]) -> str:
    lines = [
        f"| model | method | parameters | steps | evaluations | an image | each of {NUM} |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in shown:
        guided = f", guided by {one.told['guidance']:g}" if "guidance" in one.told else ""
        cells = (
            f"`{one.name}`{guided}", one.model.card["method"],
            f"{count(one.model.network.params):,}",
            samplers.format_steps(one.model.sampling.num_steps), one.nfe,
            *(f"{1000 * time:.3g} ms" for time in seconds[one.name]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def earlier(shown: Sequence[Shown]) -> list[str]:
    """A sentence of the versions before this one that have trained some of these, if any have."""
    trained = {one.name: one.model.card["versions"]["pdistill"] for one in shown}
    old = {name: version for name, version in trained.items() if version != pdistill.__version__}
    if not old:
        return []
    by = ", ".join(f"`{name}` by pdistill {version}" for name, version in old.items())
    return [f"Trained by an earlier version, whose configs may have had other networks: {by}."]


def weighted(text: str) -> tuple[str, float]:
    """Reads a folder and its weight, "FOLDER=2"."""
    found = re.fullmatch(r"(.+)=(\d+(?:\.\d+)?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"give FOLDER=WEIGHT; got {text!r}")
    return found[1], float(found[2])


def main() -> None:
    parser = described("gallery", __doc__)
    parser.add_argument("--models", nargs="+", required=True, help="folders of models")
    parser.add_argument(
        "--guidance", nargs="*", type=weighted, default=[], help="weights, as FOLDER=2"
    )
    parser.add_argument("--rounds", type=int, default=7, help="calls that are timed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the page")
    options = parser.parse_args()
    use_huge_pages()
    set_xla_flags()
    shown, weights = [], dict(options.guidance)
    if unknown := weights.keys() - set(options.models):
        raise SystemExit(f"error: --guidance of {', '.join(unknown)}, which --models lacks")
    for name in options.models:
        try:
            shown.append(read(name, weights.get(name)))
        except ModelError as error:  # a codec, or a folder of something else
            print(f"{name} is left out: {error}")
    shown.sort(key=lambda one: (one.data, -one.nfe, one.name))
    folder = options.out / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    guided = " ".join(f"{name}={weight:g}" for name, weight in weights.items())
    arguments = f" with `--guidance {guided}`" if guided else ""
    device = f"{about['cores']} cores of {about['machine']}"
    if about["device"] != "cpu":
        device = f"{about['devices']} x {about['device']}"
    parts = [INTRODUCTION.format(arguments=arguments, device=device, rounds=options.rounds)]
    for data in dict.fromkeys(one.data for one in shown):
        of_data = [one for one in shown if one.data == data]
        parts.append(section(data, of_data, folder, options.rounds) + "\n")
        print(f"{data}: {', '.join(one.name for one in of_data)}", flush=True)
    (options.out / "gallery.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
