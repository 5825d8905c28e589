"""Improved DDPM's sampler against its algorithm in NumPy, in terms of betas as its code has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ddpm_reference import p_sample_loop, space_timesteps

from pdistill.diffusion import (
    CosineSchedule,
    DdpmSchedule,
    Gaussian,
    GaussianMixture,
    alpha_sigma,
    eps_from_x,
)
from pdistill.samplers import ImprovedDdpm, encode, noise, num_evaluations, parse_solver, sample

KEY = jax.random.key(0)
Z = np.random.default_rng(0).normal(size=(6, 2))


def mixture():
    means = np.array([[-0.8, 0.1], [0.5, 0.9]])
    return GaussianMixture(np.array([0.3, 0.7]), means, np.full(2, 0.2))


def fraction(z):
    """Between 0 and 1, another one at each place, and beyond at some."""
    return 0.5 + 0.7 * np.sin(3 * z)


def both(z, logsnr):
    return mixture().denoise(z, logsnr), 0.5 + 0.7 * jnp.sin(3 * z)


def predict(z, _, kept):
    """eps of the mixture, and the share, at a noise level."""
    level = np.full(len(z), np.log(kept / (1 - kept)))
    return np.asarray(eps_from_x(z, mixture().denoise(z, level), level)), fraction(z)


@pytest.mark.parametrize(("steps", "clip"), [(1, None), (2, None), (25, (-0.6, 0.6)), (38, None)])
def test_it_is_the_published_algorithm(x64, steps, clip):
    schedule = DdpmSchedule(num=200)
    how = {"schedule": schedule, "num_steps": steps, "solver": "iddpm", "clip": clip}
    x = jax.jit(lambda z: sample(both, KEY, z_init=z, **how))(Z)

    def draw(i):
        key = noise.fold_in(noise.as_threefry(KEY), i)
        return np.asarray(noise.normal(key, Z.shape, Z.dtype))

    desired = p_sample_loop(predict, np.linspace(1e-4, 0.02, 200), steps, Z, draw, clip)
    np.testing.assert_allclose(x, desired, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [3, 8, 250, 1000])
def test_time_steps(x64, steps):
    """Halves too, such as 499.5 between 0 and 999, are rounded as theirs."""
    schedule = DdpmSchedule()
    levels = ImprovedDdpm().grid(schedule, steps, jnp.float64)
    found = np.asarray(schedule.step(levels[:-1]))
    np.testing.assert_allclose(found, space_timesteps(1000, steps)[::-1], atol=1e-6)
    assert levels[-1] == schedule(jnp.zeros(()))
    assert num_evaluations("iddpm", steps) == steps


def test_the_exact_variance_makes_the_exact_marginal():
    """Of Gaussian data: what z_s is given z_t has a variance between the two."""
    data, schedule = Gaussian(0.0, 0.5), DdpmSchedule(num=8, beta_start=0.05, beta_end=0.4)
    levels = np.asarray(schedule(jnp.arange(1, 9) / 8), np.float64)
    alpha, sigma = (np.asarray(a, np.float64) for a in alpha_sigma(levels))
    total = (0.5 * alpha) ** 2 + sigma**2
    jump = alpha[1:] / alpha[:-1]
    exact = total[:-1] - (jump * total[:-1]) ** 2 / total[1:]
    spread = 1 - jump**2 * sigma[:-1] ** 2 / sigma[1:] ** 2  # large over sigma_t^2
    shares = np.log(exact / (spread * sigma[:-1] ** 2)) / np.log(sigma[1:] ** 2 / sigma[:-1] ** 2)
    assert ((shares > 0) & (shares < 1)).all()

    def told(z, logsnr):
        share = jnp.interp(logsnr, levels[:0:-1], shares[::-1])
        return data.denoise(z, logsnr), jnp.broadcast_to(share[:, None], z.shape)

    z_init = 1.0 * np.random.default_rng(1).normal(size=(40_000, 1)).astype(np.float32)
    z_init *= np.float32(total[-1] ** 0.5)
    how = {"schedule": schedule, "num_steps": 8, "solver": "iddpm", "return_trajectory": True}
    _, path = jax.jit(lambda z: sample(told, KEY, z_init=z, **how))(z_init)
    found = np.asarray(path[7], np.float64).std()  # at the first time step
    assert found == pytest.approx(total[0] ** 0.5, rel=0.012)  # 4 / sqrt(2 * 40,000)
    normal = scipy.stats.kstest(np.ravel(path[7]) / total[0] ** 0.5, "norm")
    assert normal.pvalue > 0.001


def test_mistakes():
    assert parse_solver("iddpm") in {ImprovedDdpm()}  # hashable, as a static argument
    how = {"num_steps": 2, "solver": "iddpm"}
    with pytest.raises(ValueError, match=r"returns \(x_hat, fraction of the variance\)"):
        sample(mixture().denoise, KEY, z_init=Z, schedule=DdpmSchedule(), **how)
    with pytest.raises(ValueError, match="is for the discrete noise levels of DDPM"):
        sample(both, KEY, z_init=Z, schedule=CosineSchedule(), **how)
    few = DdpmSchedule(num=10)
    for many in (11, np.int64(11)):
        with pytest.raises(ValueError, match="at most the 10 time steps; got 11"):
            sample(both, KEY, z_init=Z, schedule=few, num_steps=many, solver="iddpm")
    with pytest.raises(ValueError, match=r"returns \(x_hat, fraction of the variance\)"):
        sample(lambda *a: (*both(*a), 0), KEY, z_init=Z, schedule=DdpmSchedule(), **how)
    narrow = lambda z, logsnr: (mixture().denoise(z, logsnr), z[:, :1])  # noqa: E731
    with pytest.raises(ValueError, match="a fraction of z's shape"):
        sample(narrow, KEY, z_init=Z.astype(np.float32), schedule=DdpmSchedule(), **how)
    with pytest.raises(ValueError, match="encode needs a deterministic solver"):
        encode(mixture().denoise, Z, schedule=DdpmSchedule(), num_steps=2, solver="iddpm")
