"""The stochastic sampler of SiT (Ma et al. 2024), Euler-Maruyama on the linear path."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import alpha_sigma, eps_from_x, linear_time
from pdistill.samplers.noise import normal
from pdistill.samplers.solvers import Solver


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on x_tau = (1 - tau) x + tau eps, as SiT's published samples are drawn.

    With t = 1 - tau, dx = (x_hat - eps_hat - w / tau eps_hat) dt + sqrt(2 w) dW has the marginals
    of the flow for any diffusion coefficient w. As in transport/integrators.py of their code, with
    w = tau ("sigma"),

        x_s = x_t + h (x_hat - 2 eps_hat) + sqrt(2 tau_t h) noise,  h = tau_t - tau_s

    The first N - 1 steps, of N > 1, are equally long in the schedule's time, which is tau itself
    for `RectifiedFlow`, and end at `last`. The last one goes to tau = 0 without noise (their
    "Mean"): x_hat - tau eps_hat. On other schedules the steps are those of the same path, x_tau
    being z / (alpha + sigma) and tau sigma / (alpha + sigma). It needs dozens of steps:
    after two the deviation of data of 0.7 is 1.75, after 32 it is 0.70.

    Attributes:
      last: the schedule's time that is left for the last step.
    """

    last: float = 0.04
    name = "euler_maruyama"
    stochastic = True
    min_steps = 2  # one from noise would return it

    def __post_init__(self):
        if not 0 < self.last < 1:
            raise ValueError(f"last must be between 0 and 1; got {self.last}")

    def level(self, schedule, i, num_steps, dtype):
        part = i.astype(dtype) / jnp.maximum(num_steps - 1, 1).astype(dtype)
        return schedule(jnp.where(i == num_steps, 0, 1 - (1 - self.last) * part))

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        tau = linear_time(logsnr_t)
        h = tau - linear_time(logsnr_s)
        noise = jnp.sqrt(2 * tau * h) * normal(key, z.shape, z.dtype)
        return (alpha_s + sigma_s) * (_mean(z, x_hat, logsnr_t, h) + noise), memory

    def end(self, z, x_hat, logsnr_t):
        return _mean(z, x_hat, logsnr_t, linear_time(logsnr_t))


def _mean(z: Array, x_hat: Array, logsnr: Array, h: Array) -> Array:
    """Mean of x_tau after a step of length h."""
    alpha, sigma = alpha_sigma(logsnr)
    return z / (alpha + sigma) + h * (x_hat - 2 * eps_from_x(z, x_hat, logsnr))
