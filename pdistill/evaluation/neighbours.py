"""Is the model copying its training set? Distances to the nearest training image."""

import numpy as np


def nearest_distances(features: np.ndarray, reference: np.ndarray, block: int = 1024) -> np.ndarray:
    """Euclidean distance from each row [N, D] to its nearest row of `reference` [M, D]: [N]."""
    reference = np.asarray(reference, np.float64)
    square = np.sum(reference**2, axis=1)
    nearest = []
    for start in range(0, len(features), block):
        rows = np.asarray(features[start : start + block], np.float64)
        squared = np.sum(rows**2, axis=1)[:, None] - 2 * rows @ reference.T + square[None]
        nearest.append(np.sqrt(np.maximum(squared.min(axis=1), 0)))
    return np.concatenate(nearest)


def nearest_rows(features: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """Which k rows of `reference` [M, D] are nearest to each row [N, D], nearest first: [N, k]."""
    rows, reference = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    squared = np.sum(reference**2, axis=1)[None] - 2 * rows @ reference.T  # but for |row|^2
    return np.argsort(squared, axis=1)[:, :k]


class NeighbourRatio:
    """Median distance of samples to their nearest training rows over that of held-out rows.

    Near one for new images like the data's; near zero for copies. All arguments [N, D].
    """

    def __init__(self, train: np.ndarray, held_out: np.ndarray):
        self._train = train
        self._held_out = np.median(nearest_distances(held_out, train))

    def __call__(self, samples: np.ndarray) -> float:
        return float(np.median(nearest_distances(samples, self._train)) / self._held_out)
