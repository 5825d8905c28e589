"""Noise levels of a solver's steps, as functions of the number of steps taken."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Schedule
from pdistill.samplers.solvers import Solver

CLEANEST = 20.0  # log-SNR of z that single precision tells from x


def levels_of(
    solver: Solver,
    schedule: Schedule,
    num_steps: Array | int,
    times: Sequence[float] | None,
    dtype: jnp.dtype,
) -> Callable[[Array], Array]:
    """The noise level after i steps, as a function of i; times replace the solver's own."""
    if times is not None:
        return jnp.maximum(schedule(jnp.asarray(times, dtype)), solver.noisiest).__getitem__
    if isinstance(num_steps, jax.core.Tracer):
        return lambda i: solver.level(schedule, i, num_steps, dtype)
    return solver.grid(schedule, num_steps, dtype).__getitem__


def told_from_data(
    level: Callable[[Array], Array], num_steps: Array | int
) -> Callable[[Array], Array]:
    """The levels after i of N steps towards data, of which the last one is `bounded`."""

    def told(i: Array) -> Array:
        last = bounded(level(i), level(jnp.asarray(num_steps) - 1))
        return jnp.where(i == num_steps, last, level(i))

    return told


def bounded(logsnr: Array, noisier: Array) -> Array:
    """The level of almost clean data, or one next to a noisier level at which eps_hat is no noise.

    eps_hat has the rounding of z by 1 / sigma, 1e-3 in single precision at log-SNR 20, and a step
    between the levels multiplies it by the ratio of their sigmas, 148 at most. z is alpha x to 2e-9
    of it, or to less than such a step errs by.
    """
    return jnp.minimum(logsnr, jnp.maximum(CLEANEST, noisier + 10))
