"""Power-function averages against their definition, quadrature, and averages that were tracked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from pdistill.training import Learner, Optimizer
from pdistill.training.power_ema import Profile, exponent, fit, inner_product, step_size

GOLDEN = {0.05: 16.97, 0.10: 6.94}  # Karras et al. (2024), section 3.1
PROFILES = [Profile(0.05, 700), Profile(0.05, 1000), Profile(0.1, 1000), Profile(0.28, 900)]


def weight(profile, u):
    """p(u) by its definition."""
    gamma, t = exponent(profile.width), profile.updates
    return (gamma + 1) * u**gamma / t ** (gamma + 1) if u <= t else 0.0


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    profile = Profile(width, 1)
    one, mean, square = (
        quad(lambda u: u**k * weight(profile, u), 0, 1, epsabs=1e-13)[0]  # noqa: B023
        for k in range(3)
    )
    assert one == pytest.approx(1, abs=1e-9)
    assert np.sqrt(square - mean**2) == pytest.approx(width, abs=1e-9)
    if width in GOLDEN:
        assert exponent(width) == pytest.approx(GOLDEN[width], abs=0.005)


@pytest.mark.parametrize("a", PROFILES, ids=str)
@pytest.mark.parametrize("b", PROFILES, ids=str)
def test_inner_products_are_integrals(a, b):
    end = min(a.updates, b.updates)
    found, _ = quad(lambda u: weight(a, u) * weight(b, u), 0, end, epsabs=0, epsrel=1e-12)
    assert inner_product(a, b) == pytest.approx(found, rel=1e-8)


def test_a_small_step_is_not_cancelled():
    """In single precision 1 - 1/t has a sixteenth of an error in 1/t at a million updates."""
    found = step_size(0.05, jnp.int32(10**6))
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx((exponent(0.05) + 1) / 10**6, rel=1e-4)


WIDTHS = (0.05, 0.1, 0.07)  # the third is tracked, and not used


def walk(optimizer, num, keep_every):
    """A random walk of parameters [40] with a drift, and its averages at every `keep_every`.

    Returns:
      Parameters [num, 40], averages [kept, widths, 40], the last learner.
    """
    grads = np.random.default_rng(0).normal(size=(num, 40)) + np.linspace(-0.5, 0.5, 40)

    def update(learner, grad):
        learner, _ = learner.update({"w": grad})
        averages = jnp.stack([average["w"] for average in learner.average])
        return learner, (learner.network["w"], averages)

    start = Learner.of({"w": jnp.asarray(np.ones(40))}, optimizer)
    learner, (params, averages) = jax.jit(functools.partial(jax.lax.scan, update))(start, grads)
    return np.asarray(params), np.asarray(averages)[keep_every - 1 :: keep_every], learner


@pytest.fixture(scope="module")
def walked():
    with jax.enable_x64():
        return walk(Optimizer(1e-2, ema_widths=WIDTHS), 400, keep_every=50)


def test_averages_are_sums_of_the_parameters_by_their_profile(walked):
    """The weight of update u is the integral of the profile from u - 1 to u."""
    params, kept, learner = walked
    u = np.arange(401) / 400
    for width, average in zip(WIDTHS, kept[-1], strict=True):
        weights = np.diff(u ** (exponent(width) + 1))
        np.testing.assert_allclose(average, weights @ params, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(learner.averaged["w"], kept[-1, 0])


def test_an_average_of_a_third_length_is_made_of_snapshots(walked):
    """Of eight times two: within 2% of the distance of those two; a stored one to 1e-6."""
    _, kept, _ = walked
    first, second, third = kept[-1]
    profiles = [Profile(w, 50 * (k + 1)) for k in range(8) for w in WIDTHS[:2]]
    stored = kept[:, :2].reshape(16, -1)

    def made(width, of=slice(None)):
        weights, error = fit(profiles[of], Profile(width, 400))
        return weights @ stored[of], error

    distance = np.linalg.norm(first - second)
    found, error = made(WIDTHS[2])
    assert np.linalg.norm(found - third) < 0.02 * distance
    assert error < 0.02
    assert np.linalg.norm(third - first) > 0.2 * distance
    for width, expected in zip(WIDTHS[:2], (first, second), strict=True):
        found, error = made(width)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * distance)
        assert error < 1e-6
    # Far from both it is not one of their sums; earlier snapshots help.
    assert made(0.28, slice(2, None))[1] > made(0.28)[1] > 0.1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"ema_widths": (0.0,)}, "above 0 and at most 0.2887"),
        ({"ema_widths": (0.1, 0.3)}, "above 0 and at most 0.2887"),
        ({"ema_widths": (0.1, 0.1)}, "differ from each other"),
        ({"ema_widths": (0.1,), "ema_decay": 0.9}, "leave those at 0"),
        ({"ema_widths": (0.1,), "ema_ramp": 0.1}, "leave those at 0"),
    ],
)
def test_widths_that_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(0.1, **bad)
