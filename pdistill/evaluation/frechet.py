"""Frechet distance between feature distributions, in float64, from streamed moments."""

import dataclasses
import functools

import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [D] and unbiased covariance [D, D] of features, float64.

    Attributes:
      mean: means of the features. covariance: their unbiased covariance.
      count: number of rows that they were computed from, or None if it is unknown.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """Factor L [D, rank] with L L^T = covariance, by pivoted Cholesky up to rounding.

        It costs less, the fewer rows there were than features.
        """
        lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(self.covariance, lower=1)
        factor = np.zeros((len(self.mean), rank))
        factor[pivots - 1] = np.tril(lower)[:, :rank]
        return factor


@dataclasses.dataclass
class Moments:
    """Running sums over rows of features; memory does not grow with their number.

    Sums are taken around the first batch's mean, which keeps them accurate when the mean is
    large. Batches may have any size.
    """

    count: int = 0
    _origin: np.ndarray | None = None
    _sum: np.ndarray | float = 0.0
    _products: np.ndarray | float = 0.0

    def add(self, features: np.ndarray) -> "Moments":
        """Adds features [B, D] to the sums; returns self.

        Raises:
          ValueError: they have another shape, or are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2:
            raise ValueError(f"features must be [B, D]; got shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features are not finite")
        if not len(features):
            return self
        if self._origin is None:
            self._origin = features.mean(0)
        centred = features - self._origin
        self.count += len(features)
        self._sum = self._sum + centred.sum(0)
        self._products = self._products + centred.T @ centred
        return self

    def statistics(self) -> Statistics:
        """Computes mean and covariance of the rows so far.

        Raises:
          ValueError: there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows; got {self.count}")
        offset = self._sum / self.count
        products = self._products - self.count * np.outer(offset, offset)
        return Statistics(self._origin + offset, products / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Frechet distance |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017).

    A and B are the covariances. The trace of the root is the sum of the singular values of L_a^T
    L_b, with A = L_a L_a^T; this stays exact when the covariances are singular.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature sizes differ: {a.mean.shape[0]} and {b.mean.shape[0]}")
    root = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2 * root)


def frechet_bias(reference: Statistics, num: int, seed: int = 0) -> float:
    """Distance that `num` perfect samples would have, drawn from the reference's own Gaussian.

    Too few samples alone add this much to a Frechet distance (Chong & Forsyth 2020). Their
    covariance is drawn once; its spread is small beside the bias for more than a few features.
    """
    root = _wishart_root(np.random.RandomState(seed), num - 1, reference.factor)
    found = np.linalg.svd(root @ reference.factor, compute_uv=False).sum()  # tr (A B)^(1/2)
    trace = np.trace(reference.covariance)
    return float(trace / num + np.sum(root**2) + trace - 2 * found)


def frechet_bias_of_few(reference: Statistics, num: int, seed: int = 0) -> float:
    """Distance that `num` perfect samples would have from a reference of few rows.

    The reference's covariance is not the truth: it lacks directions, or its variances are spread
    too far. Both sets are drawn from a Gaussian with a better guess of it, OAS's (Chen et al. 2010,
    eq. 23). It costs about as much as a distance, for any numbers of rows.

    Args:
      reference: statistics that know their count.
    """
    random, size = np.random.RandomState(seed), len(reference.mean)
    trace, squares = np.trace(reference.covariance), np.sum(reference.covariance**2)
    above = (1 - 2 / size) * squares + trace**2
    below = (reference.count - 2 / size) * (squares - trace**2 / size)
    share = min(above / below, 1.0) if below > 0 else 1.0  # of white noise
    guess = (1 - share) * reference.covariance + share * trace / size * np.eye(size)
    factor = Statistics(reference.mean, guess).factor
    ours, theirs = (_wishart_root(random, n - 1, factor) for n in (reference.count, num))
    root = np.linalg.svd(ours @ theirs.T, compute_uv=False).sum()
    means = np.trace(guess) * (1 / reference.count + 1 / num)  # their expected distance
    return float(means + np.sum(ours**2) + np.sum(theirs**2) - 2 * root)


def _wishart_root(random: np.random.RandomState, degrees: int, factor: np.ndarray) -> np.ndarray:
    """Draws R [r, D] so that R^T R is the covariance of `degrees` + 1 rows of a Gaussian.

    Args:
      factor: L [D, rank], with L L^T the Gaussian's covariance.
    """
    rank = factor.shape[1]
    if degrees < rank:
        normal = random.standard_normal((degrees, rank))
    else:  # the triangle that has the products of so many rows (Bartlett 1933)
        normal = np.triu(random.standard_normal((rank, rank)), 1)
        normal += np.diag(np.sqrt(random.chisquare(degrees - np.arange(rank))))
    return normal @ factor.T / np.sqrt(degrees)
