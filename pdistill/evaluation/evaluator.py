"""Turns batches of samples into the numbers of results.jsonl, in one pass."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pdistill.evaluation.clip import PromptEmbedder
from pdistill.evaluation.collector import Collector
from pdistill.evaluation.frechet import Statistics
from pdistill.evaluation.images import (
    DuplicateCounter,
    EvaluationError,
    EvaluationWarning,
    labels_follow,
)
from pdistill.evaluation.metrics import (
    NEIGHBOURS,
    ClipScore,
    Metric,
    NearestMean,
    parse_metrics,
)
from pdistill.evaluation.neighbours import nearest_images
from pdistill.evaluation.references import Reference, StatisticsReference
from pdistill.evaluation.spectra import radial_spectrum
from pdistill.features import Extractor, load_extractor
from pdistill.features.pixels import Pixels
from pdistill.features.vision import CLIP, load_text_tower
from pdistill.runtime.bars import Bar
from pdistill.runtime.terminal import format_count

NEIGHBOUR_PICTURES = 12  # samples shown with their neighbours
NEIGHBOURS_SHOWN = 3
MOST_PIXELS = 2**14  # whose covariance has 2 GB


class Evaluator:
    """Measures sets of samples against fixed references, whose statistics are computed once.

    Attributes:
      takes_prompts: whether a metric compares samples with their prompts.

    Args:
      references: images or statistics to compare samples with.
      metrics: names, as in `evaluation.metrics`.
      num_samples: number of samples, the first ones, that each reference is compared with; 0 for as
        many as it has images.
      features: feature space of precision_recall.
      held_out: images for the nearest-neighbour ratio.
      options: keyword arguments of extractors' loaders, such as {"inception": {"weights": PATH}}.
      training: the training images, for that ratio and the pictures; None for the first reference.
      mirrored: models were trained on the mirrors of these, too.
      extractors: by name, for several evaluators to share: this one takes what is there, and adds
        what it loads.

    Raises:
      ValueError: a metric or feature space is unknown. WeightsError: weights are out of reach.
      EvaluationError: these references do not allow one of the metrics.
    """

    def __init__(
        self,
        references: Sequence[Reference | StatisticsReference],
        metrics: Sequence[str],
        *,
        num_samples: int = 0,
        features: str = "",
        held_out: Reference | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        training: Reference | None = None,
        mirrored: bool = False,
        extractors: dict[str, Extractor] | None = None,
    ) -> None:
        if NEIGHBOURS in metrics and held_out is None:
            raise EvaluationError(
                f"{NEIGHBOURS} needs held-out images besides training images; give some"
            )
        self.references = references
        self._training = next(iter(references), None) if training is None else training
        self._mirrored = mirrored
        self.metrics = parse_metrics(metrics, features, held_out, mirrored)
        for metric in self.metrics:
            if not references and metric.compares != "none":
                raise EvaluationError(
                    f"{metric.names(num_samples)[0]} compares with a reference; give one"
                )
        self._num_samples = num_samples
        shared, self._extractors = {} if extractors is None else extractors, {}
        for name in dict.fromkeys(metric.features for metric in self.metrics):
            if name not in shared:
                shared[name] = load_extractor(name, **(options or {}).get(name, {}))
            self._extractors[name] = shared[name]
        self.takes_prompts = any(isinstance(metric, ClipScore) for metric in self.metrics)
        if self.takes_prompts:
            self._embed = PromptEmbedder(load_text_tower(**(options or {}).get(CLIP, {})))
        for reference in references:
            if reference.images is not None:
                self._check_shape(reference.images.shape[1:], reference.name)
                continue
            for metric in self.metrics:
                if metric.compares == "none":
                    continue
                if metric.needs != "statistics":
                    raise EvaluationError(
                        f"{reference.name} holds only mu and sigma, which {metric.names(0)[0]} "
                        "cannot use: it needs images"
                    )
                reference.check(metric.features)
        self._check_numbers()
        self._check_classes()
        if NEIGHBOURS in metrics:
            self._check_held_out(held_out)

    @property
    def num_samples(self) -> int:
        """Number of samples to draw, the largest that a reference is compared with."""
        counts = [self._limit(reference) for reference in self.references]
        return max(counts, default=self._num_samples)

    def expected(self, most: float = math.inf) -> set[tuple[str, str | None]]:
        """Names the rows, as (metric, reference), that measuring at most `most` samples gives."""
        return {
            (name, reference and reference.name)
            for metric, reference in self._comparisons()
            for name in metric.names(min(self._limit(reference), most))
        }

    def measure(
        self,
        batches: Iterable[np.ndarray],
        labels: np.ndarray | None = None,
        prompts: Sequence[str] | None = None,
        paired: bool = False,
    ) -> list[dict[str, Any]]:
        """Measures samples, uint8 [B, H, W, C] a batch.

        Args:
          labels, prompts: [N] each, that the samples were made for, if they were.
          paired: the samples were made for the training images, each in its turn, as those of
            captions are. Rows of a comparison with these have no "bias" and, but for shares of
            samples, no "margin".

        Returns:
          A row for each metric and reference: {"metric", "value", "reference", "num_samples",
          "features", "preprocessing", "labels"} and the metric's own keys, such as its "margin",
          half the width of its interval of 95%, see `jackknife`. "labels" is "data" for labels
          distributed as the reference's, "other", or None, also without any reference to tell by.
          "duplicates" counts samples that are copies of earlier ones, where there are any.

        Raises:
          EvaluationError: the images cannot be measured, or not against these references.
        """
        embedded = self._embedded(prompts)
        spaces = {name: self._collector(name) for name in self._extractors}
        duplicates, num = DuplicateCounter(), 0
        for images in batches:
            if not num:
                self._check_shape(images.shape[1:], "the sample set")
            duplicates.add(images)
            num += len(images)
            for name, collector in spaces.items():
                collector.add(self._extractors[name](images))
        _warn_of_copies(duplicates.count, num)
        rows = []
        for metric, reference in self._comparisons():
            limit = self._limit(reference)
            extractor = self._extractors[metric.features]
            made_for_these = paired and reference is self._training
            samples = spaces[metric.features].first(limit, labels, embedded, made_for_these)
            limit = min(limit or num, num)
            with Bar(f"computes {' and '.join(metric.names(limit))}"):
                parts = metric.measure(samples, reference, extractor)
            rows += [
                {
                    "metric": name,
                    **part,
                    "num_samples": limit,
                    "reference": reference and reference.name,
                    "features": extractor.name,
                    "preprocessing": extractor.preprocessing,
                    "labels": self._label_law(labels, reference),
                    **({"duplicates": duplicates.count} if duplicates.count else {}),
                }
                for name, part in zip(metric.names(limit), parts, strict=True)
            ]
        return rows

    def statistics(self, reference: Reference | StatisticsReference, features: str) -> Statistics:
        """Computes or loads a reference's statistics in one of the metrics' feature spaces."""
        return reference.statistics(self._extractors[features])

    def pictures(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """Makes pictures and curves to look at beside the numbers, of uint8 samples [N, H, W, C].

        Returns:
          "neighbours": uint8 [n, 1 + k, H, W, C], the first samples and the training images nearest
          to each, in the space of a metric that compares images one by one, or else of pixels;
          "spectrum" and "data_spectrum": `Spectrum.values` [R] of the samples and of as many of the
          first reference's images.
        """
        if not self.references:
            raise EvaluationError("pictures show neighbours in a reference; give one")
        reference, training = self.references[0], self._training
        one_by_one = (
            self._extractors[metric.features]
            for metric in self.metrics
            if metric.needs == "features"
        )
        extractor = next(one_by_one, None) or load_extractor("pixels")
        shown = samples[:NEIGHBOUR_PICTURES]
        neighbours = nearest_images(
            shown,
            training.images,
            lambda images: extractor(images)["features"],
            training.blocks(extractor),
            NEIGHBOURS_SHOWN,
            mirrored=self._mirrored,
        )
        evenly = np.linspace(0, len(reference) - 1, min(len(samples), len(reference))).astype(int)
        return {
            "neighbours": np.concatenate([shown[:, None], neighbours], axis=1),
            "spectrum": radial_spectrum(samples),
            "data_spectrum": radial_spectrum(reference.images[evenly]),
        }

    def _embedded(self, prompts: Sequence[str] | None) -> np.ndarray | None:
        """Embeds prompts [N] for metrics that take them: unit vectors [N, D]; else None."""
        if not self.takes_prompts:
            return None
        if prompts is None:
            raise EvaluationError(
                "clip_score needs samples of a model that takes prompts, or images with a file of "
                "--prompts; leave this metric out"
            )
        return self._embed(prompts)

    def _label_law(self, labels: np.ndarray | None, reference: Reference | None) -> str | None:
        """Says how the labels are distributed: "data", as the reference's, "other", or None.

        For a metric without a reference it is the first one that counts; without labels, None.
        """
        reference = reference or next(iter(self.references), None)
        if labels is None or reference is None or reference.labels is None:
            return None
        if labels_follow(labels, reference.labels):
            return "data"
        warnings.warn(
            f"the samples' labels are not distributed as those of {reference.name}",
            EvaluationWarning,
            stacklevel=3,
        )
        return "other"

    def _comparisons(self) -> Iterator[tuple[Metric, Reference | StatisticsReference | None]]:
        """Yields each metric with each reference that it compares with, or with None."""
        for metric in self.metrics:
            match metric.compares:
                case "none":
                    yield metric, None
                case "training":
                    yield metric, self._training
                case "all":
                    yield from ((metric, reference) for reference in self.references)

    def _limit(self, reference: Reference | StatisticsReference | None) -> int:
        return self._num_samples or (0 if reference is None else len(reference))

    def _check_shape(self, shape: tuple[int, ...], name: str) -> None:
        """Raises EvaluationError for images that an extractor or a reference cannot go with."""
        height, width, channels = shape
        for extractor in self._extractors.values():
            if isinstance(extractor, Pixels):
                self._check_pixels(extractor, shape)
            if extractor.channels and channels not in extractor.channels:
                raise EvaluationError(
                    f"{extractor.name} takes images of {extractor.channels} channels; {name} "
                    f"has {channels}"
                )
            if extractor.size and (height, width) != (extractor.size, extractor.size):
                raise EvaluationError(
                    f"{extractor.name} takes images of {extractor.size} x {extractor.size}; "
                    f"{name} has {height} x {width}"
                )
        for reference in self.references:
            for metric in self.metrics:
                given = reference.images is None or metric.features in reference.published
                if metric.needs == "statistics" and given:
                    width = self._extractors[metric.features].width(shape)
                    reference.check(metric.features, width)
            if reference.images is None or reference.images.shape[1:] == shape:
                continue
            message = f"{name} has the shape {shape}, {reference.name} {reference.images.shape[1:]}"
            if channels != reference.images.shape[3]:
                raise EvaluationError(f"{message}: the channels differ")
            if any(isinstance(e, Pixels) and not e.side for e in self._extractors.values()):
                raise EvaluationError(f"{message}: pixels are compared of images of one size only")
            warnings.warn(f"{message}: each is resized by itself", EvaluationWarning, stacklevel=3)

    def _check_numbers(self) -> None:
        """Raises EvaluationError for fewer samples or images than a metric needs."""
        for metric, reference in self._comparisons():
            name = metric.names(0)[0]
            if reference and reference.images is not None and len(reference) < metric.least:
                raise EvaluationError(
                    f"{reference.name} has {format_count(len(reference), 'image')}, with which "
                    f"{name} cannot compare: give at least {metric.least}, or leave that metric out"
                )
            if 0 < (num := self._limit(reference)) < metric.least:
                raise EvaluationError(
                    f"{name} needs at least {metric.least} samples; got {num}: give more, or leave "
                    "that metric out"
                )

    def _check_classes(self) -> None:
        """Raises EvaluationError for references without classes, or of classes of few images."""
        for metric, reference in self._comparisons():
            if isinstance(metric, NearestMean) and reference.labels is None:
                raise EvaluationError(
                    f"{metric.names(0)[0]} needs a reference with labels, such as cifar10:train; "
                    f"{reference.name} has none"
                )
            if isinstance(metric, NearestMean) and len(np.unique(reference.whole.labels)) < 2:
                raise EvaluationError(
                    f"{metric.names(0)[0]} needs a reference of at least two classes; all images "
                    f"of {reference.whole.name} are of one"
                )
            if metric.needs != "statistics" or reference is None or not reference.classes:
                continue
            size = self._extractors[metric.features].width(reference.images.shape[1:])
            if len(reference) <= size:
                raise EvaluationError(
                    f"{reference.name} has {len(reference)} images, too few for the covariance of "
                    f"{size} features ({metric.features}): give more classes, or a metric that "
                    f"takes fewer, such as kid_{metric.features} or precision_recall"
                )

    def _check_held_out(self, held_out: Reference | StatisticsReference) -> None:
        """Raises EvaluationError for what cannot be held-out images."""
        if held_out.images is None:
            raise EvaluationError(
                f"{held_out.name} holds only mu and sigma, and {NEIGHBOURS} needs held-out images"
            )
        if held_out.same_images(self._training):
            raise EvaluationError(
                f"{NEIGHBOURS}: the held-out images, {held_out.name}, are the training images "
                "themselves; give others"
            )
        shapes = held_out.images.shape[1:], self._training.images.shape[1:]
        if shapes[0] != shapes[1]:
            raise EvaluationError(
                f"{NEIGHBOURS}: {held_out.name} has images of {shapes[0]}, {self._training.name} "
                f"of {shapes[1]}; give held-out images of one size with the others"
            )
        if 2 * (copies := held_out.copies_in(self._training)) > len(held_out):
            raise EvaluationError(
                f"{NEIGHBOURS}: {copies:,} of the {len(held_out):,} held-out images are among "
                f"{self._training.name} too; give others"
            )

    def _check_pixels(self, extractor: Pixels, shape: tuple[int, ...]) -> None:
        """Raises EvaluationError for images that do not fit, or have too many for a covariance."""
        try:
            extractor.check(shape)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        found = [m for m in self.metrics if m.features == extractor.name]
        size = math.prod(shape)
        if (
            not extractor.side
            and size > MOST_PIXELS
            and any(m.needs == "statistics" for m in found)
        ):
            raise EvaluationError(
                f"fd_pixels of images of {shape} would need a covariance of {8e-9 * size**2:.0f} "
                "GB; take fd_pixels_16, of images averaged to 16 x 16, or other features"
            )

    def _collector(self, space: str) -> Collector:
        found = [(m, r) for m, r in self._comparisons() if m.features == space]
        limits = {self._limit(r) for m, r in found if m.needs == "statistics"}
        return Collector({metric.needs for metric, _ in found}, limits)


def _warn_of_copies(count: int, num: int) -> None:
    """Warns where `count` of `num` samples, more than few, are copies of others."""
    if count > 0.01 * num:
        warnings.warn(
            f"{count} of {num} samples are exact copies of others: check whether noise is used "
            "twice, or the model has collapsed",
            EvaluationWarning,
            stacklevel=3,
        )
