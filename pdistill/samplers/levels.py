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
        return schedule(jnp.asarray(times, dtype)).__getitem__
    if isinstance(num_steps, jax.core.Tracer):
        return lambda i: solver.level(schedule, i, num_steps, dtype)
    return solver.grid(schedule, num_steps, dtype).__getitem__


def told_from_data(
    level: Callable[[Array], Array], num_steps: Array | int
) -> Callable[[Array], Array]:
    """The levels with a last one, the cleanest, at which eps_hat is not all rounding.

    eps_hat there has the rounding of z by 1 / sigma, and a step between it and the level s by
    sigma_s / sigma. At log-SNR 20, or 10 above s, that is at most 1e-3 in single precision; z is
    alpha x to 2e-9 of it, or to less than such a step errs by.
    """

    def bounded(i: Array) -> Array:
        bound = jnp.maximum(CLEANEST, level(jnp.asarray(num_steps) - 1) + 10)
        return jnp.where(i == num_steps, jnp.minimum(level(i), bound), level(i))

    return bounded
