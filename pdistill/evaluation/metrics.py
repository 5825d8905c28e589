"""The metrics by name: the feature space each one needs, and how its rows come of it.

fid                      Frechet distance of Inception features; for other than 50,000 samples the
                         row is called `fid_10k` or the like
fd_<features>            Frechet distance of other features
kid, kid_<features>      kernel distance of Inception or other features
is                       Inception Score
precision_recall         two rows, `precision` and `recall`
class_shares             two rows, `class_share_min` and `class_share_max`: the fractions of samples
                         that the digits classifier takes for the rarest and commonest digit
label_accuracy           fraction of samples that the digits classifier takes for their label
nearest_neighbour_ratio  are samples nearer to training images than held-out images are?
"""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pdistill.evaluation.frechet import Statistics, frechet_bias, frechet_distance
from pdistill.evaluation.images import EvaluationError, EvaluationWarning
from pdistill.evaluation.inception_score import inception_score
from pdistill.evaluation.kid import kernel_distance
from pdistill.evaluation.neighbours import NeighbourRatio
from pdistill.evaluation.precision_recall import Manifold
from pdistill.evaluation.references import Reference, StatisticsReference
from pdistill.features import EXTRACTORS, Extractor

NEIGHBOURS = "nearest_neighbour_ratio"
INCEPTION = "inception"
DISTANCES = ("fid", "fd_", "kid")  # how metrics begin of which smaller values are better


def check_distance(name: str, key: str) -> None:
    """That a metric's smaller values are better.

    Raises:
      EvaluationError: they are not; the message calls the setting `key`.
    """
    if not name.startswith(DISTANCES):
        raise EvaluationError(f"{key} must be a distance, fid, fd_* or kid*; got {name!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """What is kept of samples in one feature space; what no metric needs is None.

    Attributes:
      features: [N, D]. logits: [N, K]. labels: [N], of a model that takes them.
    """

    statistics: Statistics | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """One metric.

    Attributes:
      features: name of its feature space. needs: the field of `Collected` it reads.
      compares: with each reference ("all"), the first one ("first"), or none ("none").
    """

    features: str
    needs: ClassVar[str] = "features"
    compares: ClassVar[str] = "all"

    @abc.abstractmethod
    def names(self, num: int) -> tuple[str, ...]:
        """What its rows are called, for `num` samples."""

    @abc.abstractmethod
    def measure(
        self, samples: Collected, reference: Reference | StatisticsReference, extractor: Extractor
    ) -> list[dict[str, Any]]:
        """{"value": ..., and what else the row should say} for each of `names`."""


class FrechetDistance(Metric):
    needs = "statistics"

    def names(self, num: int) -> tuple[str, ...]:
        if self.features != INCEPTION:
            return (f"fd_{self.features}",)
        if num == 50_000:
            return ("fid",)
        return (f"fid_{num // 1000}k" if num % 1000 == 0 else f"fid_{num}",)

    def measure(self, samples, reference, extractor):
        statistics = reference.statistics(extractor)
        try:
            row = {"value": frechet_distance(samples.statistics, statistics)}
        except ValueError as error:
            raise EvaluationError(f"{self.features} against {reference.name}: {error}") from error
        num, size = samples.statistics.count, len(statistics.mean)
        if num <= size:
            row["bias"] = _bias(statistics, num)
            warnings.warn(
                f"{num} samples are too few for {size} features ({self.features}): perfect ones "
                f"would measure {row['bias']:.3g} against {reference.name}, not 0",
                EvaluationWarning,
                stacklevel=2,
            )
        return [row]


_bias = functools.lru_cache(maxsize=64)(frechet_bias)  # the same for every model of a run


class KernelDistance(Metric):
    def names(self, num: int) -> tuple[str, ...]:
        return ("kid" if self.features == INCEPTION else f"kid_{self.features}",)

    def measure(self, samples, reference, extractor):
        value, error = kernel_distance(samples.features, reference.features(extractor))
        return [{"value": value, "standard_error": error}]


class InceptionScore(Metric):
    needs = "logits"
    compares = "none"

    def names(self, num: int) -> tuple[str, ...]:
        return ("is",)

    def measure(self, samples, reference, extractor):
        value, std = inception_score(samples.logits)
        return [{"value": value, "std_over_splits": std}]


class LabelAccuracy(Metric):
    needs = "logits"
    compares = "none"

    def names(self, num: int) -> tuple[str, ...]:
        return ("label_accuracy",)

    def measure(self, samples, reference, extractor):
        if samples.labels is None:
            raise EvaluationError("label_accuracy needs samples of a model that takes labels")
        found = samples.logits.argmax(axis=1)
        return [{"value": float(np.mean(found == samples.labels))}]


class ClassShares(Metric):
    needs = "logits"
    compares = "none"

    def names(self, num: int) -> tuple[str, ...]:
        return ("class_share_min", "class_share_max")

    def measure(self, samples, reference, extractor):
        classes = samples.logits.shape[1]
        counts = np.bincount(samples.logits.argmax(axis=1), minlength=classes)
        shares = counts / counts.sum()
        return [{"value": float(shares.min())}, {"value": float(shares.max())}]


class PrecisionRecall(Metric):
    def names(self, num: int) -> tuple[str, ...]:
        return ("precision", "recall")

    def measure(self, samples, reference, extractor):
        real = reference.features(extractor)
        precision = _manifold(reference, extractor).contains(samples.features).mean()
        recall = Manifold(samples.features).contains(real).mean()
        return [{"value": float(precision)}, {"value": float(recall)}]


@functools.lru_cache(maxsize=8)
def _manifold(reference: Reference, extractor: Extractor) -> Manifold:
    return Manifold(reference.features(extractor))


@dataclasses.dataclass(frozen=True)
class NearestNeighbourRatio(Metric):
    """Of the first reference, with its `held_out` images."""

    held_out: Reference | None = None
    compares = "first"

    def names(self, num: int) -> tuple[str, ...]:
        return (NEIGHBOURS,)

    def measure(self, samples, reference, extractor):
        ratio = _neighbour_ratio(reference, self.held_out, extractor)
        return [{"value": ratio(samples.features)}]


@functools.lru_cache(maxsize=8)
def _neighbour_ratio(train: Reference, held_out: Reference, extractor: Extractor) -> NeighbourRatio:
    return NeighbourRatio(train.features(extractor), held_out.features(extractor))


def parse_metrics(
    names: Sequence[str], features: str = "", held_out: Reference | None = None
) -> list[Metric]:
    """Metrics by name, as in this module's docstring.

    Args:
      features: space of precision_recall; by default that of the first metric which has one in
        its name, and Inception's if none has. held_out: for the nearest-neighbour ratio.

    Raises:
      ValueError: an unknown metric or feature space.
    """
    features = features or feature_space(names)
    if features not in EXTRACTORS:
        raise ValueError(f"features must be one of {', '.join(EXTRACTORS)}; got {features!r}")
    return [_parse(name, features, held_out) for name in names]


def feature_space(names: Sequence[str]) -> str:
    """The space in the first metric's name that has one; Inception's if none has."""
    for name in names:
        kind, _, space = name.partition("_")
        if name in ("fid", "kid", "is"):
            return INCEPTION
        if kind in ("fd", "kid") and space in EXTRACTORS:
            return space
    return INCEPTION


def _parse(name: str, features: str, held_out: Reference | None) -> Metric:
    known = {
        "fid": lambda: FrechetDistance(INCEPTION),
        "kid": lambda: KernelDistance(INCEPTION),
        "is": lambda: InceptionScore(INCEPTION),
        "label_accuracy": lambda: LabelAccuracy("classifier"),
        "class_shares": lambda: ClassShares("classifier"),
        "precision_recall": lambda: PrecisionRecall(features),
        NEIGHBOURS: lambda: NearestNeighbourRatio("pixels", held_out),
    }
    for space in EXTRACTORS:
        if space != INCEPTION:  # whose distances have names of their own
            known[f"fd_{space}"] = functools.partial(FrechetDistance, space)
            known[f"kid_{space}"] = functools.partial(KernelDistance, space)
    if name not in known:
        raise ValueError(f"metric must be one of {', '.join(known)}; got {name!r}")
    return known[name]()
