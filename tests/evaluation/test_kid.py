import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from pdistill.evaluation.kid import kernel_distance

RNG = np.random.default_rng(0)
POWERS, BINOMIALS = (1, 2, 3), np.array([3, 3, 1])


def test_whole_sets_by_the_definition():
    """A subset of all rows is all rows, so that no draw matters; the kernel is scikit-learn's."""
    x, y = RNG.normal(size=(30, 5)), RNG.normal(size=(30, 5)) + 1
    within = [polynomial_kernel(z, degree=3)[~np.eye(30, dtype=bool)].mean() for z in (x, y)]
    desired = sum(within) - 2 * polynomial_kernel(x, y, degree=3).mean()
    mean, _ = kernel_distance(x, y, subset_size=30, subsets=4)
    np.testing.assert_allclose(mean, desired, rtol=1e-12)


def test_two_rows_are_enough():
    x, y = np.random.default_rng(1).normal(size=(2, 2, 5))
    kernel = [polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y))]
    desired = kernel[0][0, 1] + kernel[1][0, 1] - 2 * kernel[2].mean()
    mean, _ = kernel_distance(x, y, subset_size=2, subsets=2)
    np.testing.assert_allclose(mean, desired, rtol=1e-12)


def test_mean_over_subsets_is_that_of_the_rows():
    """In one dimension the kernel is the sum of C(3, j) x^j y^j over j, so that means factor.

    The tolerance is four standard errors, a quarter of the bias that pairs of a row with itself
    would add.
    """
    x, y = RNG.normal(0.5, 0.5, (300, 1)), RNG.normal(0, 0.3, (200, 1))

    def others(z):  # the mean of z_a^j z_b^j over a != b
        return [
            (np.sum(z**j) ** 2 - np.sum(z ** (2 * j))) / (len(z) * (len(z) - 1)) for j in POWERS
        ]

    across = [np.mean(x**j) * np.mean(y**j) for j in POWERS]
    desired = BINOMIALS @ (np.add(others(x), others(y)) - np.multiply(2, across))
    means = [kernel_distance(x, y, subsets=500, subset_size=10, seed=i)[0] for i in range(10)]
    error = np.std(means, ddof=1) / np.sqrt(10)
    assert error < 0.02
    assert abs(np.mean(means) - desired) < 4 * error


def test_samples_of_the_reference_average_to_zero():
    """The biased estimate of 20 rows would be near 2 E k(x, x) / 20 = 0.9; the tolerance is 0.1."""
    values = [kernel_distance(*RNG.normal(size=(2, 20, 8)), subsets=2)[0] for _ in range(300)]
    error = np.std(values) / np.sqrt(300)
    assert error < 0.025
    assert abs(np.mean(values)) < 4 * error


@pytest.mark.parametrize("offset", [0.5, 0.0], ids=["apart", "of one law"])
@pytest.mark.parametrize(
    ("rows", "subset_size", "subsets"),
    [((200, 300), 30, 20), ((60, 60), 1000, 2), ((60, 200), 1000, 20)],
    ids=["subsets", "whole", "of_one_whole"],
)
def test_standard_error_is_the_spread_over_rows_and_seeds(rows, subset_size, subsets, offset):
    """200 values know a standard deviation to 5 %, those of one law to 10."""
    rng, found = np.random.default_rng(0), []
    for seed in range(200):
        x, y = (rng.normal(mean, size=(n, 4)) for n, mean in zip(rows, (0, offset), strict=True))
        how = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
        found.append(kernel_distance(x, y, **how))
    means, errors = np.transpose(found)
    assert 0.8 < np.std(means) / np.sqrt(np.mean(errors**2)) < 1.2


def test_subsets_are_as_large_as_the_smaller_set():
    x, y = RNG.normal(size=(40, 3)), RNG.normal(size=(25, 3))
    assert kernel_distance(x, y) == kernel_distance(x, y, subset_size=25)
    assert kernel_distance(x, y) != kernel_distance(x, y, subset_size=24)


def test_float32_features_are_compared_in_float64():
    x, y = RNG.normal(size=(2, 50, 64)).astype(np.float32)
    actual = kernel_distance(x, y, subset_size=20)
    assert actual == kernel_distance(x.astype(np.float64), y.astype(np.float64), subset_size=20)


def test_too_few():
    assert np.isfinite(kernel_distance(np.eye(2, 3), np.ones((2, 3)), subsets=2)).all()
    with pytest.raises(ValueError, match="two subsets of two rows; got 100 of 1"):
        kernel_distance(np.zeros((5, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="two subsets of two rows; got 1 of 5"):
        kernel_distance(np.zeros((5, 3)), np.zeros((5, 3)), subsets=1)
