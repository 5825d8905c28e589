"""Features of samples, gathered batch by batch for the metrics of one space."""

import numpy as np

from pdistill.evaluation.frechet import Moments
from pdistill.evaluation.jackknife import Kept
from pdistill.evaluation.metrics import Collected


class Collector:
    """Gathers one space's `Collected` from batches, moments up to each limit and whole arrays.

    Args:
      needs: fields of `Collected` that metrics read.
      limits: numbers of samples, the first ones, that moments are of; 0 for all.
    """

    def __init__(self, needs: set[str], limits: set[int]):
        self._num = 0
        self._moments = {limit: (Moments(), Kept(limit)) for limit in limits}
        self._arrays = {name: [] for name in ("features", "logits") if name in needs}

    def add(self, extracted: dict[str, np.ndarray]) -> None:
        """Adds what an extractor made of a batch."""
        features = extracted["features"]
        for limit, (moments, kept) in self._moments.items():
            first = features[: max(limit - self._num, 0)] if limit else features
            moments.add(first)
            kept.add(first)
        for name, parts in self._arrays.items():
            parts.append(extracted[name])
        self._num += len(features)

    def first(
        self,
        limit: int,
        labels: np.ndarray | None,
        prompts: np.ndarray | None,
        paired: bool,
    ) -> Collected:
        """Returns the first `limit` samples, or all if it is 0, and what they were made for."""
        arrays = {
            name: np.concatenate(parts)[: limit or None] for name, parts in self._arrays.items()
        }
        labels, prompts = (a if a is None else a[: limit or None] for a in (labels, prompts))
        arrays |= {"labels": labels, "prompts": prompts, "paired": paired}
        if limit not in self._moments:
            return Collected(**arrays)
        moments, kept = self._moments[limit]
        return Collected(moments.statistics(), kept.parts, **arrays)
