"""The flow to a tolerance, against SciPy's and the exact one of a mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from pdistill.diffusion import CosineSchedule, GaussianMixture, RectifiedFlow
from pdistill.samplers import adaptive, integrate

Z = np.random.default_rng(0).normal(size=(8, 1))
STATIC = ("schedule", "rtol", "atol", "max_tries")
run = jax.jit(integrate, static_argnums=0, static_argnames=STATIC)


def mixture(std=0.2):
    return GaussianMixture(np.array([0.3, 0.7]), np.array([[-0.8], [0.5]]), np.full(2, std))


@functools.cache
def solved(method, rtol, atol):
    """SciPy's solution of the flow of one example, and how often it evaluates, by SiT's equation.

    From their time t = 0, noise, to t = 1, where the velocity is at most x_hat less the noise.
    """
    means, weights, std = np.array([-0.8, 0.5]), np.array([0.3, 0.7]), 0.2

    def velocity(t, x):
        spread = (t * std) ** 2 + (1 - t) ** 2
        share = weights * np.exp(-((x[0] - t * means) ** 2) / (2 * spread))
        slopes = means + (t * std**2 - (1 - t)) / spread * (x[0] - t * means)
        return [share @ slopes / share.sum()]

    found = scipy.integrate.solve_ivp(velocity, (0, 1), Z[0], method=method, rtol=rtol, atol=atol)
    return found.y[:, -1], found.nfev


def test_weights_agree_with_the_times_of_the_stages():
    """Those of Dormand and Prince 1980; a step's sum to one, and the error's to nothing."""
    sums = np.sum(adaptive.STAGES, axis=1)
    np.testing.assert_allclose(sums, [1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1], rtol=1e-14)
    assert sum(adaptive.ERROR) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("rtol", [1e-6, 1e-9])
def test_it_is_as_exact_as_it_says_with_as_many_evaluations_as_scipys(x64, rtol):
    x, evaluations = run(mixture().denoise, Z[:1], schedule=RectifiedFlow(), rtol=rtol, atol=rtol)
    truth, _ = solved("DOP853", 1e-12, 1e-12)
    _, of_scipy = solved("RK45", rtol, rtol)
    assert abs(x[0] - truth) < 10 * rtol
    assert 0.9 * of_scipy < int(evaluations) < 1.3 * of_scipy + 10  # two ends, a first step


def test_it_is_the_exact_flow(x64):
    """From the schedule's first level to its last, where x_hat is taken: off by tau^2 / (2 std)."""
    schedule, std = CosineSchedule(), 0.05
    end, begin = schedule(jnp.array([0.0, 1.0]))
    tau = float(jax.nn.sigmoid(-end / 2))
    exact = jax.jit(mixture(std).flow)(Z, begin, jnp.full((), 60.0))
    x, _ = run(mixture(std).denoise, Z, schedule=schedule, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(x, exact, rtol=0, atol=2e-8 + 2 * tau**2 / std)


def test_single_precision():
    """The default tolerances, with as many evaluations at run time as it says."""
    seen = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: seen.append(float(level)), logsnr[0])
        flat = mixture().denoise(z.reshape(-1, 1), jnp.repeat(logsnr, 4))
        return flat.reshape(z.shape)

    z = np.random.default_rng(1).normal(size=(6, 2, 2, 1)).astype(np.float32)
    x, evaluations = run(denoise, z, schedule=RectifiedFlow())
    jax.effects_barrier()
    assert len(seen) == evaluations
    assert x.dtype == jnp.float32
    whole = jax.jit(mixture().flow)(z.reshape(-1, 1), -60.0, 60.0)
    np.testing.assert_allclose(x.reshape(-1, 1), whole, rtol=0, atol=3e-3)


def test_the_worst_example_says_the_steps(x64):
    """Easy ones beside it, whose flow is straight, do not make its error a smaller one."""

    def denoise(z, logsnr):
        hard = mixture().denoise(z[:1], logsnr[:1])
        return jnp.concatenate([hard, jnp.zeros_like(z[1:])])

    to = {"schedule": RectifiedFlow(), "rtol": 1e-8, "atol": 1e-8}
    alone, evaluations = run(mixture().denoise, Z[:1], **to)
    beside, as_many = run(denoise, Z, **to)
    assert evaluations == as_many
    np.testing.assert_allclose(beside[:1], alone, rtol=0, atol=1e-12)


def test_giving_up():
    """After as many steps as it may try; or at the first that is not finite."""
    x, evaluations = run(mixture().denoise, Z, schedule=RectifiedFlow(), max_tries=3)
    assert np.isnan(x).all()
    assert evaluations == 20
    x, evaluations = run(lambda z, logsnr: z * jnp.nan, Z, schedule=RectifiedFlow())
    assert np.isnan(x).all()
    assert evaluations == 8
