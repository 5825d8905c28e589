"""Improved precision and recall (Kynkaanniemi et al. 2019), in blocks and in float64.

In float32 clusters that are tight beside their distance from each other would melt together.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

BLOCK = 1024  # rows; the distances between two blocks are in memory at a time
# Bounds the error of a squared distance, relative to a squared norm; the largest seen was 9e-15,
# for D up to 12,288. So distances below 3e-7 of the norm count as zero.
ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True, eq=False)
class Manifold:
    """A union of balls, one around each row, out to its k-th nearest other row (their eq. 1).

    Attributes:
      features: the rows [N, D], N > k.
      k: number of the neighbour that a ball reaches to, at least 1.
    """

    features: np.ndarray
    k: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.k < len(self.features):
            raise ValueError(
                "precision and recall need k >= 1 and more than k rows; got "
                f"{len(self.features)} and k = {self.k}"
            )

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """Radii of the balls, [N], at least the rounding error of a distance of zero.

        So copies of a row are in its ball even where more than k rows coincide.
        """
        centre, squared = _centre(self.features), []
        for i, block in enumerate(_blocks(self.features, centre)):
            nearest = np.empty((len(block), 0))
            for j, others in enumerate(_blocks(self.features, centre)):
                distances = _squared_distances(block, others)
                if i == j:
                    np.fill_diagonal(distances, np.inf)  # not to itself
                nearest = np.concatenate([nearest, distances], axis=1)
                nearest = np.partition(nearest, min(self.k, nearest.shape[1]) - 1)[:, : self.k]
            squared.append(np.maximum(nearest.max(axis=1), ROUNDING * _squares(block)))
        return np.sqrt(np.concatenate(squared))

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tells which of the points [P, D] are in a ball or on its surface: bool [P]."""
        if points.shape[1:] != self.features.shape[1:]:
            raise ValueError(
                f"points must be [P, {self.features.shape[1]}]; got shape {points.shape}"
            )
        centre, found = _centre(self.features), []
        for block in _blocks(points, centre):
            inside = np.zeros(len(block), bool)
            for i, centres in enumerate(_blocks(self.features, centre)):
                radii = self.radii[BLOCK * i : BLOCK * (i + 1)]
                inside |= (_squared_distances(block, centres) <= radii**2).any(axis=1)
            found.append(inside)
        return np.concatenate(found)


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, *, k: int = 3
) -> tuple[float, float]:
    """Measures (precision, recall) of samples [N, D] against a reference [M, D].

    Precision is the fraction of samples in the reference's manifold, recall the reverse. Precision
    falls when samples are unlike the reference, recall when they miss a part of it. Both depend on
    N and M, so only values of the same N and M compare. Callers who keep a `Manifold` save its
    radii.
    """
    precision = Manifold(reference, k).contains(samples).mean()
    recall = Manifold(samples, k).contains(reference).mean()
    return float(precision), float(recall)


def _centre(features: np.ndarray) -> np.ndarray:
    """Computes the mean, around which |x|^2 - 2 x.y + |y|^2 is accurate."""
    return features.mean(axis=0, dtype=np.float64)


def _blocks(features: np.ndarray, centre: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows minus the centre, float64 [up to BLOCK, D]."""
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK] - centre
        if not np.isfinite(rows).all():
            raise ValueError("features are not finite")
        yield rows


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _squares(x)[:, None] - 2 * x @ y.T + _squares(y)[None]
