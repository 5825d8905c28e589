"""Numbers of a sampler's steps, and of the evaluations that they take."""

import itertools
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.samplers.names import parse_solver
from pdistill.samplers.solvers import Cascade, Solver, Steps


def count_steps(
    solver: Solver, num_steps: Array | int | None, times: Sequence[float] | None
) -> Array | int:
    """Checks `sample`'s num_steps or times, and returns the number of steps."""
    if isinstance(solver, Cascade):
        raise ValueError("use sample_cascade for a cascade; sample has one resolution")
    if (num_steps is None) == (times is None):
        raise ValueError("give either num_steps or times")
    if times is not None:
        falling = all(earlier > later for earlier, later in itertools.pairwise(times))
        if not (falling and all(0 <= t <= 1 for t in times)):
            raise ValueError(f"times must fall, in [0, 1]; got {times}")
        if len(times) < 2:
            raise ValueError(f"times must be at least two, those of one step; got {times}")
        num_steps = len(times) - 1
    if isinstance(num_steps, jax.core.Tracer):
        return num_steps
    check_steps(solver, num_steps, from_noise=times is None or times[0] == 1)
    return int(num_steps)


def check_steps(solver: Solver | Cascade, num_steps: Steps, from_noise: bool = True) -> None:
    """Checks that a solver can take `num_steps` steps: one count, or a tuple for a cascade.

    A solver's least number is of steps from noise; from a noisy image it can take one.

    Raises:
      ValueError: it cannot.
    """
    if isinstance(solver, Cascade):
        if not isinstance(num_steps, tuple) or not num_steps:
            raise ValueError(
                "a cascade takes a tuple of steps, one count a resolution, such as 8+4+2; got "
                f"{num_steps!r}"
            )
        for steps in num_steps:
            check_steps(solver.solver, steps)
        return
    if isinstance(num_steps, tuple):
        raise ValueError(f"{solver.name} takes one count of steps, not a cascade's {num_steps}")
    num_steps = check_count(num_steps)
    if num_steps > solver.max_steps:
        raise ValueError(f"{solver.name} takes {solver.max_steps} step; got num_steps={num_steps}")
    if from_noise and num_steps < solver.min_steps:
        raise ValueError(
            f"{solver.name} takes at least {solver.min_steps} steps; got num_steps={num_steps}"
        )


def check_count(num_steps: Array | int) -> int:
    """Returns a number of steps; ValueError if it is less than one, or no whole number."""
    if isinstance(num_steps, Array) and jnp.issubdtype(num_steps.dtype, jnp.integer):
        num_steps = int(num_steps)
    whole = isinstance(num_steps, numbers.Integral)
    if not whole or num_steps < 1:
        what = "" if whole else ", which is no whole number"
        raise ValueError(f"num_steps must be at least 1; got {num_steps!r}{what}")
    return num_steps


def num_evaluations(
    solver: Solver | Cascade | str, num_steps: Steps, last_step_is_x_hat: bool = True
) -> int:
    """Number of calls of the denoiser for one sample; the last step needs only x_hat by default.

    A cascade's calls are counted at all resolutions, whatever the size of their images.

    Raises:
      ValueError: a cascade has one count, or another solver several.
    """
    solver = parse_solver(solver)
    if isinstance(solver, Cascade) != isinstance(num_steps, tuple | list):
        of = "a count a resolution" if isinstance(solver, Cascade) else "one count"
        raise ValueError(f"{solver.name} takes {of} of steps; got {num_steps!r}")
    if isinstance(solver, Cascade):
        return sum(num_evaluations(solver.solver, steps) for steps in num_steps)
    last = 1 if last_step_is_x_hat else solver.evaluations_per_step
    return (num_steps - 1) * solver.evaluations_per_step + last
