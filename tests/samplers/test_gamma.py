"""Gamma sampling: levels, variances and correlations on Gaussian data with exact jumps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import samplers
from pdistill.diffusion import CosineSchedule, Gaussian, KarrasSchedule, alpha_sigma, expand
from pdistill.samplers import Gamma, ddim_step, parse_solver

SCHEDULE = KarrasSchedule()
DATA = Gaussian(0.3, 0.5)
NUM = 200_000


def tau(logsnr):
    """sigma / alpha."""
    return np.exp(-np.asarray(logsnr) / 2)


@functools.partial(jax.jit, static_argnames=("gamma", "num_steps", "times"))
def draw(key, z, gamma, num_steps=None, times=None):
    return samplers.sample(
        DATA.flow, key, z_init=z, schedule=SCHEDULE, num_steps=num_steps, times=times,
        solver=Gamma(gamma), return_trajectory=True,
    )  # fmt: skip


@pytest.fixture
def start(x64):
    """z at sigma / alpha = 80, of its exact law."""
    alpha, sigma = alpha_sigma(SCHEDULE(jnp.ones(())))
    noise = jax.random.normal(jax.random.key(0), (NUM, 1))
    return alpha * DATA.mean + jnp.hypot(alpha * DATA.std, sigma) * noise


@pytest.mark.parametrize(
    ("gamma", "correlation"), [(0.0, 1.0), (0.3, 0.851), (0.7, 0.325), (1.0, 0.0001)]
)
def test_moments_and_correlation(start, gamma, correlation):
    """docs/methods/ctm.md, A7: every gamma keeps the law; what is left of the first noise."""
    x, _ = draw(jax.random.key(1), start, gamma, 6)
    error = 4 / np.sqrt(NUM)  # four standard errors
    std = np.hypot(DATA.std, SCHEDULE.sigma_min)
    np.testing.assert_allclose(np.mean(x), DATA.mean, atol=error * std)
    np.testing.assert_allclose(np.std(x), std, rtol=error)
    actual = np.corrcoef(np.ravel(start), np.ravel(x))[0, 1]
    np.testing.assert_allclose(actual, correlation, atol=5e-4 + error)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_levels_and_noise_of_each_step(x64, gamma):
    """The released code's form, with the last level as its sigma_min."""
    calls = []

    def jump(z, logsnr_t, logsnr_s):
        jax.debug.callback(lambda t, s: calls.append((tau(t[0]), tau(s[0]))), logsnr_t, logsnr_s)
        alpha, _ = alpha_sigma(expand(logsnr_s, z))
        return jnp.zeros_like(z) * alpha  # lands at 0, so that z is the noise alone

    z = jnp.ones((100_000, 1))
    _, trajectory = jax.jit(
        lambda key: samplers.sample(
            jump, key, z_init=z, schedule=SCHEDULE, num_steps=3, solver=Gamma(gamma),
            return_trajectory=True,
        )
    )(jax.random.key(0))  # fmt: skip
    jax.effects_barrier()
    grid = tau(SCHEDULE(jnp.arange(3, -1, -1) / 3))
    landings = np.sqrt(1 - gamma**2) * (grid[1:] - grid[-1]) + grid[-1]
    np.testing.assert_allclose(calls, np.stack([grid[:-1], landings], -1), rtol=1e-12)
    alpha = 1 / np.hypot(1, grid[1:])
    stds = alpha * np.sqrt(grid[1:] ** 2 - landings**2)
    stds[-1] = 0  # the last step adds no noise
    np.testing.assert_allclose(np.std(trajectory[1:], axis=(1, 2)), stds, rtol=0.01)


def test_any_list_of_times_and_two_jumps(start):
    """Two indices of the 40 grid: to T_36 in one jump, up to T_20, and down."""
    low, high = 1 - 36 / 39, 1 - 20 / 39
    sigma_low, sigma_high = (float(tau(SCHEDULE(t))) for t in (low, high))
    keep = (sigma_low - SCHEDULE.sigma_min) / (sigma_high - SCHEDULE.sigma_min)
    gamma = float(np.sqrt(1 - keep**2))
    x, trajectory = draw(jax.random.key(2), start, gamma, times=(1.0, high, 0.0))
    assert len(trajectory) == 3
    np.testing.assert_allclose(np.std(x), np.hypot(DATA.std, 0.002), rtol=4 / np.sqrt(NUM))
    ratio = np.hypot(DATA.std, sigma_low) / np.hypot(DATA.std, sigma_high)
    actual = np.corrcoef(np.ravel(start), np.ravel(x))[0, 1]
    np.testing.assert_allclose(actual, ratio, atol=4 / np.sqrt(NUM))


def test_two_steps_of_the_papers_grid(x64):
    np.testing.assert_allclose(
        tau(SCHEDULE(jnp.array([1, 0.5, 0]))), [80, 2.5152, 0.002], rtol=1e-5
    )


def test_without_noise_it_is_ddim(x64):
    """The jump of a denoiser, with gamma 0, is DDIM on the same grid."""

    def jump(z, logsnr_t, logsnr_s):
        t, s = expand(logsnr_t, z), expand(logsnr_s, z)
        return ddim_step(z, DATA.denoise(z, logsnr_t), t, s)

    z = jax.random.normal(jax.random.key(0), (8, 3))
    run = functools.partial(
        jax.jit(
            samplers.sample,
            static_argnums=0,
            static_argnames=("schedule", "num_steps", "solver", "last_step_is_x_hat"),
        ),
        key=None, z_init=z, schedule=CosineSchedule(), num_steps=5,
    )  # fmt: skip
    desired = run(DATA.denoise, last_step_is_x_hat=False)
    np.testing.assert_allclose(run(jump, solver=Gamma()), desired, rtol=1e-12)


def test_clip_is_for_the_end(x64):
    """A jump passes noise beyond the range on; the image is clipped."""
    z = 3 * jnp.ones((2, 1))
    x, trajectory = samplers.sample(
        lambda z, t, s: z, None, z_init=z, schedule=SCHEDULE, num_steps=2, solver=Gamma(),
        clip=(-1.0, 1.0), return_trajectory=True,
    )  # fmt: skip
    assert trajectory[:-1].max() == 3
    np.testing.assert_array_equal(x, trajectory[-1])
    assert x.max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 2, "times": (1.0, 0.0)}, "either num_steps or times"),
        ({}, "either num_steps or times"),
        ({"times": (0.0, 1.0)}, "times must fall"),
        ({"times": (1.0, 0.5, 0.5, 0.0)}, "times must fall"),
        ({"times": (1.0,)}, "at least two"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(DATA.flow, None, z_init=jnp.ones((1, 1)), schedule=SCHEDULE, **options)


def test_encode_takes_no_jumps():
    assert [Gamma(gamma).stochastic for gamma in (0.0, 0.5, 1.0)] == [False, True, True]
    with pytest.raises(ValueError, match="solver of denoisers"):
        samplers.encode(DATA.flow, jnp.ones((1, 1)), schedule=SCHEDULE, num_steps=1, solver=Gamma())


def test_names():
    assert parse_solver("gamma") == Gamma(0.0)
    assert parse_solver("gamma:0.25") == Gamma(0.25)
    for text in ("gamma:2", "gamma:x", "ddim:0.5"):
        with pytest.raises(ValueError):
            parse_solver(text)
