"""Distances to the nearest training images, which tell whether a model copies them."""

from collections.abc import Iterable

import numpy as np


def nearest_distances(features: np.ndarray, reference: np.ndarray, block: int = 1024) -> np.ndarray:
    """Computes the distance from each row [N, D] to its nearest row of `reference` [M, D]: [N]."""
    reference = np.asarray(reference, np.float64)
    square = np.sum(reference**2, axis=1)
    nearest = []
    for start in range(0, len(features), block):
        rows = np.asarray(features[start : start + block], np.float64)
        squared = np.sum(rows**2, axis=1)[:, None] - 2 * rows @ reference.T + square[None]
        nearest.append(np.sqrt(np.maximum(squared.min(axis=1), 0)))
    return np.concatenate(nearest)


def nearest_rows(features: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> np.ndarray:
    """Finds the k rows in `blocks` [B, D] nearest to each row [N, D]: their numbers [N, k].

    The nearest comes first. Rows are counted through all blocks; one block is in memory at a time.
    """
    rows = np.asarray(features, np.float64)
    nearest = np.empty((len(rows), 0), int)
    distances = np.empty((len(rows), 0))
    start = 0
    for block in blocks:
        block = np.asarray(block, np.float64)
        squared = np.sum(block**2, axis=1)[None] - 2 * rows @ block.T  # but for |row|^2
        distances = np.concatenate([distances, squared], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(block)), squared.shape)
        nearest = np.concatenate([nearest, numbers], axis=1)
        order = np.argsort(distances, axis=1)[:, :k]
        distances, nearest = (np.take_along_axis(a, order, axis=1) for a in (distances, nearest))
        start += len(block)
    return nearest


class NeighbourRatio:
    """Median distance of samples to their nearest training rows over that of held-out rows.

    It is near one for new images like the data's, near zero for copies. All arguments are [N, D].
    """

    def __init__(self, train: np.ndarray, held_out: np.ndarray):
        self._train = train
        self._held_out = np.median(nearest_distances(held_out, train))

    def __call__(self, samples: np.ndarray) -> float:
        return float(np.median(nearest_distances(samples, self._train)) / self._held_out)
