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
from pdistill.evaluation.nearest_mean import class_means, found_without_itself, nearest_mean
from pdistill.evaluation.neighbours import NeighbourRatio
from pdistill.evaluation.precision_recall import Manifold
from pdistill.evaluation.references import Reference, StatisticsReference
from pdistill.features import EXTRACTORS, Extractor
from pdistill.features.inception import INCEPTION
from pdistill.features.vision import CLIP

NEIGHBOURS = "nearest_neighbour_ratio"
DISTANCES = ("fid", "fd_", "kid", "cmmd")  # beginnings of metrics whose smaller values are better
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
      paired: the samples were made for images of the reference, each in its turn. They are no
        independent draws then, so that no bias and no margin of a distance or recall is known.
    """

    statistics: Statistics | None = None
    kept: Sequence[np.ndarray] | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    prompts: np.ndarray | None = None
    paired: bool = False


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
            if samples.paired:
                return [row]
            row |= _margin(frechet_margin(samples.kept, samples.statistics, statistics))
        except ValueError as error:
            raise EvaluationError(f"{self.features} against {reference.name}: {error}") from error
        num, count = samples.statistics.count, statistics.count
        row["bias"] = _bias(statistics, num)
        if row["bias"] > DOUBTFUL * row["value"]:
            images = "" if count is None else f" and {count} images of {reference.name}"
            warnings.warn(
                f"{num} samples{images} are few for {len(statistics.mean)} features "
                f"({self.features}): even perfect samples would measure about {row['bias']:.3g} "
                f"against {reference.name}",
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


@functools.lru_cache(maxsize=64)  # the same for every model of a run
def _bias(reference: Statistics, num: int) -> float:
    find = frechet_bias if reference.count is None else frechet_bias_of_few
    return find(reference, num)


def _with_error(samples: Collected, value: float, error: float) -> list[dict[str, Any]]:
    """The row of a mean with its standard error, which paired samples have none of."""
    if samples.paired:
        return [{"value": value}]
    return [{"value": value, "standard_error": error, "margin": NORMAL * error}]


class KernelDistance(Metric):
    """Kernel distance to each reference."""

    def names(self, num: int) -> tuple[str, ...]:
        return ("kid" if self.features == INCEPTION else f"kid_{self.features}",)

    def measure(self, samples, reference, extractor):
        found = kernel_distance(samples.features, reference.features(extractor))
        return _with_error(samples, *found)


class Cmmd(Metric):
    """CMMD to each reference."""

    def names(self, num: int) -> tuple[str, ...]:
        return ("cmmd",)

    def measure(self, samples, reference, extractor):
        own = _kernel_sum(reference, extractor)
        return _with_error(samples, *cmmd(samples.features, reference.features(extractor), own))


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

    Means are of all classes, also where the reference has been restricted to some. It can be no
    better than the space: rows have "accuracy_of_data", that of the reference's own images, each
    left out of its class's mean; None where no class has two.
    """

    def names(self, num: int) -> tuple[str, ...]:
        return (f"label_accuracy_{self.features}",)

    def measure(self, samples, reference, extractor):
        _check_labels(samples, *self.names(0))
        classes, means, of_data = _class_means(reference, extractor)
        found = classes[nearest_mean(samples.features, means)] == samples.labels
        return [_share(found) | {"accuracy_of_data": of_data}]


@functools.lru_cache(maxsize=8)
def _class_means(
    reference: Reference, extractor: Extractor
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """The classes [K] of a reference, their mean features [K, D], and its own accuracy by them."""
    features, labels = reference.whole.features(extractor), np.asarray(reference.whole.labels)
    classes, means = class_means(features, labels)
    told = np.isin(labels, [c for c in reference.classes or classes if np.sum(labels == c) > 1])
    found = found_without_itself(features, labels, classes, means)[told]
    return classes, means, float(found.mean()) if found.size else None


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
        margin = None if samples.paired else recall_margin(manifold, real)
        return [_share(precise), {"value": recall} | _margin(margin)]


@functools.lru_cache(maxsize=8)
def _manifold(reference: Reference, extractor: Extractor) -> Manifold:
    return Manifold(reference.features(extractor))


@dataclasses.dataclass(frozen=True)
class NearestNeighbourRatio(Metric):
    """Nearest-neighbour ratio to the training images.

    Attributes:
      held_out: images like these, that no model was trained on.
      mirrored: models were trained on the mirrors of training images too.
    """

    held_out: Reference | None = None
    mirrored: bool = False
    compares = "training"

    def names(self, num: int) -> tuple[str, ...]:
        return (NEIGHBOURS,)

    def measure(self, samples, reference, extractor):
        ratio = _neighbour_ratio(reference, self.held_out, self.mirrored, extractor)
        mirrored = {"mirrored": True} if self.mirrored else {}
        return [{"value": ratio(samples.features), "held_out": self.held_out.name} | mirrored]


@functools.lru_cache(maxsize=8)
def _neighbour_ratio(train, held_out, mirrored: bool, extractor: Extractor) -> NeighbourRatio:
    shape = train.images.shape[1:] if mirrored else None
    return NeighbourRatio(train.features(extractor), held_out.features(extractor), shape)


def parse_metrics(
    names: Sequence[str],
    features: str = "",
    held_out: Reference | None = None,
    mirrored: bool = False,
) -> list[Metric]:
    """Makes metrics from their names, as in this module's docstring.

    Args:
      features: feature space of precision_recall; by default the space of the first metric with one
        in its name, and Inception's if none has.
      held_out, mirrored: as of `NearestNeighbourRatio`.

    Raises:
      ValueError: a metric or feature space is unknown.
    """
    features = features or feature_space(names)
    if features not in EXTRACTORS:
        raise ValueError(f"features must be one of {', '.join(EXTRACTORS)}; got {features!r}")
    ratio = NearestNeighbourRatio("pixels", held_out, mirrored)
    return [_parse(name, features, ratio) for name in names]


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


def _parse(name: str, features: str, ratio: NearestNeighbourRatio) -> Metric:
    known = {
        "fid": lambda: FrechetDistance(INCEPTION),
        "kid": lambda: KernelDistance(INCEPTION),
        "cmmd": lambda: Cmmd(CLIP),
        "is": lambda: InceptionScore(INCEPTION),
        "clip_score": lambda: ClipScore(CLIP),
        "label_accuracy": lambda: LabelAccuracy("classifier"),
        "class_shares": lambda: ClassShares("classifier"),
        "precision_recall": lambda: PrecisionRecall(features),
        NEIGHBOURS: lambda: ratio,
    }
    for space in EXTRACTORS:
        if space != INCEPTION:  # its distances have names of their own
            known[f"fd_{space}"] = functools.partial(FrechetDistance, space)
            known[f"kid_{space}"] = functools.partial(KernelDistance, space)
        known[f"label_accuracy_{space}"] = functools.partial(NearestMean, space)
    if name not in known:
        raise ValueError(f"metric must be one of {', '.join(known)}; got {name!r}")
    return known[name]()
