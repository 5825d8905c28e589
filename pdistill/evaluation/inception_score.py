"""Inception score, high if samples are recognisable and of all classes."""

import numpy as np
from scipy.special import rel_entr, softmax

SPLITS = 10


def inception_score(
    logits: np.ndarray, *, splits: int = SPLITS, seed: int = 2020
) -> tuple[float, float]:
    """Inception score exp E KL(p(y | x) || p(y)) (Salimans et al. 2016): (mean, std) over splits.

    It goes from 1, when all samples look alike to the classifier, to K, when each is surely of one
    class and the classes are equally many. Samples are shuffled and split as torch-fidelity does,
    and p(y) is the mean over a split, so values of other `splits` or numbers of samples do not
    compare.

    Args:
      logits: the classifier's logits [N, K].
      splits: number of splits, 1 to N.
      seed: seed of the shuffle.

    Raises:
      ValueError: splits is out of range.
    """
    num = len(logits)
    if not 1 <= splits <= num:
        raise ValueError(f"splits must be from 1 to the {num} samples; got {splits}")
    order = np.random.RandomState(seed).permutation(num)
    p = softmax(np.asarray(logits, np.float64)[order], axis=1)
    scores = []
    for part in np.split(p, [i * num // splits for i in range(1, splits)]):
        divergence = rel_entr(part, part.mean(axis=0)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
