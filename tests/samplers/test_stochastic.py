"""The sampler that steps twice forward and once back, on N(0, 0.4^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule, Gaussian, alpha_sigma, angle
from pdistill.samplers import Stochastic, num_evaluations, sample

SCHEDULE = CosineSchedule()
STD = 0.4
DENOISE = Gaussian(0.0, STD).denoise
NUM = 100_000
TOLERANCE = 4 / np.sqrt(2 * NUM)  # four standard errors of a standard deviation


def draw(denoise, num_steps, num=NUM, **options):
    return sample(
        denoise, jax.random.key(0), (num, 1), schedule=SCHEDULE, num_steps=num_steps,
        solver=Stochastic(), **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num_steps", "std"),
    [(2, 0.1379310), (4, 0.2111617), (8, 0.2533354), (16, 0.3062695), (64, 0.3715810)],
)
def test_variance_of_the_undistilled_denoiser(x64, num_steps, std):
    """docs/methods/guided.md, G8: the recursion of variances, as standard deviations."""
    np.testing.assert_allclose(jnp.std(draw(DENOISE, num_steps)), std, rtol=TOLERANCE)


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_an_exact_jump_keeps_the_marginals(x64, num_steps):
    """docs/methods/guided.md, G8: double steps that land on the flow end at the data's law."""
    levels = SCHEDULE(jnp.arange(num_steps + 1, dtype=jnp.float32) / num_steps)

    def jump(z, logsnr):
        i = jnp.argmin(jnp.abs(levels[:, None] - logsnr[None]), axis=0)
        target = levels[jnp.maximum(i - 2, 0)]
        (alpha_t, sigma_t), (alpha_k, sigma_k) = alpha_sigma(logsnr), alpha_sigma(target)
        scale = jnp.sqrt((alpha_k * STD) ** 2 + sigma_k**2) / jnp.sqrt(
            (alpha_t * STD) ** 2 + sigma_t**2
        )
        ratio = sigma_k / sigma_t
        return ((scale - ratio) / (alpha_k - ratio * alpha_t))[:, None] * z

    np.testing.assert_allclose(jnp.std(draw(jump, num_steps)), STD, rtol=TOLERANCE)


def test_it_calls_the_network_once_at_each_time(x64):
    seen = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda l: seen.append(float(l[0])), logsnr)
        return DENOISE(z, logsnr)

    draw(denoise, 4, num=1)
    jax.effects_barrier()
    times = np.sort((angle(jnp.array(seen)) - angle(SCHEDULE(0.0))) * 2 / np.pi)[::-1]
    np.testing.assert_allclose(times, [1, 0.75, 0.5, 0.25], atol=1e-3)
    assert num_evaluations(Stochastic(), 4) == 4


def test_one_step_is_the_denoiser():
    z = jnp.array([[0.3], [-1.0]])
    x = sample(
        DENOISE, jax.random.key(0), schedule=SCHEDULE, num_steps=1, solver=Stochastic(), z_init=z
    )
    np.testing.assert_allclose(x, DENOISE(z, SCHEDULE(jnp.ones(2))), rtol=1e-6)


def test_it_needs_a_key():
    with pytest.raises(ValueError, match="key may be None only"):
        sample(
            DENOISE,
            None,
            schedule=SCHEDULE,
            num_steps=2,
            solver=Stochastic(),
            z_init=jnp.ones((1, 1)),
        )
