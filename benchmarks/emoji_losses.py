"""Losses of a text-to-emoji teacher in training, on what it learns and on what it has not seen.

    pdistill train --config=configs/emoji.py:cpu --workdir=runs/emoji_losses \
        '--config.stages[1].loop.snapshot_every=500' \
        '--config.stages[1].optimizer.ema_widths=(0.1,)' \
        '--config.stages[1].optimizer.ema_decay=0.0'
    python -m benchmarks.emoji_losses --run=runs/emoji_losses/teacher --picture=losses.png

or, of one model that is there, `python -m benchmarks.emoji_losses --run=zoo/emoji/teacher`.
The mean squared error of v on the codec's latents, told the first caption, over noise levels that
are spread evenly; the same noise for all snapshots. "train" are the pictures that it is trained on,
"style" those whose name is there in the other style only, "test" those of names that are not there.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import pdistill
from benchmarks.common import described
from pdistill import diffusion
from pdistill.data import load_dataset, to_float
from pdistill.model import AVERAGES, Model, read_card
from pdistill.networks import Conditioning, Network
from pdistill.report.figures import STYLE

SPLITS = {"train": "training pictures", "style": "held-out styles", "test": "held-out names"}
ROWS, BATCH = 2048, 128


@jax.jit
def errors(network: Network, x: Array, told: Conditioning, times: Array, key: Array) -> Array:
    """Squared errors [B] of v on latents x [B, h, w, c] at times in [0, 1]."""
    logsnr = network.schedule(times)
    z, eps = diffusion.noised(key, x, logsnr)
    v = diffusion.v_target(x, eps, logsnr)
    return diffusion.denoising_loss(network.v(z, logsnr, told), v, logsnr)


def loss(model: Model, images: np.ndarray, captions: list[str]) -> float:
    """The mean of `ROWS` errors, each image in turn."""
    network, codec = model.network.unguided().replace(codec=None), model.network.codec
    rows = np.arange(ROWS) % len(images)
    times = np.random.default_rng(0).permutation((np.arange(ROWS) + 0.5) / ROWS)
    text, found = model.prompts(captions), []
    for i in range(0, ROWS, BATCH):
        part = rows[i : i + BATCH]
        x = codec.latents(codec.encode(to_float(jnp.asarray(images[part]))))
        told = Conditioning(text=jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), text))
        at = jnp.asarray(times[i : i + BATCH], jnp.float32)
        found.append(errors(network, x, told, at, jax.random.fold_in(jax.random.key(0), i)))
    return float(np.mean(found))


def measure(run: Path, data: str) -> dict[str, dict[int, float]]:
    """Losses by split and updates."""
    snapshots = {int(folder.parent.name): folder for folder in (run / AVERAGES).glob("*/*")}
    snapshots = snapshots or {read_card(run)["train_steps"]: run}
    models = {n: pdistill.load(snapshots[n]) for n in sorted(snapshots)}
    found: dict[str, dict[int, float]] = {}
    for split in SPLITS:
        pictures = load_dataset(data, split)
        captions = [each[0] for each in pictures.captions]
        found[split] = {n: loss(m, pictures.images, captions) for n, m in models.items()}
    return found


@matplotlib.rc_context(STYLE)
def draw(found: dict[str, dict[int, float]]) -> Figure:
    figure = Figure((5.5, 3.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    for split, losses in found.items():
        axes.plot(list(losses), list(losses.values()), "o-", label=SPLITS[split], markersize=4)
    axes.set(xlabel="updates of the teacher", ylabel="loss", ylim=(0, None))
    axes.legend()
    return figure


def main() -> None:
    parser = described("emoji_losses", __doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/emoji_losses/teacher"))
    parser.add_argument("--data", default="emoji_small")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--picture", type=Path, help="file to draw the curves into")
    options = parser.parse_args()
    found = measure(options.run, options.data)
    rounded = {k: {n: round(a, 4) for n, a in losses.items()} for k, losses in found.items()}
    if options.out:
        options.out.write_text(json.dumps(rounded, indent=1) + "\n")
    if options.picture:
        draw(found).savefig(options.picture)
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
