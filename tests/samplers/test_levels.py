"""Encoding and sampling to the end of every schedule, in single precision, by the exact flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import Gaussian
from pdistill.model import SCHEDULES
from pdistill.samplers import encode, parse_solver, sample
from pdistill.samplers.levels import bounded, levels_of, told_from_data

MEAN, STD = 0.3, 0.7
NUM_STEPS = 64
X = np.linspace(-1.5, 1.5, 7)[:, None]
# Largest errors of z and of x after 64 steps there and back, twice those measured on any schedule.
SOLVERS = {
    "ddim": (0.25, 0.3),
    "heun": (0.005, 2e-4),
    "dpmpp_2m": (0.05, 0.2),
    "edm": (0.016, 8e-4),
}


def flow(z, logsnr_t, logsnr_s):
    """The Gaussian's flow from one log-SNR to another, in double precision."""

    def moments(logsnr):
        alpha, sigma = (1 / np.sqrt(1 + np.exp(-sign * logsnr)) for sign in (1, -1))
        return alpha * MEAN, np.hypot(alpha * STD, sigma)

    (mean_t, std_t), (mean_s, std_s) = moments(logsnr_t), moments(logsnr_s)
    return mean_s + std_s / std_t * (z - mean_t)


@pytest.mark.parametrize("name", SCHEDULES)
def test_data_to_noise_and_back_on_every_schedule(name):
    schedule, denoise = SCHEDULES[name](), Gaussian(MEAN, STD).denoise
    settings = {"schedule": schedule, "num_steps": NUM_STEPS}
    for solver, (of_z, of_x) in SOLVERS.items():
        there = functools.partial(encode, denoise, solver=solver, **settings)
        back = functools.partial(
            sample, denoise, None, solver=solver, last_step_is_x_hat=False, **settings
        )
        z, x = jax.jit(lambda x, there=there, back=back: ((z := there(x)), back(z_init=z)))(
            jnp.asarray(X, jnp.float32)
        )
        grid = parse_solver(solver).grid(schedule, NUM_STEPS, jnp.float32)
        noisiest, cleanest = float(grid[0]), min(float(grid[-1]), 40.0)
        alpha, sigma = 1 / np.sqrt(1 + np.exp(-cleanest)), 1 / np.sqrt(1 + np.exp(noisiest))
        exact = flow(alpha * X, cleanest, noisiest) / (sigma if solver == "edm" else 1)
        np.testing.assert_allclose(z, exact, rtol=0, atol=of_z, err_msg=solver)
        np.testing.assert_allclose(x, alpha * X, rtol=0, atol=of_x, err_msg=solver)


@pytest.mark.parametrize(
    ("levels", "last"),
    [((-9, 0, 12), 12), ((-60, 0, 60), 20), ((-60, 5, 21), 20), ((-60, 18, 60), 28)],
)
def test_the_last_level_is_told_from_data(levels, last):
    """At most 20, or 10 above the one before; the others stay."""
    found = told_from_data(jnp.asarray(levels, jnp.float32).__getitem__, 2)
    assert [float(found(jnp.asarray(i))) for i in range(3)] == [*levels[:2], last]
    assert float(bounded(*jnp.asarray(levels[:0:-1], jnp.float32))) == last


def test_levels_of_counts_and_times():
    """A traced count has those of a known one; times have the schedule's."""
    schedule, solver = SCHEDULES["linear_logsnr"](-6.0, 6.0), parse_solver("ddim")

    def levels(num_steps, times=None):
        level = levels_of(solver, schedule, num_steps, times, jnp.float32)
        return jnp.stack([level(jnp.asarray(i)) for i in range(4)])

    np.testing.assert_allclose(levels(3), [-6, -2, 2, 6], rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.jit(levels)(3), levels(3), rtol=0, atol=1e-6)
    np.testing.assert_allclose(levels(3, (1.0, 0.75, 0.25, 0.0)), [-6, -3, 3, 6], atol=1e-6)
