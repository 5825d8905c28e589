"""Judges a text-to-emoji run: whether a prompt becomes its picture, and how far its student is.

    python -m benchmarks.emoji --run=runs/emoji --data=emoji_small --every=emoji \
        --out=benchmarks/results/emoji_cpu/judged.json

`--data` is what the run was trained on, with its splits train, test and style; `--every` all emoji,
among which the picture nearest to a sample is sought, by pixels at 16 x 16. A small convolutional
network, trained here on all pictures of `--data` and on what the codec makes of them, tells
category and style, and has an embedding near that of the caption. It knows every picture, so that
"copy" is printed beside: the training picture with the nearest caption. "permuted" are the same
samples beside the prompts of others. A sample in a style that its name was not seen in has the
shape of the picture in the other, by which a judge that knows this one tells the style; "style,
fresh judge" is by one that was trained on training pictures only. 47 pictures of one seed
are few: by the weight of guidance, and told the style twice, there are means of four seeds.

Frechet distances are of 24 principal components of its embedding, times 10, of 768 samples each,
means of three seeds; those of real pictures from real pictures are beside them. With full captions
a picture is almost a point, which one evaluation finds; coarse ones, "noto animal mammal", show
what few steps lose.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

import pdistill
from benchmarks.common import described
from pdistill.data import load_dataset, to_float
from pdistill.evaluation.frechet import Moments, frechet_distance
from pdistill.evaluation.neighbours import nearest_rows
from pdistill.features import load_extractor
from pdistill.model import Model
from pdistill.model.codecs import reconstructions
from pdistill.model.editor import Editor
from pdistill.runtime.mesh import make_mesh

WIDTH, COMPONENTS, SEEDS, SAMPLES = 384, 24, (0, 1, 2), 768
WEIGHTS = (2.0, 3.0, 6.0)
STYLES = ("fluent", "noto")
PIXELS = load_extractor("pixels_16")


class Pictures(NamedTuple):
    """Pictures uint8 [N, 64, 64, 3], and what their captions say of each.

    Attributes:
      captions: "noto crab". coarse: "noto animal marine". style: 0 or 1. category: [N] int.
    """

    images: np.ndarray
    captions: np.ndarray
    coarse: np.ndarray
    style: np.ndarray
    category: np.ndarray

    def take(self, rows: np.ndarray) -> "Pictures":
        return Pictures(*(a[rows] for a in self))

    @property
    def names(self) -> np.ndarray:
        return np.array([caption.partition(" ")[2] for caption in self.captions])


def read(name: str, splits: tuple[str, ...], categories: list[str]) -> Pictures:
    """Pictures of some splits; new categories are added to the list."""
    images, captions, coarse, category = [], [], [], []
    for split in splits:
        data = load_dataset(name, split)
        images.append(data.images)
        for each in data.captions:
            captions.append(each[0])
            coarse.append(each[-2])
            kind = each[-1].partition(" ")[2]
            if kind not in categories:
                categories.append(kind)
            category.append(categories.index(kind))
    style = np.array([STYLES.index(caption.split()[0]) for caption in captions])
    return Pictures(
        np.concatenate(images), np.array(captions), np.array(coarse), style, np.array(category)
    )


class Judge(nn.Module):
    """Images [B, 64, 64, 3] in [-1, 1] -> embedding of unit length [B, WIDTH], category, style."""

    categories: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        for i, features in enumerate((16, 32, 64, 128)):
            x = nn.relu(nn.Conv(features, (4, 4), (2, 2), name=f"down_{i}")(x))
            h = nn.relu(nn.Conv(features, (3, 3), name=f"first_{i}")(x))
            x = nn.LayerNorm(name=f"norm_{i}")(x + nn.Conv(features, (3, 3), name=f"second_{i}")(h))
        h = jnp.concatenate([x.mean((1, 2)), nn.Dense(128)(x.reshape(len(x), -1))], axis=-1)
        embedding = nn.Dense(WIDTH)(h)
        embedding /= jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        return embedding, nn.Dense(self.categories)(h), nn.Dense(len(STYLES))(h)


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def embedded(teacher: Model, captions: Sequence[str]) -> np.ndarray:
    """Embeddings of captions by a model's text encoder, [N, WIDTH], unit length."""
    return unit(teacher.prompts(list(captions)).pooled)


def judge_of(pictures: Pictures, teacher: Model, updates: int) -> Any:
    """A judge of pictures and of what a teacher's codec makes of them, see `train_judge`."""
    again = psnr(teacher.network.codec, pictures.images)[1]
    return train_judge(pictures, again, embedded(teacher, pictures.captions), updates)


def train_judge(pictures: Pictures, again: np.ndarray, text: np.ndarray, updates: int) -> Any:
    """The judge's parameters after `updates` of 128.

    Args:
      again: the same images by the codec. text: embeddings of the captions [N, WIDTH], unit length.
    """
    judge = Judge(int(pictures.category.max()) + 1)
    images, text = jnp.asarray(np.stack([pictures.images, again])), jnp.asarray(text)
    classes = jnp.asarray(pictures.category), jnp.asarray(pictures.style)
    rule = optax.adamw(optax.cosine_onecycle_schedule(updates, 2e-3), b2=0.99, weight_decay=0.02)
    params = judge.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]

    def loss(params: Any, key: Array) -> Array:
        rows_key, which_key, shift_key = jax.random.split(key, 3)
        rows = jax.random.choice(rows_key, len(text), (128,), replace=False)
        x = to_float(images[jax.random.bernoulli(which_key, shape=(128,)).astype(int), rows])
        x = jnp.roll(x, jax.random.randint(shift_key, (2,), -4, 5), (1, 2))
        embedding, *logits = judge.apply({"params": params}, x)
        alike = 20 * embedding @ text[rows].T
        entropy = optax.softmax_cross_entropy_with_integer_labels
        own = entropy(alike, jnp.arange(128)).mean() + entropy(alike.T, jnp.arange(128)).mean()
        told = (entropy(a, c[rows]).mean() for a, c in zip(logits, classes, strict=True))
        return own + sum(told)

    @jax.jit
    def update(params: Any, state: Any, key: Array) -> tuple[Any, Any]:
        changes, state = rule.update(jax.grad(loss)(params, key), state, params)
        return optax.apply_updates(params, changes), state

    state = rule.init(params)
    for i in range(updates):
        params, state = update(params, state, jax.random.fold_in(jax.random.key(1), i))
    return lambda images: _outputs(judge, params, images)


def _outputs(judge: Judge, params: Any, images: np.ndarray) -> tuple[np.ndarray, ...]:
    """Embedding, category and style of images."""
    rows = [np.minimum(np.arange(i, i + 128), len(images) - 1) for i in range(0, len(images), 128)]
    found = [jax.device_get(_apply(judge, params, images[r])) for r in rows]
    embedding, category, style = (
        np.concatenate(parts)[: len(images)] for parts in zip(*found, strict=True)
    )
    return embedding, category.argmax(1), style.argmax(1)


@functools.partial(jax.jit, static_argnums=0)
def _apply(judge: Judge, params: Any, images: Array) -> tuple[Array, ...]:
    return judge.apply({"params": params}, to_float(images))


def draw(model: Model, prompts: np.ndarray, seed: int, **how: Any) -> np.ndarray:
    """A sample of each prompt, uint8."""
    key, found = jax.random.key(seed), []
    text = model.prompts(list(prompts))
    for i in range(0, len(prompts), 128):
        rows = np.minimum(np.arange(i, i + 128), len(prompts) - 1)
        chosen = jax.tree.map(lambda a, rows=rows: a[rows], text)
        images = model.sample(jax.random.fold_in(key, i), 128, prompt=chosen, **how)
        found.append(np.asarray(jnp.round(127.5 * (jnp.clip(images, -1, 1) + 1)), np.uint8))
    return np.concatenate(found)[: len(prompts)]


def pixels(images: np.ndarray) -> np.ndarray:
    """Pixels at 16 x 16, [N, 768]."""
    return PIXELS(images)["features"]


def prompted(
    samples: np.ndarray,
    asked: Pictures,
    every: Pictures,
    known: np.ndarray,
    judges: tuple[Any, Any],
    text: Any,
) -> dict:
    """How often samples are the pictures that were asked for, and by permuted prompts.

    Args:
      known: `pixels` of `every`. judges: of all pictures, and of those of training.
    """
    embedding, category, style = judges[0](samples)
    _, _, fresh_style = judges[1](samples)
    closest = nearest_rows(pixels(samples), [known], 1)[0][:, 0]
    alike = embedding @ text(asked.captions).T
    shifted = np.roll(np.arange(len(asked.names)), len(asked.names) // 2)

    def shares(order: np.ndarray) -> dict[str, float]:
        truth = asked.take(order)
        ranks = (alike > alike[np.arange(len(order)), order][:, None]).sum(1)
        return {
            "exact": (every.captions[closest] == truth.captions).mean(),
            "name": (every.names[closest] == truth.names).mean(),
            "top_1": (ranks == 0).mean(),
            "top_5": (ranks < 5).mean(),
            "category": (category == truth.category).mean(),
            "style": (style == truth.style).mean(),
            "style, fresh judge": (fresh_style == truth.style).mean(),
        }

    found = {"of": len(samples), **shares(np.arange(len(shifted)))}
    return found | {f"{name}, permuted": share for name, share in shares(shifted).items()}


def over_seeds(
    teacher: Model, prompts: Sequence[str], asked: Pictures, judged: Any, w: float = 2.0
) -> dict[str, float]:
    """Shares of `prompted` by the teacher in 16 steps, means of four seeds."""
    how = {"num_steps": 16, "guidance": w}
    each = [judged(draw(teacher, prompts, seed, **how), asked) for seed in range(7, 11)]
    return jax.tree.map(lambda *shares: float(np.mean(shares)), *each)


def said_twice(captions: np.ndarray) -> list[str]:
    """Captions with their style at both ends, "noto crab noto"."""
    return [f"{caption} {caption.partition(' ')[0]}" for caption in captions]


def psnr(codec: Any, images: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean PSNR in dB of images that the codec has encoded and decoded, and these."""
    batches = reconstructions(codec, images, np.arange(len(images)), 128, make_mesh())
    again = np.concatenate(list(batches))
    error = np.square((again.astype(np.float32) - images) / 255).mean((1, 2, 3))
    return float(np.mean(-10 * np.log10(error))), again


class Distance:
    """Frechet distance of the judge's embeddings from those of training pictures."""

    def __init__(self, judge: Any, pictures: Pictures):
        self._judge = judge
        self._rng = np.random.default_rng(0)
        embedding = judge(pictures.images)[0]
        _, _, directions = np.linalg.svd(embedding - embedding.mean(0), full_matrices=False)
        self._directions = 10 * directions[:COMPONENTS].T
        self._real = embedding
        self._statistics = self._of(embedding)

    def _of(self, embedding: np.ndarray) -> Any:
        moments = Moments()
        moments.add(embedding @ self._directions)
        return moments.statistics()

    def __call__(self, samples: np.ndarray) -> float:
        found = self._of(self._judge(samples)[0])
        return float(frechet_distance(found, self._statistics))

    def of_real(self) -> float:
        """That of as many real pictures, drawn anew."""
        rows = self._rng.integers(len(self._real), size=SAMPLES)
        return float(frechet_distance(self._of(self._real[rows]), self._statistics))


def edits(student: Model) -> dict[str, float]:
    """Red hearts that are told to be blue, and halves that are painted: shares of 50 seeds.

    "blue" has more blue than red in the mean of its coloured pixels. Evaluations are the student's
    four, or three of them where a quarter of the noise is left out.
    """
    editor, found = Editor(student), {}
    key, seeds = jax.random.key(5), 50
    hearts = student.sample(key, seeds, prompt="noto red heart")
    for strength in (0.5, 0.75, 1.0):
        changed = editor.change(key, hearts, strength=strength, prompt="noto blue heart")
        found[f"blue after a change of {strength:g}"] = float(np.mean(_is_blue(changed)))
    found["blue before"] = float(np.mean(_is_blue(hearts)))
    half = np.arange(64)[None, None, :, None] < 32
    known = np.broadcast_to(half, (1, 64, 64, 1))
    painted = editor.inpaint(key, hearts, known, prompt="noto red heart")
    kept = jnp.abs(painted - hearts)[:, :, :32].max()
    found["largest change of kept pixels"] = float(kept)
    found["inpainted halves that are red"] = float(np.mean(~_is_blue(painted[:, :, 32:])))
    return found


def _is_blue(images: Array) -> np.ndarray:
    """Whether the coloured pixels of each image [B, H, W, 3] have more blue than red."""
    coloured = np.asarray(images.max(-1) - images.min(-1) > 0.3)
    red, blue = np.asarray(images[..., 0]), np.asarray(images[..., 2])
    return ((blue - red) * coloured).sum((1, 2)) > 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    categories: list[str] = []
    train = read(options.data, ("train",), categories)
    style, test = (read(options.data, (split,), categories) for split in ("style", "test"))
    every = read(options.every, ("train", "test", "style", "tone"), categories)
    known = read(options.data, ("train", "style", "test"), categories)
    teacher = pdistill.load(f"{options.run}/teacher")
    student = pdistill.load(f"{options.run}/student/4")
    text = functools.partial(embedded, teacher)
    codec = teacher.network.codec
    found: dict[str, Any] = {"codec, PSNR of held-out names": psnr(codec, test.images)[0]}
    found["codec, PSNR of training pictures"], _ = psnr(codec, train.images)
    began = time.monotonic()
    judge, fresh = (judge_of(pictures, teacher, options.updates) for pictures in (known, train))
    found["judges, seconds"] = time.monotonic() - began

    judged = functools.partial(
        prompted, every=every, known=pixels(every.images), judges=(judge, fresh), text=text
    )
    rows = np.random.default_rng(3).choice(len(train.images), 150, replace=False)
    some = train.take(rows)
    how = {"num_steps": 16, "guidance": 2.0}
    for name, asked in (("training", some), ("style", style), ("unseen names", test)):
        found[name] = judged(draw(teacher, asked.captions, 7, **how), asked)
        found[f"{name}, student"] = judged(draw(student, asked.captions, 7), asked)
        found[f"{name}, real"] = judged(asked.images, asked)
    alike = text(style.captions) @ text(train.captions).T
    copied = train.images[alike.argmax(1)]
    found["style, copy"] = judged(copied, style)
    for w in WEIGHTS:
        found[f"style, w = {w:g}"] = over_seeds(teacher, style.captions, style, judged, w)
    for name, asked in (("training", some), ("style", style)):
        prompts = said_twice(asked.captions)
        found[f"{name}, said twice"] = over_seeds(teacher, prompts, asked, judged)

    found["edits"] = edits(student)
    distance = Distance(judge, train)
    found["distance, real"] = np.mean([distance.of_real() for _ in SEEDS])
    models = {
        "teacher, 32 evaluations": (teacher, {"num_steps": 16, "guidance": 2.0}),
        "teacher, 8 evaluations": (teacher, {"num_steps": 4, "guidance": 2.0}),
        "student, 4 evaluations": (student, {}),
    }
    for (kind, name), values in distances(distance, models, train).items():
        found[f"distance, {kind}, {name}"] = np.mean(values)
    return found


def distances(
    distance: Distance, models: dict[str, tuple[Model, dict[str, Any]]], train: Pictures
) -> dict[tuple[str, str], list[float]]:
    """Distances by kind of captions, "full" or "coarse", and model; one for each seed of noise.

    Args:
      models: by name, each with how it samples.
    """
    rows = np.random.default_rng(11).integers(len(train.images), size=SAMPLES)
    return {
        (kind, name): [distance(draw(model, prompts, seed, **how)) for seed in SEEDS]
        for kind, prompts in (("full", train.captions[rows]), ("coarse", train.coarse[rows]))
        for name, (model, how) in models.items()
    }


def main() -> None:
    parser = described("emoji", __doc__)
    parser.add_argument("--run", default="runs/emoji")
    parser.add_argument("--data", default="emoji_small")
    parser.add_argument("--every", default="emoji")
    parser.add_argument("--updates", type=int, default=400, help="of the judge")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = jax.tree.map(lambda a: round(float(a), 4), measure(options))
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
