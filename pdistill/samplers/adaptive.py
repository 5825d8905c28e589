"""The probability flow to a tolerance, by steps whose length its own error decides."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, RectifiedFlow, Schedule, alpha_sigma, expand, linear_time
from pdistill.samplers.sampling import at_least_float32

# Dormand and Prince (1980): the weights that each stage gives the slopes before it, of which the
# last ones are the step's; the error is the difference to the step of fourth order.
STAGES = (
    (1 / 5, 0, 0, 0, 0, 0, 0),
    (3 / 40, 9 / 40, 0, 0, 0, 0, 0),
    (44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
FIRST_STEP = 0.05  # of the way
SAFETY, SHORTER, LONGER = 0.9, 0.2, 10.0  # of a step's length after another


class Progress(NamedTuple):
    """A point of the flow: x_tau [B, ...] and its slope at tau; the next step, and tries so far."""

    x: Array
    slope: Array
    tau: Array
    step: Array
    tries: Array


def integrate(
    denoise: Denoiser,
    z: Array,
    *,
    schedule: Schedule,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    max_tries: int = 1000,
) -> tuple[Array, Array]:
    """Maps noise to data by the flow itself, to a tolerance: the truth that solvers approximate.

    On the linear path x_tau = (1 - tau) x + tau eps, where dx/dtau = eps_hat - x_hat, by Dormand
    and Prince's pair of fifth and fourth order, "dopri5". The default tolerances are those of SiT's
    code (Ma et al. 2024). The last bit, of a tau at which rounding is as large, is x_hat.

    Args:
      denoise: (z [B, ...], logsnr [B]) -> x_hat; for a model, `Model.denoiser`.
      z: standard normal noise [B, ...]. schedule: its ends alone are used.
      rtol, atol: a step's error of each example, over atol + rtol |x|, has at most a root mean
        square of one; all examples have the steps of the worst.
      max_tries: steps, taken or not, after which it gives up; it does at once where x_hat is NaN.

    Returns:
      (samples [B, ...] in the wider of z's type and float32, evaluations of the denoiser []).
      Samples are NaN where it gave up.
    """
    z = at_least_float32(z)
    least = float(jnp.finfo(z.dtype).eps) ** 0.4
    end, begin = linear_time(schedule(jnp.array([0, 1], z.dtype)))
    end = jnp.maximum(end, least)

    def image(x: Array, tau: Array) -> Array:
        logsnr = RectifiedFlow()(tau)
        alpha, sigma = alpha_sigma(logsnr)
        return denoise((alpha + sigma) * x, jnp.broadcast_to(logsnr, x.shape[:1])).astype(x.dtype)

    def slope(x: Array, tau: Array) -> Array:
        return (x - image(x, tau)) / tau

    alpha, sigma = alpha_sigma(schedule(jnp.ones((), z.dtype)))
    x, none = z / (alpha + sigma), jnp.zeros((), jnp.int32)
    start = Progress(x, slope(x, begin), begin, FIRST_STEP * (begin - end), none)
    at = jax.lax.while_loop(
        lambda at: (at.tau > end) & (at.tries < max_tries) & jnp.isfinite(at.step),
        lambda at: _attempt(at, slope, end, rtol, atol),
        start,
    )
    x = jnp.where(at.tau > end, jnp.nan, image(at.x, end))
    return x, 2 + len(STAGES) * at.tries


def _attempt(
    at: Progress, slope: Callable[[Array, Array], Array], end: Array, rtol: float, atol: float
) -> Progress:
    """Steps from a point, not below `end`: to the next one if the error is small, else nowhere."""
    stages, h = jnp.array(STAGES, at.x.dtype), jnp.minimum(at.step, at.tau - end)

    def stage(i: Array, slopes: Array) -> Array:
        there = at.x - h * _weighted(stages[i], slopes)
        return slopes.at[i + 1].set(slope(there, at.tau - jnp.sum(stages[i]) * h))

    slopes = jnp.zeros((len(STAGES) + 1, *at.x.shape), at.x.dtype).at[0].set(at.slope)
    slopes = jax.lax.fori_loop(0, len(STAGES), stage, slopes)
    x = at.x - h * _weighted(stages[-1], slopes)
    error = h * _weighted(jnp.array(ERROR, x.dtype), slopes)
    error = _largest(error / (atol + rtol * jnp.maximum(abs(at.x), abs(x))))
    moved = at._replace(x=x, slope=slopes[-1], tau=jnp.where(h < at.step, end, at.tau - h))
    at = jax.tree.map(lambda a, b: jnp.where(error <= 1, a, b), moved, at)
    step = h * jnp.clip(SAFETY * error**-0.2, SHORTER, LONGER)
    return at._replace(step=step, tries=at.tries + 1)


def _weighted(weights: Array, slopes: Array) -> Array:
    """Sum of slopes [n, B, ...] by weights [n]; on GPUs a product of matrices has fewer digits."""
    return jnp.sum(expand(weights, slopes) * slopes, axis=0)


def _largest(error: Array) -> Array:
    """Largest root mean square of an example's numbers [B, ...]."""
    return jnp.sqrt(jnp.max(jnp.mean(jnp.square(error.reshape(len(error), -1)), axis=1)))
