"""Parts of the labels, one for each student of several (Song et al. 2024)."""

from collections.abc import Sequence

import numpy as np

Parts = tuple[tuple[int, ...], ...]


def by_blocks(num_labels: int, num_parts: int) -> Parts:
    """Consecutive labels; sizes differ by one at most, the first parts being the larger.

    Raises:
      ValueError: there are fewer labels than parts.
    """
    if not 1 <= num_parts <= num_labels:
        raise ValueError(f"parts must be 1 to the {num_labels} labels; got {num_parts}")
    return tuple(tuple(map(int, part)) for part in np.array_split(range(num_labels), num_parts))


def by_lists(lists: Sequence[Sequence[int]], num_labels: int) -> Parts:
    """The lists themselves.

    Raises:
      ValueError: a label in none of them, or in two.
    """
    counts = np.bincount([label for part in lists for label in part], minlength=num_labels)
    if len(counts) > num_labels or any(counts != 1) or not all(lists):
        raise ValueError(f"each of the {num_labels} labels must be in one list; got {lists}")
    return tuple(map(tuple, lists))


def by_balanced_kmeans(embeddings: np.ndarray, num_parts: int, seed: int = 0) -> Parts:
    """Labels whose embeddings [num_labels, D] are near each other; sizes differ by one at most.

    Lloyd's iterations in which the labels are shared out at the least total squared distance.
    """
    from scipy.optimize import linear_sum_assignment  # as slow to import as JAX
    from scipy.spatial.distance import cdist

    by_blocks(len(embeddings), num_parts)  # raises
    slots = np.arange(len(embeddings)) % num_parts
    order = np.random.RandomState(seed).permutation(len(embeddings))
    centres, part_of = embeddings[order[:num_parts]], None
    while True:
        costs = cdist(embeddings, centres, "sqeuclidean")[:, slots]
        _, chosen = linear_sum_assignment(costs)
        if part_of is not None and (slots[chosen] == part_of).all():
            break
        part_of = slots[chosen]
        centres = np.stack([embeddings[part_of == k].mean(0) for k in range(num_parts)])
    parts = (np.flatnonzero(part_of == k) for k in range(num_parts))
    return tuple(sorted(tuple(map(int, part)) for part in parts))


def routes(parts: Parts) -> tuple[int, ...]:
    """The part of each label."""
    part_of = {label: k for k, part in enumerate(parts) for label in part}
    return tuple(part_of[label] for label in range(len(part_of)))
