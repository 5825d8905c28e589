"""Margins of error: how far a number is from its mean over other samples of the same model.

A margin is half the width of an interval around the number that has this mean 95 times in 100, for
the same reference. The number of other samples has chance of its own: it lies within the interval
83 times in 100, and within 1.4 margins 95 times. A margin says nothing of the bias of a Frechet
distance, which all samples of one number share.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.linalg
from scipy.special import ndtri, stdtrit

from pdistill.evaluation.frechet import Moments, Statistics
from pdistill.evaluation.precision_recall import Manifold

GROUPS = 10
KEPT = 2**25  # numbers of features, of 16,384 samples of 2,048
NORMAL = ndtri(0.975)


class Kept:
    """Rows of features for a margin: all, or a random part of about KEPT numbers, in float32.

    Args:
      num: number of rows that there will be; 0 if that is unknown, and all are kept.
    """

    def __init__(self, num: int):
        self.parts: list[np.ndarray] = []
        self._num = num
        self._random = np.random.RandomState(0)

    def add(self, features: np.ndarray) -> None:
        """Adds features [B, D]."""
        share = KEPT / max(self._num * features.shape[1], 1)
        if share < 1:
            features = features[self._random.random_sample(len(features)) < share]
        self.parts.append(np.asarray(features, np.float32))


def frechet_margin(
    parts: Sequence[np.ndarray], samples: Statistics, reference: Statistics
) -> float | None:
    """Margin of a Frechet distance, by the jackknife that leaves out groups of samples.

    A tenth of the samples is left out at a time, at random, and the distances of the others spread
    as much as ten times smaller sets do (Shao & Wu 1989). All have one number of samples and so one
    bias, where a bootstrap would add to it, as its samples repeat. The variance found is on average
    at least that of the distance, for any law and number of samples (Efron & Stein 1981). It is
    about twice as large for perfect samples, whose margin is 1.4 times what it should be. A margin
    found by some rows counts as one that falls with the root of the number of samples.

    Args:
      parts: features of the samples or of some of them, as `Kept` has them, [B, D] each.
      samples: statistics of all samples.
      reference: statistics that they are compared with.

    Returns:
      The margin, or None for fewer than 2 GROUPS samples.
    """
    num = sum(map(len, parts))
    if num < 2 * GROUPS:
        return None
    share = num / samples.count
    if share < 1:
        moments = Moments()
        for part in parts:
            moments.add(part)
        samples = moments.statistics()
    distances = [*_without_groups(parts, samples, reference)]
    return _margin(distances) * share**0.5


def share_margin(share: float, num: int) -> float:
    """Margin of the share of `num` samples that something is true of (Agresti & Coull 1998)."""
    centre = (share * num + NORMAL**2 / 2) / (num + NORMAL**2)
    return float(NORMAL * np.sqrt(centre * (1 - centre) / (num + NORMAL**2)))


def recall_margin(manifold: Manifold, reference: np.ndarray) -> float | None:
    """Margin of the recall of a reference [M, D] by a manifold of samples, by the same jackknife.

    A sample that is left out takes its ball along and widens its neighbours', so that the margin is
    1.2 to 1.5 times what it should be.

    Returns:
      The margin, or None for fewer than 2 GROUPS samples.
    """
    num = len(manifold.features)
    if num < 2 * GROUPS:
        return None
    recalls = manifold.contains_without(random_groups(num), reference).mean(axis=1)
    return _margin(recalls)


def random_groups(num: int, seed: int = 0) -> np.ndarray:
    """Numbers of the groups of `num` rows, int [num]; sizes differ by one at most.

    Every GROUPS rows are of all groups, so that no order of the rows, as by labels, matters.
    """
    order = np.random.RandomState(seed).random_sample((-(-num // GROUPS), GROUPS))
    return order.argsort(axis=1).ravel()[:num]


def _margin(values: Sequence[float]) -> float:
    """Margin of a number, from what it is without each of GROUPS groups."""
    return float(stdtrit(GROUPS - 1, 0.975) * np.sqrt((GROUPS - 1) * np.var(values)))


def _without_groups(
    parts: Sequence[np.ndarray], samples: Statistics, reference: Statistics
) -> Iterator[float]:
    """Yields the distance of the samples but for one group, for each."""
    groups = random_groups(samples.count)
    roots = _roots(parts, samples, reference, groups)
    total = (samples.count - 1) * np.trace(samples.covariance)
    difference = samples.mean - reference.mean
    for group in range(GROUPS):
        rows = _rows(parts, groups == group) - samples.mean
        left = samples.count - len(rows)
        offset = -rows.sum(axis=0) / left  # of the mean
        trace = (total - np.sum(rows**2) - left * offset @ offset) / (left - 1)
        moved = difference + offset
        root = roots(rows, groups != group)
        yield moved @ moved + trace + np.trace(reference.covariance) - 2 * root


def _roots(
    parts: Sequence[np.ndarray], samples: Statistics, reference: Statistics, groups: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns a function from a group's centred rows, and the others' places, to tr (A B)^(1/2).

    A is the covariance without the group. With B = L L^T it is the sum of the roots of the
    eigenvalues of L^T A L, or of the others' products with each other, whichever are fewer.
    """
    factor = reference.factor
    if samples.count > factor.shape[1]:
        whole = (samples.count - 1) * factor.T @ samples.covariance @ factor

        def root(rows: np.ndarray, others: np.ndarray) -> float:
            seen, left = rows @ factor, np.sum(others)
            total = seen.sum(axis=0)
            return _trace_of_root(whole - seen.T @ seen - np.outer(total, total) / left, left - 1)

        return root
    seen = np.concatenate([(part - samples.mean) @ factor for part in parts])
    products = seen @ seen.T

    def root(rows: np.ndarray, others: np.ndarray) -> float:
        found = products[np.ix_(others, others)]
        found -= found.mean(axis=0)
        found -= found.mean(axis=1, keepdims=True)
        return _trace_of_root(found, len(found) - 1)

    return root


def _trace_of_root(matrix: np.ndarray, degrees: int) -> float:
    values = scipy.linalg.eigvalsh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    return np.sqrt(values.clip(0) / degrees).sum()


def _rows(parts: Sequence[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """The `chosen` rows, bool [N], of features in parts, float64."""
    ends = np.cumsum([len(part) for part in parts])
    found = [part[of] for part, of in zip(parts, np.split(chosen, ends[:-1]), strict=True)]
    return np.concatenate(found).astype(np.float64)
