import numpy as np
import pytest
import scipy.linalg

from pdistill.evaluation import Moments, Statistics, frechet_bias, frechet_distance
from pdistill.evaluation.frechet import frechet_bias_of_few


def rows(num, dim, seed=0):
    """Correlated features."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def moments(features, sizes=()):
    found = Moments()
    for part in np.split(features, np.cumsum(sizes)):
        found.add(part)
    return found.statistics()


# --- Moments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[], [50], [1, 7, 13, 2], [1] * 99, [10, 0, 20], [0, 30]], ids=str
)
def test_moments_of_any_batching(sizes):
    features = rows(100, 6)
    found = moments(features, sizes)
    assert found.count == 100
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-12, atol=1e-12)


def test_moments_do_not_cancel_far_from_the_origin():
    """The sum of squares alone would have errors of 1e12 x 1e-16 where the variance is 1e-6."""
    features = 1e6 + 1e-3 * rows(1000, 4)
    found = moments(features, [100] * 9)
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9, atol=1e-14)


def test_moments_are_float64_for_float32_features():
    features = rows(100, 6).astype(np.float32)
    np.testing.assert_allclose(
        moments(features, [30]).covariance, np.cov(features.T.astype(np.float64)), rtol=1e-12
    )


def test_features_that_cannot_be_counted():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            Moments().add(np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match=r"must be \[B, D\]; got shape \(3,\)"):
        Moments().add(np.zeros(3))
    with pytest.raises(ValueError, match="at least two rows; got 1"):
        Moments().add(np.zeros((1, 3))).statistics()


# --- Frechet distance ---------------------------------------------------------------------------


def test_distance_against_sqrtm():
    a, b = rows(200, 12, seed=1), rows(300, 12, seed=2)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    desired = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(moments(a), moments(b)), desired, rtol=1e-10)


def diagonal(mean, std):
    """Rows with exactly this mean and diagonal covariance: two on each axis."""
    offsets = np.diag(std * np.sqrt((2 * len(std) - 1) / 2))
    return moments(mean + np.concatenate([offsets, -offsets]))


def test_distance_of_diagonal_covariances():
    """It is |mean_a - mean_b|^2 + |std_a - std_b|^2, also where a std is zero."""
    mean_a, mean_b = np.array([1.0, 2.0, -3.0]), np.array([0.5, 2.0, 4.0])
    std_a, std_b = np.array([0.1, 3.0, 0.0]), np.array([2.0, 1.0, 0.7])
    desired = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    actual = frechet_distance(diagonal(mean_a, std_a), diagonal(mean_b, std_b))
    np.testing.assert_allclose(actual, desired, rtol=1e-12)


def test_distance_of_covariances_of_rank_one():
    """tr (A B)^(1/2) = |u . v| for A = u u^T and B = v v^T; sqrtm fails here."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 5))
    a, b = (moments(np.stack([w, -w]) / np.sqrt(2)) for w in (u, v))
    np.testing.assert_allclose(frechet_distance(a, b), u @ u + v @ v - 2 * abs(u @ v), rtol=1e-7)


@pytest.mark.parametrize("num", [100, 5], ids=["full rank", "singular"])
def test_distance_to_itself_is_zero(num):
    found = moments(rows(num, 12))
    assert abs(frechet_distance(found, found)) < 1e-12 * np.trace(found.covariance)


def test_distance_is_symmetric():
    a, b = moments(rows(20, 12, seed=1)), moments(rows(8, 12, seed=2))
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12)
    assert frechet_distance(a, b) > 1


def test_distance_of_other_features():
    with pytest.raises(ValueError, match="feature sizes differ: 3 and 4"):
        frechet_distance(moments(rows(9, 3)), moments(rows(9, 4)))


# --- Too few samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("num", [10, 30, 400])
def test_bias_is_the_mean_distance_of_gaussian_samples(num):
    """Against samples drawn and measured the ordinary way, within 4 standard errors."""
    reference = moments(rows(500, 20))
    rng = np.random.default_rng(3)

    def draw():
        samples = rng.multivariate_normal(reference.mean, reference.covariance, num)
        return frechet_distance(moments(samples), reference)

    distances = [draw() for _ in range(100)]
    biases = [frechet_bias(reference, num, seed) for seed in range(100)]
    error = np.hypot(np.std(distances), np.std(biases)) / 10
    assert abs(np.mean(distances) - np.mean(biases)) < 4 * error
    assert np.std(biases) < 0.4 * np.mean(biases)  # so one draw tells its size


@pytest.mark.parametrize(
    ("decay", "bounds"), [(0.0, (0.97, 1.03)), (0.5, (0.9, 1.35))], ids=["white", "falling"]
)
@pytest.mark.parametrize("num", [12, 600])
@pytest.mark.parametrize("count", [20, 90, 240])
def test_bias_of_a_reference_of_few_rows(count, num, decay, bounds):
    """Against sets drawn and measured the ordinary way, of fewer and of more rows than features."""
    rng = np.random.default_rng(5)
    scale = np.arange(1, 61) ** -decay
    found = []
    for seed in range(5):
        reference, samples = (moments(rng.normal(size=(n, 60)) * scale + 3) for n in (count, num))
        found.append(
            (frechet_bias_of_few(reference, num, seed), frechet_distance(samples, reference))
        )
    guess, measured = np.mean(found, axis=0)
    assert bounds[0] < guess / measured < bounds[1]


def test_distance_of_two_gaussians_from_samples():
    """The closed form within what so many samples leave: bias and 5 standard deviations of it."""
    a = Statistics(np.array([0.0, 1.0]), np.array([[1.0, 0.3], [0.3, 0.5]]))
    b = Statistics(np.array([0.5, 0.0]), np.array([[0.4, 0.0], [0.0, 1.5]]))
    rng = np.random.default_rng(4)
    num, found = 4000, []
    for _ in range(20):
        x, y = (rng.multivariate_normal(s.mean, s.covariance, num) for s in (a, b))
        found.append(frechet_distance(moments(x), moments(y)))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    desired = 1.25 + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), desired, rtol=1e-12)
    assert abs(np.mean(found) - desired) < 5 * np.std(found) / np.sqrt(20) + 10 / num


def test_features_that_never_change():
    """They add nothing, neither to a distance nor to its bias."""
    a, b = rows(200, 5, seed=1), rows(300, 5, seed=2)
    with_constants = [moments(np.pad(features, ((0, 0), (0, 2)))) for features in (a, b)]
    plain = moments(a), moments(b)
    assert with_constants[0].factor.shape == (7, 5)
    assert frechet_distance(*with_constants) == pytest.approx(frechet_distance(*plain), rel=1e-9)
    biases = [frechet_bias(found[0], 10) for found in (with_constants, plain)]
    assert biases[0] == pytest.approx(biases[1], rel=1e-9)
