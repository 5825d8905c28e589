"""Kernel distance between feature distributions, called KID for Inception's features."""

import numpy as np


def kernel_distance(
    samples: np.ndarray,
    reference: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018): (mean, std error).

    The mean is over pairs of random subsets, drawn as torch-fidelity draws them. The standard error
    is that of this mean for the given rows, std / sqrt(subsets): it leaves out that other rows
    would give another value, and is zero when each subset is all rows.

    Args:
      samples: features [N, D].
      reference: features [M, D].
      subsets: number of subsets, at least two.
      subset_size: rows in a subset of either; min(N, M) if that is smaller.
      seed: seed of the subsets.

    Raises:
      ValueError: there are fewer than two subsets, or two rows in them.
    """
    size = min(subset_size, len(samples), len(reference))
    if size < 2 or subsets < 2:
        raise ValueError(
            f"a kernel distance needs at least two subsets of two rows; got {subsets} of {size}"
        )
    rng = np.random.RandomState(seed)

    def draw(features: np.ndarray) -> np.ndarray:
        rows = rng.choice(len(features), size, replace=False)
        return np.asarray(features[rows], np.float64)

    values = [_discrepancy(draw(samples), draw(reference)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(subsets))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of rows [n, D] and [n, D], negative about half the time when they agree."""
    n = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    others = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)  # no row with itself
    return others / (n * (n - 1)) - 2 * xy.mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel (x.y / D + 1)^3 of each row of x with each row of y."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # ten times as fast as ** 3
