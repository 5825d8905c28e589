"""Frechet distance between feature distributions, in float64, from streamed moments."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Moments:
    """Mean and covariance of rows seen so far; memory does not grow with their number.

    Sums are taken around the first batch's mean, which keeps them accurate when the mean is
    large. Batches may have any size.
    """

    count: int = 0
    _origin: np.ndarray | None = None
    _sum: np.ndarray | float = 0.0
    _products: np.ndarray | float = 0.0
    _factor: np.ndarray | None = None

    def add(self, features: np.ndarray) -> "Moments":
        """Counts features [B, D] in; returns self."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2:
            raise ValueError(f"features must be [B, D]; got shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features are not finite")
        if not len(features):
            return self
        if self._origin is None:
            self._origin = features.mean(0)
        self._factor = None
        centred = features - self._origin
        self.count += len(features)
        self._sum = self._sum + centred.sum(0)
        self._products = self._products + centred.T @ centred
        return self

    @property
    def mean(self) -> np.ndarray:
        """[D]."""
        if not self.count:
            raise ValueError("no rows have been added")
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], unbiased (N - 1)."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows; got {self.count}")
        offset = self._sum / self.count
        return (self._products - self.count * np.outer(offset, offset)) / (self.count - 1)

    @property
    def factor(self) -> np.ndarray:
        """L [D, D] with L L^T = covariance, negative rounding in the eigenvalues set to zero."""
        if self._factor is None:
            values, vectors = np.linalg.eigh(self.covariance)
            self._factor = vectors * np.sqrt(np.maximum(values, 0))
        return self._factor


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A, B (Heusel et al. 2017).

    The trace of the root is the sum of the singular values of L_a^T L_b, with A = L_a L_a^T from
    a symmetric eigendecomposition; this stays exact when the covariances are singular.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature sizes differ: {a.mean.shape[0]} and {b.mean.shape[0]}")
    root = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2 * root)
