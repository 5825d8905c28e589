"""From samples to rows of results.jsonl."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pdistill.data import Dataset
from pdistill.evaluation.frechet import Moments, frechet_distance
from pdistill.evaluation.neighbours import NeighbourRatio
from pdistill.features import FEATURES, pixels

NEIGHBOURS = "nearest_neighbour_ratio"
BLOCK = 1000  # images whose features are in memory at a time


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number: `metric` of `num_samples` samples against `reference`."""

    metric: str
    value: float
    reference: str
    num_samples: int


class Evaluator:
    """Measures sets of samples against fixed references, whose statistics are computed once.

    Attributes:
      references: data sets to compare with; `held_out` is compared with the first of them by
        "nearest_neighbour_ratio".
      metrics: "fd_<features>" for any name in `features.FEATURES`, and "nearest_neighbour_ratio".
    """

    def __init__(
        self, references: Sequence[Dataset], held_out: Dataset | None, metrics: Sequence[str]
    ) -> None:
        known = [f"fd_{name}" for name in FEATURES] + [NEIGHBOURS]
        for metric in metrics:
            if metric not in known:
                raise ValueError(f"metric must be one of {', '.join(known)}; got {metric!r}")
        self.references = references
        self.metrics = metrics
        self._held_out = held_out
        self._moments: dict[tuple[str, str], Moments] = {}

    @property
    def num_samples(self) -> int:
        """As many samples as the largest reference has images."""
        return max((len(dataset) for dataset in self.references), default=0)

    def measure(self, samples: np.ndarray) -> list[Measurement]:
        """Measures uint8 samples [N, H, W, C].

        Each Frechet distance takes as many samples, the first ones, as its reference has images.
        """
        return [self._one(metric, dataset, samples) for metric, dataset in self.pairs()]

    def pairs(self) -> Iterator[tuple[str, Dataset]]:
        """Each metric with each reference it is measured against."""
        for metric in self.metrics:
            for dataset in self.references[:1] if metric == NEIGHBOURS else self.references:
                yield metric, dataset

    @functools.cached_property
    def _ratio(self) -> NeighbourRatio:
        train, held_out = self.references[0].images, self._held_out.images
        return NeighbourRatio(pixels(train), pixels(held_out))

    def _reference(self, metric: str, dataset: Dataset) -> Moments:
        key = (metric, dataset.name)
        if key not in self._moments:
            self._moments[key] = _moments(metric, dataset.images)
        return self._moments[key]

    def _one(self, metric: str, dataset: Dataset, samples: np.ndarray) -> Measurement:
        if metric == NEIGHBOURS:
            value = self._ratio(pixels(samples))
        else:
            samples = samples[: len(dataset)]
            moments = _moments(metric, samples)
            value = frechet_distance(moments, self._reference(metric, dataset))
        return Measurement(metric, value, dataset.name, len(samples))


def _moments(metric: str, images: np.ndarray) -> Moments:
    """Moments of the features that "fd_<features>" names, of uint8 images [N, H, W, C]."""
    features = FEATURES[metric.removeprefix("fd_")]
    moments = Moments()
    for start in range(0, len(images), BLOCK):
        moments.add(features(images[start : start + BLOCK]))
    return moments


def draw(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
    """All batches as one array, and the seconds an image took.

    The first batch compiles, so it is left out of the time unless it is the only one.
    """
    images, seconds, clock = [], [], time.monotonic()
    for batch in batches:
        images.append(batch)
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    timed = slice(1 if len(images) > 1 else 0, None)
    return np.concatenate(images), sum(seconds[timed]) / sum(map(len, images[timed]))
