"""Classes by the nearest of their mean features (Mensink et al. 2013)."""

import numpy as np


def class_means(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the classes [K] of labels [N], in order, and their mean features [K, D], float64."""
    classes = np.unique(labels)
    means = [features[labels == c].mean(axis=0, dtype=np.float64) for c in classes]
    return classes, np.stack(means)


def nearest_mean(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Finds the numbers [N] of the means [K, D] that are nearest to features [N, D]."""
    return _squares(features, means).argmin(axis=1)


def found_without_itself(
    features: np.ndarray, labels: np.ndarray, classes: np.ndarray, means: np.ndarray
) -> np.ndarray:
    """Tells which rows [N] are nearest to their class's mean, each left out of it: bool [N].

    Otherwise every row draws this mean nearer, and of few rows with many features all would be
    found, whatever their labels. A mean of n rows without one of them is n / (n - 1) times as far
    from it; one that is alone in its class is not found.

    Args:
      features: rows [N, D]. labels: their classes [N]. classes, means: as of `class_means`.
    """
    own = np.searchsorted(classes, labels)
    counts = np.bincount(own)[own]
    farther = np.divide(counts, counts - 1, out=np.full(len(own), np.inf), where=counts > 1)
    squares = np.einsum("nd,nd->n", features, features, dtype=np.float64)[:, None]
    squares = np.maximum(squares + _squares(features, means), 1e-12 * squares)  # up to rounding
    squares[np.arange(len(own)), own] *= farther**2
    return squares.argmin(axis=1) == own


def _squares(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances [N, K] of features [N, D] to means [K, D], less the features' squares."""
    return np.sum(means**2, axis=1) - 2 * features @ means.T
