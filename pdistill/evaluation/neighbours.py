"""Distances to the nearest training images, which tell whether a model copies them."""

from collections.abc import Callable, Iterable

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


def nearest_rows(
    features: np.ndarray, blocks: Iterable[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows in `blocks` [B, D] nearest to each row [N, D].

    Rows are counted through all blocks; one block is in memory at a time.

    Returns:
      Their numbers [N, k], the nearest first, and their squared distances [N, k].
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
    return nearest, distances + np.sum(rows**2, axis=1)[:, None]


def nearest_images(
    shown: np.ndarray,
    images: np.ndarray,
    embed: Callable[[np.ndarray], np.ndarray],
    blocks: Iterable[np.ndarray],
    k: int,
    *,
    mirrored: bool,
) -> np.ndarray:
    """Finds the k of `images` [N, H, W, C] nearest to each of those `shown`: [n, k, H, W, C].

    Args:
      embed: computes features [n, D] of images. blocks: features of `images`, [B, D] each.
      mirrored: their mirrors count too, and are returned where they are nearer.
    """
    # An image near the mirror of one that is shown has a mirror near that one.
    views = [shown, shown[:, :, ::-1]] if mirrored else [shown]
    nearest, squares = nearest_rows(np.concatenate([embed(view) for view in views]), blocks, k)
    found = images[nearest]
    found[len(shown) :] = found[len(shown) :, :, :, ::-1]
    found, squares = (np.concatenate(np.split(a, len(views)), axis=1) for a in (found, squares))
    order = np.argsort(squares, axis=1)[:, :k]
    return found[np.arange(len(shown))[:, None], order]


class NeighbourRatio:
    """Median distance of samples to their nearest training rows over that of held-out rows.

    It is near one for new images like the data's, near zero for copies. All rows are [N, D].

    Args:
      mirrored: [H, W, C] of images whose pixels the rows are, for training rows that are the
        images' mirrors too; None for these rows alone.
    """

    def __init__(
        self,
        train: np.ndarray,
        held_out: np.ndarray,
        mirrored: tuple[int, ...] | None = None,
    ):
        self._train = train
        self._mirrored = mirrored
        self._held_out = np.median(self._nearest(held_out))

    def __call__(self, samples: np.ndarray) -> float:
        return float(np.median(self._nearest(samples)) / self._held_out)

    def _nearest(self, rows: np.ndarray) -> np.ndarray:
        distances = nearest_distances(rows, self._train)
        if self._mirrored is None:
            return distances
        # A row is as far from an image's mirror as its own mirror is from the image.
        mirrors = rows.reshape(-1, *self._mirrored)[:, :, ::-1].reshape(rows.shape)
        return np.minimum(distances, nearest_distances(mirrors, self._train))
