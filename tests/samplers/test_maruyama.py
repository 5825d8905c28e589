"""SiT's stochastic sampler against its algorithm in NumPy, and against marginals in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pdistill.diffusion import CosineSchedule, Gaussian, GaussianMixture, RectifiedFlow
from pdistill.samplers import EulerMaruyama, encode, noise, num_evaluations, parse_solver, sample

KEY = jax.random.key(0)
Z = np.random.default_rng(0).normal(size=(6, 1))
WEIGHTS, MEANS, STD = np.array([0.3, 0.7]), np.array([-0.8, 0.5]), 0.2
STATIC = ("schedule", "num_steps", "solver", "times", "return_trajectory")
run = jax.jit(sample, static_argnums=(0, 2), static_argnames=STATIC)


def mixture():
    return GaussianMixture(WEIGHTS, MEANS[:, None], np.full(2, STD))


def velocity(x, t):
    """E[x_1 - x_0 | x_t] for x_t = t x_1 + (1 - t) x_0, x_1 of the mixture and x_0 normal."""
    spread = (t * STD) ** 2 + (1 - t) ** 2
    logits = np.log(WEIGHTS) - (x - t * MEANS) ** 2 / (2 * spread)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    slopes = MEANS + (t * STD**2 - (1 - t)) / spread * (x - t * MEANS)
    return np.sum(share * slopes, 1, keepdims=True)


def published(x, num_steps, last, draw):
    """Sampler.sample_sde of willisma/SiT: diffusion form "sigma", last step "Mean"."""
    times = np.linspace(0, 1 - last, num_steps)
    dt = times[1] - times[0]

    def drift(x, t):
        u, sigma = velocity(x, t), 1 - t
        score = (t * u - x) / (sigma**2 + t * sigma)
        return u + sigma * score

    for i, t in enumerate(times[:-1]):
        x = x + drift(x, t) * dt + np.sqrt(2 * (1 - t)) * draw(i) * np.sqrt(dt)
    return x + drift(x, times[-1]) * last


@pytest.mark.parametrize(("num_steps", "last"), [(2, 0.3), (25, 0.04)])
def test_it_is_the_published_algorithm(x64, num_steps, last):
    solver = parse_solver(f"euler_maruyama:{last}")
    settings = {"schedule": RectifiedFlow(), "num_steps": num_steps, "solver": solver}
    x = run(mixture().denoise, KEY, z_init=Z, **settings)

    def draw(i):
        key = noise.fold_in(noise.as_threefry(KEY), i)
        return np.asarray(noise.normal(key, Z.shape, Z.dtype))

    np.testing.assert_allclose(x, published(Z, num_steps, last, draw), rtol=0, atol=1e-11)


def mixture_cdf(tau):
    def cdf(x):
        spread = np.hypot((1 - tau) * STD, tau)
        return scipy.stats.norm.cdf((x[:, None] - (1 - tau) * MEANS) / spread) @ WEIGHTS

    return cdf


@pytest.mark.parametrize("schedule", [RectifiedFlow(), CosineSchedule()], ids=str)
def test_marginals_are_the_mixtures(schedule):
    """At every noise level, whatever the schedule's times: by Kolmogorov and Smirnov."""
    settings = {"schedule": schedule, "num_steps": 256, "solver": EulerMaruyama(0.01)}
    _, path = run(mixture().denoise, KEY, (4000, 1), return_trajectory=True, **settings)
    levels = EulerMaruyama(0.01).grid(schedule, 256, jnp.float32)
    for i in (128, 255):
        tau = scipy.special.expit(-float(levels[i]) / 2)
        x = np.ravel(path[i]) * np.hypot(1 - tau, tau)
        assert scipy.stats.kstest(x, mixture_cdf(tau)).pvalue > 0.001


def test_levels():
    """N equal times down to `last`, and data; N evaluations, of which the last is at `last`."""
    levels = EulerMaruyama().grid(RectifiedFlow(), 250, jnp.float32)
    times = scipy.special.expit(-np.asarray(levels) / 2)
    np.testing.assert_allclose(times[:-1], 1 - 0.96 * np.arange(250) / 249, atol=1e-6)
    assert times[-1] < 1e-12
    assert num_evaluations("euler_maruyama", 250) == 250
    found = EulerMaruyama().grid(CosineSchedule(), 4, jnp.float32)
    assert found[-1] == CosineSchedule()(jnp.zeros(()))


def test_the_end_is_the_mean_of_a_step(x64):
    """Which is x_hat less tau eps_hat; a single step would return the noise."""
    denoise, schedule = Gaussian(0.3, 0.4).denoise, RectifiedFlow()
    how = {"schedule": schedule, "solver": EulerMaruyama(), "return_trajectory": True}
    x, path = run(denoise, KEY, z_init=Z, times=(0.7, 0.2, 0.0), **how)
    x_hat = denoise(path[1], schedule(jnp.full(6, 0.2)))
    flow = np.asarray(path[1]) * np.hypot(0.2, 0.8)
    eps_hat = (flow - 0.8 * np.asarray(x_hat)) / 0.2
    np.testing.assert_allclose(x, x_hat - 0.2 * eps_hat, atol=1e-12)
    x = sample(denoise, KEY, z_init=path[1], times=(0.2, 0.0), **how)[0]  # from a noisy image
    np.testing.assert_allclose(x, x_hat - 0.2 * eps_hat, atol=1e-12)
    for how in ({"num_steps": 1}, {"times": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="euler_maruyama takes at least 2 steps; got num_step"):
            sample(denoise, KEY, z_init=Z, schedule=schedule, solver=EulerMaruyama(), **how)


def test_names_and_mistakes():
    assert parse_solver("euler_maruyama") == EulerMaruyama(0.04)
    for text in ("euler_maruyama:0", "euler_maruyama:1", "euler_maruyama:nan", "euler_maruyama:a"):
        with pytest.raises(ValueError, match="euler_maruyama:"):
            parse_solver(text)
    with pytest.raises(ValueError, match="encode needs a deterministic solver"):
        encode(mixture().denoise, Z, schedule=RectifiedFlow(), num_steps=2, solver="euler_maruyama")
