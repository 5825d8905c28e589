import numpy as np
import pytest
from scipy.stats import entropy

from pdistill.evaluation.inception_score import inception_score

RNG = np.random.default_rng(0)


def test_alike_samples_score_one():
    mean, std = inception_score(np.tile(RNG.normal(size=5), (100, 1)))
    np.testing.assert_allclose([mean, std], [1, 0], atol=1e-14)


def test_sure_and_balanced_samples_score_the_number_of_classes():
    """Logits of 1000 also overflow exp, and leave probabilities of exactly zero."""
    logits = 1000 * np.tile(np.eye(7), (30, 1))
    mean, std = inception_score(logits, splits=1)
    np.testing.assert_allclose(mean, 7, rtol=1e-14)
    assert std == 0


def test_mutual_information_of_a_symmetric_channel():
    """K classes right with probability q: log IS = log K - H(q, (1 - q) / (K - 1), ...)."""
    classes, q = 4, 0.6
    p = np.full((classes, classes), (1 - q) / (classes - 1))
    np.fill_diagonal(p, q)
    mean, _ = inception_score(np.log(np.tile(p, (10, 1))), splits=1)
    np.testing.assert_allclose(np.log(mean), np.log(classes) - entropy(p[0]), rtol=1e-13)


def test_splits_of_sure_samples():
    """The score of one is exp of the entropy of its labels; 103 samples do not divide by 4."""
    labels = RNG.choice(6, 103, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    shuffled = labels[np.random.RandomState(3).permutation(103)]
    parts = shuffled[:25], shuffled[25:51], shuffled[51:77], shuffled[77:]
    desired = [np.exp(entropy(np.bincount(part, minlength=6))) for part in parts]
    actual = inception_score(100 * np.eye(6)[labels], splits=4, seed=3)
    np.testing.assert_allclose(actual, [np.mean(desired), np.std(desired)], rtol=1e-12)


def test_constants_added_to_logits_do_not_matter():
    logits = RNG.normal(size=(50, 5))
    offsets = RNG.uniform(-1e4, 1e4, (50, 1))
    # Logits of 1e4 are known to 1e-12.
    np.testing.assert_allclose(
        inception_score(logits + offsets), inception_score(logits), rtol=1e-10
    )


def test_number_of_splits():
    for splits in (0, 10):
        with pytest.raises(ValueError, match=f"from 1 to the 9 samples; got {splits}"):
            inception_score(np.zeros((9, 3)), splits=splits)
