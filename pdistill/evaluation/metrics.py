"""Metrics by name, each with the feature space it needs and the rows it makes.

fid                      Frechet distance of Inception features; for other than 50,000 samples the
                         row is called `fid_10k` or the like
fd_<features>            Frechet distance of other features
kid, kid_<features>      kernel distance of Inception or other features
cmmd                     kernel distance of CLIP's embeddings
is                       Inception Score
clip_score               likeness of samples and their prompts to CLIP
precision_recall         two rows, `precision` and `recall`
class_shares             two rows, `class_share_min` and `class_share_max`: the fractions of samples
                         that the digits classifier takes for the rarest and commonest digit
label_accuracy           fraction of samples that the digits classifier takes for their label
label_accuracy_<features>  fraction of samples whose features are nearest to the mean of the
                         reference's images of their label
nearest_neighbour_ratio  distance of samples to training images, over that of held-out images
"""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pdistill.evaluation.clip import clip_score, cmmd, kernel_sum
from pdistill.evaluation.frechet import (
    Statistics,
    frechet_bias,
    frechet_bias_of_few,
    frechet_distance,
)
from pdistill.evaluation.images import EvaluationError, EvaluationWarning
from pdistill.evaluation.inception_score import SPLITS, inception_score
from pdistill.evaluation.jackknife import NORMAL, frechet_margin, recall_margin, share_margin
from pdistill.evaluation.kid import kernel_distance
from pdistill.evaluation.neighbours import NeighbourRatio
from pdistill.evaluation.precision_recall import Manifold
from pdistill.evaluation.references import Reference, StatisticsReference
from pdistill.features import EXTRACTORS, Extractor
from pdistill.features.inception import INCEPTION
from pdistill.features.vision import CLIP

NEIGHBOURS = "nearest_neighbour_ratio"
DISTANCES = ("fid", "fd_", "kid", "cmmd")  # beginnings of metrics whose smaller values are better
FEW = 5  # images for each feature, of which a reference has a bias that is found
DOUBTFUL = 0.1  # share of a distance that a bias may be without a warning


def check_distance(name: str, key: str) -> None:
    """Checks that a metric is a distance, whose smaller values are better.

    Raises:
      EvaluationError: it is not; the message calls the setting `key`.
    """
    if not name.startswith(DISTANCES):
        raise EvaluationError(f"{key} must be a distance, fid, fd_*, kid* or cmmd; got {name!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """Samples in one feature space; whatever no metric needs is None.

    Attributes:
      statistics: mean and covariance of the features.
      kept: rows that a margin is found by, in batches, see `jackknife.Kept`.
      features: features [N, D].
      logits: a classifier's logits [N, K].
      labels: labels [N] that the samples were made for.
      prompts: unit embeddings [N, D] of the prompts that the samples were made for.
    """

    statistics: Statistics | None = None
    kept: Sequence[np.ndarray] | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    prompts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """One metric, which makes rows of results.jsonl.

    Attributes:
      features: name of its feature space.
      needs: field of `Collected` that it reads.
      compares: images to compare with: "all" references, those of "training", or "none".
      least: number of samples, and of images to compare with, that it needs.
    """

    features: str
    needs: ClassVar[str] = "features"
    compares: ClassVar[str] = "all"
    least: ClassVar[int] = 2

    @abc.abstractmethod
    def names(self, num: int) -> tuple[str, ...]:
        """Names its rows, for `num` samples."""

    @abc.abstractmethod
    def measure(
        self, samples: Collected, reference: Reference | StatisticsReference, extractor: Extractor
    ) -> list[dict[str, Any]]:
        """Measures {"value": ...}, and further keys of a row, for each of `names`."""


class FrechetDistance(Metric):
    """Frechet distance to each reference."""

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
            row |= _margin(frechet_margin(samples.kept, samples.statistics, statistics))
        except ValueError as error:
            raise EvaluationError(f"{self.features} against {reference.name}: {error}") from error
        num, size = samples.statistics.count, len(statistics.mean)
        few = [f"{num} samples"] if num <= size else []
        if statistics.count is not None and statistics.count < FEW * size:
            few.append(f"{statistics.count} images of {reference.name}")
        if few:
            find = _bias if statistics.count is None else _bias_of_few
            row["bias"] = find(statistics, num)
            if row["bias"] > DOUBTFUL * row["value"]:
                warnings.warn(
                    f"{' and '.join(few)} are too few for {size} features ({self.features}): even "
                    f"perfect samples would measure about {row['bias']:.3g} against "
                    f"{reference.name}",
                    EvaluationWarning,
                    stacklevel=2,
                )
        return [row]


def _margin(margin: float | None) -> dict[str, float]:
    """The margin as a key of a row; no key where there is none."""
    return {} if margin is None else {"margin": margin}


def _share(found: np.ndarray) -> dict[str, float]:
    """The share of samples that `found`, bool [N], is true of, with its margin."""
    share = float(np.mean(found))
    return {"value": share, "margin": share_margin(share, len(found))}


_bias, _bias_of_few = (  # the same for every model of a run
    functools.lru_cache(maxsize=64)(found) for found in (frechet_bias, frechet_bias_of_few)
)


class KernelDistance(Metric):
    """Kernel distance to each reference."""

    def names(self, num: int) -> tuple[str, ...]:
        return ("kid" if self.features == INCEPTION else f"kid_{self.features}",)

    def measure(self, samples, reference, extractor):
        value, error = kernel_distance(samples.features, reference.features(extractor))
        return [{"value": value, "standard_error": error, "margin": NORMAL * error}]


class Cmmd(Metric):
    """CMMD to each reference."""

    def names(self, num: int) -> tuple[str, ...]:
        return ("cmmd",)

    def measure(self, samples, reference, extractor):
        own = _kernel_sum(reference, extractor)
        value, error = cmmd(samples.features, reference.features(extractor), own)
        return [{"value": value, "standard_error": error, "margin": NORMAL * error}]


@functools.lru_cache(maxsize=8)
def _kernel_sum(reference: Reference, extractor: Extractor) -> float:
    return kernel_sum(reference.features(extractor))


class ClipScore(Metric):
    """CLIP score of samples for their prompts, without a reference."""

    compares = "none"

    def names(self, num: int) -> tuple[str, ...]:
        return ("clip_score",)

    def measure(self, samples, reference, extractor):
        value, error = clip_score(samples.features, samples.prompts)
        return [{"value": value, "standard_error": error, "margin": NORMAL * error}]


class InceptionScore(Metric):
    """Inception Score, without a reference."""

    needs = "logits"
    compares = "none"
    least = SPLITS

    def names(self, num: int) -> tuple[str, ...]:
        return ("is",)

    def measure(self, samples, reference, extractor):
        value, std = inception_score(samples.logits)
        return [{"value": value, "std_over_splits": std}]


class LabelAccuracy(Metric):
    """Fraction of samples that a classifier takes for their label."""

    needs = "logits"
    compares = "none"

    def names(self, num: int) -> tuple[str, ...]:
        return ("label_accuracy",)

    def measure(self, samples, reference, extractor):
        _check_labels(samples, "label_accuracy")
        return [_share(samples.logits.argmax(axis=1) == samples.labels)]


def _check_labels(samples: Collected, name: str) -> None:
    if samples.labels is None:
        raise EvaluationError(
            f"{name} needs samples with labels: of a model that takes some, or images in an .npz "
            "with their label [N]; leave this metric out for others"
        )


class NearestMean(Metric):
    """Fraction of samples that are nearest to the mean of their label's images, in features.

    It classifies by the nearest class mean (Mensink et al. 2013), and can be no better than the
    space: rows have "accuracy_of_data", that of the reference's own images.
    """

    def names(self, num: int) -> tuple[str, ...]:
        return (f"label_accuracy_{self.features}",)

    def measure(self, samples, reference, extractor):
        _check_labels(samples, *self.names(0))
        classes, means, of_data = _class_means(reference, extractor)
        found = classes[_nearest(samples.features, means)] == samples.labels
        return [_share(found) | {"accuracy_of_data": of_data}]


@functools.lru_cache(maxsize=8)
def _class_means(
    reference: Reference, extractor: Extractor
) -> tuple[np.ndarray, np.ndarray, float]:
    """The classes [K] of a reference, their mean features [K, D], and its own accuracy by them."""
    features, labels = reference.features(extractor), np.asarray(reference.labels)
    classes = np.unique(labels)
    means = np.stack([features[labels == c].mean(axis=0, dtype=np.float64) for c in classes])
    return classes, means, float(np.mean(classes[_nearest(features, means)] == labels))


def _nearest(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Numbers [N] of the means [K, D] that are nearest to features [N, D]."""
    return np.argmin(np.sum(means**2, axis=1) - 2 * features @ means.T, axis=1)


class ClassShares(Metric):
    """Smallest and largest fraction of samples that a classifier takes for one class."""

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
    """Improved precision and recall against each reference."""

    least = Manifold.k + 1

    def names(self, num: int) -> tuple[str, ...]:
        return ("precision", "recall")

    def measure(self, samples, reference, extractor):
        real = reference.features(extractor)
        precise = _manifold(reference, extractor).contains(samples.features)
        manifold = Manifold(samples.features)
        recall = float(manifold.contains(real).mean())
        return [_share(precise), {"value": recall} | _margin(recall_margin(manifold, real))]


@functools.lru_cache(maxsize=8)
def _manifold(reference: Reference, extractor: Extractor) -> Manifold:
    return Manifold(reference.features(extractor))


@dataclasses.dataclass(frozen=True)
class NearestNeighbourRatio(Metric):
    """Nearest-neighbour ratio to the training images.

    Attributes:
      held_out: images like these, that no model was trained on.
    """

    held_out: Reference | None = None
    compares = "training"

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
    """Makes metrics from their names, as in this module's docstring.

    Args:
      features: feature space of precision_recall; by default the space of the first metric with one
        in its name, and Inception's if none has.
      held_out: images for the nearest-neighbour ratio.

    Raises:
      ValueError: a metric or feature space is unknown.
    """
    features = features or feature_space(names)
    if features not in EXTRACTORS:
        raise ValueError(f"features must be one of {', '.join(EXTRACTORS)}; got {features!r}")
    return [_parse(name, features, held_out) for name in names]


def feature_space(names: Sequence[str]) -> str:
    """Finds the feature space in the first metric's name that has one; Inception's if none has."""
    for name in names:
        distance, _, space = name.partition("_")
        if name in ("fid", "kid", "is"):
            return INCEPTION
        if name == "cmmd":
            return CLIP
        if distance in ("fd", "kid") and space in EXTRACTORS:
            return space
    return INCEPTION


def _parse(name: str, features: str, held_out: Reference | None) -> Metric:
    known = {
        "fid": lambda: FrechetDistance(INCEPTION),
        "kid": lambda: KernelDistance(INCEPTION),
        "cmmd": lambda: Cmmd(CLIP),
        "is": lambda: InceptionScore(INCEPTION),
        "clip_score": lambda: ClipScore(CLIP),
        "label_accuracy": lambda: LabelAccuracy("classifier"),
        "class_shares": lambda: ClassShares("classifier"),
        "precision_recall": lambda: PrecisionRecall(features),
        NEIGHBOURS: lambda: NearestNeighbourRatio("pixels", held_out),
    }
    for space in EXTRACTORS:
        if space != INCEPTION:  # its distances have names of their own
            known[f"fd_{space}"] = functools.partial(FrechetDistance, space)
            known[f"kid_{space}"] = functools.partial(KernelDistance, space)
        known[f"label_accuracy_{space}"] = functools.partial(NearestMean, space)
    if name not in known:
        raise ValueError(f"metric must be one of {', '.join(known)}; got {name!r}")
    return known[name]()
