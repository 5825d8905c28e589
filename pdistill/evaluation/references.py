"""References to compare samples with: data sets, images from files, or published statistics."""

import functools
import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdistill.data import Dataset, load_dataset
from pdistill.data.images import pixel_digest
from pdistill.evaluation.frechet import Moments, Statistics
from pdistill.evaluation.images import (
    EvaluationError,
    check_images,
    images_among,
    labels_among,
    load_images,
    read_npz,
)
from pdistill.features import Extractor
from pdistill.features.inception import INCEPTION
from pdistill.runtime.bars import Bar
from pdistill.runtime.files import cache_dir, in_home, write_arrays
from pdistill.runtime.processes import in_all
from pdistill.runtime.terminal import say

BLOCK = 1024  # images whose features are computed at a time
IN_MEMORY = 2 * 10**9  # bytes of a data set's images; of a larger one they stay on disk


class Reference:
    """Images to compare with, and their features in any space.

    Attributes:
      name: the name in results.jsonl.
      images: uint8 [N, H, W, C].
      labels: int [N], or None. captions: texts of each image, the main one first, or None.
      classes: the labels that it was restricted to, see `of_classes`; () for all.
      whole: the reference that was restricted, itself where none was.
      cached: statistics are kept on disk.
      published: names of the feature spaces whose statistics were given.

    Args:
      statistics: published ones, by feature space, which are not computed of these images.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        captions: Sequence[Sequence[str]] | None = None,
        cached: bool = True,
        classes: tuple[int, ...] = (),
        statistics: Mapping[str, Statistics] | None = None,
    ):
        self.name = name
        self.classes = classes
        self.images = images
        self.labels = labels
        self.captions = captions
        self.whole = self
        self._cached = cached
        self._features: dict[str, np.ndarray] = {}
        self._statistics = dict(statistics or {})
        self.published = frozenset(self._statistics)

    @classmethod
    def of_dataset(cls, data: Dataset) -> "Reference":
        """The images of a data set, with its captions, and its labels if it has any."""
        labels = data.labels if data.labelled else None
        return cls(data.name, data.images, labels, captions=data.captions)

    def __len__(self) -> int:
        return len(self.images)

    def same_images(self, other: "Reference") -> bool:
        """Whether another reference has these images in this order, whatever it is called."""
        if self.name == other.name or self.images is other.images:
            return True
        return self.images.shape == other.images.shape and self._digest == other._digest

    def copies_in(self, other: "Reference") -> int:
        """Counts the images that another reference has to the bit too."""
        theirs = set(other._hashes())
        return sum(code in theirs for code in self._hashes())

    def _hashes(self) -> Iterator[int]:
        for start in range(0, len(self), BLOCK):
            yield from (hash(image.tobytes()) for image in self.images[start : start + BLOCK])

    def of_classes(self, classes: Sequence[int], text: str) -> "Reference":
        """The images of some labels, read into memory; its name has `text` for them.

        Raises:
          EvaluationError: there are no labels, or none of one of these.
        """
        if self.labels is None:
            raise EvaluationError(
                f"classes of {self.name}: it has no labels; give a data set that has some, such as "
                "cifar10:train, or an .npz of images with their label [N]"
            )
        labels = np.asarray(self.labels)
        missing = sorted(set(classes) - set(labels.tolist()))
        if missing:
            raise EvaluationError(
                f"{self.name} has no images of class {missing[0]}; its labels are "
                f"{labels.min()} to {labels.max()}"
            )
        rows = np.flatnonzero(np.isin(labels, classes))
        found = Reference(
            f"{self.name} of classes {text}",
            self.images[rows],
            labels[rows],
            captions=self.captions and [self.captions[row] for row in rows],
            cached=self._cached,
            classes=tuple(classes),
        )
        found.whole = self
        return found

    def features(self, extractor: Extractor) -> np.ndarray:
        """Computes the features [N, D], and keeps them in memory."""
        if extractor.name not in self._features:
            self._features[extractor.name] = np.concatenate(list(self.blocks(extractor)))
        return self._features[extractor.name]

    def statistics(self, extractor: Extractor) -> Statistics:
        """Computes mean and covariance, and keeps them in memory and on disk.

        On disk, the key is of images, extractor and pdistill's version.
        """
        if extractor.name not in self._statistics:
            find = self._cached_statistics if self._cached else self._compute_statistics
            self._statistics[extractor.name] = find(extractor)
        return self._statistics[extractor.name]

    def check(self, features: str, width: int) -> None:
        """Raises EvaluationError if published statistics have another width than these features."""
        if features in self.published:
            _check_width(self.name, self._statistics[features], features, width)

    def _cached_statistics(self, extractor: Extractor) -> Statistics:
        path = cache_dir() / "statistics" / self._cache_name(extractor)
        try:
            statistics = load_statistics(path)
        except EvaluationError:  # not there, or damaged
            statistics = None
        # Features are computed by all processes together, so by none or by all.
        if not in_all(statistics is not None):
            statistics = self._compute_statistics(extractor)
            try:
                save_statistics(path, statistics, reference=self.name, features=extractor.name)
            except OSError as error:
                say(
                    f"warning: statistics of {self.name} are not kept for the next time: {error}; "
                    "PDISTILL_CACHE_DIR can name a folder that can be written"
                )
        return statistics

    def _compute_statistics(self, extractor: Extractor) -> Statistics:
        moments = Moments()
        for features in self.blocks(extractor):
            moments.add(features)
        return moments.statistics()

    def blocks(self, extractor: Extractor) -> Iterator[np.ndarray]:
        """Yields the features in blocks [B, D], from memory if they are there."""
        if extractor.name in self._features:
            yield self._features[extractor.name]
            return
        with Bar(f"{extractor.name} of {self.name}", len(self)) as bar:
            for start in range(0, len(self), BLOCK):
                block = self.images[start : start + BLOCK]
                yield extractor(block)["features"]
                bar.update(len(block))

    def _cache_name(self, extractor: Extractor) -> str:
        key = {
            "reference": self.name,
            "images": self._digest,
            "features": extractor.name,
            "weights": extractor.fingerprint,
            "preprocessing": extractor.preprocessing,
            "version": importlib.metadata.version("pdistill"),
        }
        code = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub("[^A-Za-z0-9]+", "_", Path(self.name).name)[:50]
        return f"{name}-{extractor.name}-{code}.npz"

    @functools.cached_property
    def _digest(self) -> str:
        return pixel_digest(self.images)


class StatisticsReference:
    """A reference with mean and covariance only, in one feature space.

    Args:
      features: the space's name; "" where the file does not say.
    """

    images = None
    labels = None
    classes = ()

    def __init__(self, name: str, statistics: Statistics, features: str = ""):
        self.name = name
        self._statistics = statistics
        self._space = features

    def __len__(self) -> int:
        return self._statistics.count or 0

    def __bool__(self) -> bool:
        return True  # also of an unknown number of images

    def features(self, extractor: Extractor) -> np.ndarray:
        raise EvaluationError(
            f"{self.name} holds only mu and sigma: it can be compared by Frechet distances only; "
            "give images for other metrics"
        )

    def statistics(self, extractor: Extractor) -> Statistics:
        self.check(extractor.name)
        return self._statistics

    def check(self, features: str, width: int | None = None) -> None:
        """Raises EvaluationError if mu and sigma are of another feature space, or of other width.

        Args:
          width: number of the samples' features.
        """
        if width is not None:
            _check_width(self.name, self._statistics, features, width)
        if self._space not in ("", features):
            raise EvaluationError(
                f"{self.name} holds mu and sigma of {self._space}, not of {features}: give a "
                f"metric of {self._space}, or statistics of {features}"
            )

    def of_classes(self, classes: Sequence[int], text: str) -> Reference:
        raise EvaluationError(
            f"{self.name} holds only mu and sigma, not those of classes {text}; give images with "
            "labels, such as cifar10:train"
        )


def _check_width(name: str, statistics: Statistics, features: str, width: int) -> None:
    if width != (own := len(statistics.mean)):
        raise EvaluationError(
            f"{name} holds mu of {own} features, and {features} of these images has {width}: give "
            f"statistics of {features}, of images of the samples' size"
        )


def load_reference(
    text: str, *, channels: int | None = None, background: str = "white"
) -> Reference | StatisticsReference:
    """Loads a reference from a name, such as "cifar10:train", or a path of images or statistics.

    Args:
      channels, background: as in `load_images`, for a folder.

    Raises:
      EvaluationError: the file is neither. ValueError, FileNotFoundError: as `load_dataset`.
    """
    path = in_home(text)
    if path.is_dir():
        return Reference(text, load_images(path, channels=channels, background=background))
    if path.suffix == ".npz":
        arrays = read_npz(path)
        published, space = {}, _space(arrays)
        if "mu" in arrays or "sigma" in arrays:
            published = {space or INCEPTION: statistics_among(arrays, path)}
            if [a.dtype for a in arrays.values() if a.ndim == 4] != [np.uint8]:
                return StatisticsReference(text, *published.values(), space)
        images, labels = images_among(arrays, path), labels_among(arrays, path)
        for name in published:
            say(
                f"{text}: the Frechet distance of {name} is to its mu and sigma"
                f"{'' if space else ', which name no features'}; other metrics, and some classes "
                f"alone, are compared with its {len(images):,} images"
            )
        return Reference(text, images, labels, statistics=published)
    name, separator, split = text.partition(":")
    if not separator:
        raise EvaluationError(
            f"a reference is a data set with its split, such as cifar10:train, an .npz file or a "
            f"folder of images; got {text!r}"
        )
    dataset = load_dataset(name, split, in_memory=False)
    if math.prod(dataset.images.shape) <= IN_MEMORY:
        dataset = dataset.in_memory()
    check_images(dataset.images[:BLOCK], dataset.name)
    return Reference.of_dataset(dataset)


def load_statistics(path: str | Path) -> Statistics:
    """Reads `mu` and `sigma` of an .npz, the common format of published reference statistics.

    Raises:
      EvaluationError: the file is missing, unreadable, or holds no mean and covariance.
    """
    path = Path(path)
    return statistics_among(read_npz(path), path)


def statistics_among(arrays: dict[str, np.ndarray], path: Path) -> Statistics:
    """Takes `mu` and `sigma` out of a file's arrays, and checks them."""
    for key in ("mu", "sigma"):
        if key not in arrays:
            raise EvaluationError(f"{path} has no {key!r}; it holds {', '.join(arrays)}")
        if not np.issubdtype(arrays[key].dtype, np.floating):
            raise EvaluationError(
                f"{path}: {key} must be floating point; it is {arrays[key].dtype}"
            )
    mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    count = arrays.get("count")
    if count is not None and (count.shape or count.dtype.kind not in "iu" or count < 2):
        raise EvaluationError(f"{path}: count must be a whole number of at least 2; it is {count}")
    if mean.ndim != 1 or not mean.size or covariance.shape != 2 * mean.shape:
        raise EvaluationError(
            f"{path}: mu must be [D] and sigma [D, D]; got {mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise EvaluationError(f"{path}: mu or sigma is not finite; compute them again")
    if not np.allclose(covariance, covariance.T, atol=1e-6 * np.abs(covariance).max()):
        raise EvaluationError(
            f"{path}: sigma is not symmetric, so it is no covariance; compute it again"
        )
    variances = covariance.diagonal()
    limits = np.sqrt(np.outer(variances, variances).clip(0)) + 1e-6 * np.abs(covariance).max()
    if (variances < 0).any() or (np.abs(covariance) > limits).any():
        raise EvaluationError(
            f"{path}: sigma has a negative variance or a correlation above one, so it is no "
            "covariance; compute it again"
        )
    return Statistics(mean, covariance, None if count is None else int(count))


def _space(arrays: dict[str, np.ndarray]) -> str:
    """The feature space that `save_statistics` was told; "" for files of others."""
    space = arrays.get("features")
    return "" if space is None or space.shape or space.dtype.kind != "U" else str(space)


def save_statistics(path: str | Path, statistics: Statistics, **about: Any) -> None:
    """Writes `mu`, `sigma`, their `count` and the arrays `about` them, whole or not at all."""
    if jax.process_index() > 0:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = {} if statistics.count is None else {"count": statistics.count}
    write_arrays(path, {"mu": statistics.mean, "sigma": statistics.covariance, **count, **about})
