"""Checks that distances rise with damage: CIFAR-10 against noisy, blurred, compressed copies.

    python -m benchmarks.distances --out=benchmarks/results/distances.json
    python -m benchmarks.distances --features=dinov2_b,clip_l336 --random --num=100

5,000 training images against 5,000 held-out ones, and against copies of themselves at rising
strengths. Prints a table and says where a distance fails to rise. DINOv2 and CLIP need a GPU for as
many; --random gives them random weights.
"""

import argparse
import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import scipy.ndimage
from PIL import Image

from pdistill.data import load_dataset
from pdistill.evaluation import Moments, Statistics, frechet_distance
from pdistill.features import Extractor, load_extractor, vision
from pdistill.networks import ImageEncoder

NUM = 5000
NOISE = (4, 8, 16)  # standard deviation, in grey values
BLUR = (0.5, 0.75, 1.0)  # standard deviation, in pixels
JPEG = (90, 60, 30)  # quality
CLASSES = (1, 2, 4)  # dropped


def noisy(images: np.ndarray, std: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=std, size=images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, std: float) -> np.ndarray:
    smooth = scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, std, std, 0))
    return np.clip(np.round(smooth), 0, 255).astype(np.uint8)


def compressed(images: np.ndarray, quality: int) -> np.ndarray:
    copies = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        copies.append(np.asarray(Image.open(buffer)))
    return np.stack(copies)


def random_extractor(name: str) -> Extractor:
    """A tower of `vision.TOWERS` with random weights."""
    encoder = ImageEncoder(None, vision.TOWERS[name].module)
    return vision.extractor(name, encoder.init(jax.random.key(0)))


def distances(extractor: Extractor, num: int) -> Iterator[tuple[str, float, float]]:
    """Measures (damage, strength, Frechet distance), strengths of a damage in rising order."""

    def statistics(rows: np.ndarray) -> Statistics:
        return Moments().add(rows).statistics()

    train, test = (load_dataset("cifar10", split) for split in ("train", "test"))
    images, labels = train.images[:num], train.labels[:num]
    rows = extractor(images)["features"]
    reference = statistics(rows)

    def distance(copies: np.ndarray) -> float:
        return frechet_distance(statistics(extractor(copies)["features"]), reference)

    yield "held-out images", 0, distance(test.images[:num])
    for damage, function, strengths in (
        ("noise", noisy, NOISE), ("blur", blurred, BLUR), ("jpeg", compressed, JPEG),
    ):  # fmt: skip
        for strength in strengths:
            yield damage, strength, distance(function(images, strength))
    for count in CLASSES:
        kept = statistics(rows[labels >= count])
        yield "classes dropped", count, frechet_distance(kept, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--features", default="pixels,efficientnet_lite0")
    parser.add_argument(
        "--random", action="store_true", help="random weights, of DINOv2 and CLIP only"
    )
    parser.add_argument("--num", type=int, default=NUM, help="images")
    options = parser.parse_args()
    tables, clock = {}, time.monotonic()
    for features in options.features.split(","):
        tables[features] = []
        extractor = (random_extractor if options.random else load_extractor)(features)
        for damage, strength, value in distances(extractor, options.num):
            tables[features].append([damage, strength, value])
            print(f"{features:<20} {damage:<16} {strength:>5} {value:10.4f}", flush=True)
        for damage, group in itertools.groupby(tables[features], key=lambda row: row[0]):
            values = [value for _, _, value in group]
            rises = all(a < b for a, b in itertools.pairwise(values))
            print(f"{features:<20} {damage:<16} {'rises' if rises else 'DOES NOT RISE'}")
    if options.out:
        about = {
            "images": options.num,
            "weights": "random" if options.random else "published",
            "device": jax.devices()[0].device_kind,
            "seconds": round(time.monotonic() - clock),
        }
        options.out.write_text(json.dumps(about | {"frechet_distance": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
