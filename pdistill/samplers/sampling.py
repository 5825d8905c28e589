"""The one driver of all solvers: a `lax.scan` over a grid of noise levels."""

import itertools
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule, alpha_sigma
from pdistill.samplers import noise
from pdistill.samplers.solvers import Cascade, Ddim, Heun, Solver, Steps


def sample(
    denoise: Denoiser,
    key: Array | None,
    shape: Sequence[int] | None = None,
    *,
    schedule: Schedule,
    num_steps: int | None = None,
    times: Sequence[float] | None = None,
    solver: Solver = Ddim(),  # noqa: B008
    clip: tuple[float, float] | None = None,
    z_init: Array | None = None,
    last_step_is_x_hat: bool = True,
    return_trajectory: bool = False,
) -> Any:
    """Generates from noise: a solver on the grid t = 1, (N-1)/N, ..., 0 of `schedule`.

    Compile time and memory do not depend on `num_steps`. Works under jit, vmap and grad, and on
    sharded `z_init`.

    Args:
      denoise: (z [B, ...], logsnr [B]) -> x_hat [B, ...]; for a solver that `jumps`, a
        `diffusion.Jump`.
      key: PRNG key for the first noise and for stochastic solvers, or a key for each sample, [B]:
        then a sample depends on its own key only. May be None when `z_init` is given and the
        solver is deterministic.
      shape: [B, ...] of the samples; not needed with `z_init`.
      schedule: t in [0, 1] -> logsnr.
      num_steps: N >= 1 steps. Network evaluations are `num_evaluations(solver, num_steps)`.
      times: N + 1 falling times in [0, 1] instead of num_steps' equal ones; z_init is at the first.
      clip: (low, high) applied to x_hat at every evaluation, or None; of jumps, to the last alone.
      z_init: standard normal noise [B, ...] to start from instead of drawing it.
      last_step_is_x_hat: return x_hat at the last step, as Salimans & Ho 2022 do, instead of
        stepping to logsnr(0). On a schedule that ends at almost clean data (logsnr 20) this keeps
        every solver's order; on one that stops earlier it is the better image but not the flow's.
      return_trajectory: also return z at every grid point, [N + 1, B, ...], noise first.

    Returns:
      Samples [B, ...] in float32 or z_init's wider type, or (samples, trajectory).
    """
    if (num_steps is None) == (times is None):
        raise ValueError("give either num_steps or times")
    if times is not None:
        if any(earlier <= later for earlier, later in itertools.pairwise(times)):
            raise ValueError(f"times must fall; got {times}")
        num_steps = len(times) - 1
    if isinstance(solver, Cascade):
        raise ValueError("sample_cascade is what samples a cascade")
    check_steps(solver, num_steps)
    if key is None and (z_init is None or solver.stochastic):
        raise ValueError("key may be None only with z_init and a deterministic solver")
    key = None if key is None else noise.as_typed(key)
    if z_init is None:
        if shape is None:
            raise ValueError("give either shape or z_init")
        key, init_key = noise.split(key)
        z_init = noise.normal(init_key, tuple(shape), jnp.result_type(float))
    z = at_least_float32(z_init)
    if times is None:
        logsnrs = solver.grid(schedule, num_steps, z.dtype)
    else:
        logsnrs = schedule(jnp.asarray(times, z.dtype))
    if not solver.jumps:
        denoise = _clipped(denoise, clip)
    x, trajectory = _integrate(
        denoise, z, key, logsnrs, solver, last_step_is_x_hat, return_trajectory
    )
    if solver.jumps and clip is not None:
        x = jnp.clip(x, *clip)
    return (x, trajectory) if return_trajectory else x


def encode(
    denoise: Denoiser,
    x: Array,
    *,
    schedule: Schedule,
    num_steps: int,
    solver: Solver = Heun(),  # noqa: B008
    return_trajectory: bool = False,
) -> Any:
    """Data to noise along the probability-flow ODE: t = 0, 1/N, ..., 1.

    The inverse of `sample(..., last_step_is_x_hat=False)` with the same solver, up to its order;
    with the default last step `sample` differs from that by one more Euler step's local error.
    Starts from z_0 = alpha(0) x, the mean of z_0 given x. Nothing is clipped.

    Args:
      x: [B, ...]. solver: must be deterministic. Others as for `sample`.

    Returns:
      Noise [B, ...], or (noise, trajectory [N + 1, B, ...]).
    """
    check_steps(solver, num_steps)
    if solver.stochastic or solver.jumps:
        raise ValueError(f"encode needs a deterministic solver of denoisers; got {solver}")
    x = at_least_float32(x)
    logsnr = schedule(jnp.arange(num_steps + 1, dtype=x.dtype) / num_steps)
    alpha, _ = alpha_sigma(logsnr[0])
    z, trajectory = _integrate(denoise, alpha * x, None, logsnr, solver, False, return_trajectory)
    return (z, trajectory) if return_trajectory else z


def check_steps(solver: Solver | Cascade, num_steps: Steps) -> None:
    """That a solver can take so many steps, or a cascade so many at each level; else ValueError."""
    if isinstance(solver, Cascade):
        if not isinstance(num_steps, tuple) or not num_steps:
            raise ValueError(
                f"a cascade takes a tuple of steps, one for each level; got {num_steps!r}"
            )
        for steps in num_steps:
            check_steps(solver.solver, steps)
        return
    if isinstance(num_steps, tuple):
        raise ValueError(f"{solver.name} takes one count of steps, not a cascade's {num_steps}")
    if not isinstance(num_steps, numbers.Integral) or num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps!r}")
    if num_steps > solver.max_steps:
        raise ValueError(f"{solver.name} takes {solver.max_steps} step; got num_steps={num_steps}")


def num_evaluations(
    solver: Solver | Cascade, num_steps: Steps, last_step_is_x_hat: bool = True
) -> int:
    """Calls of the denoiser for one sample; the last step needs only x_hat by default.

    Of a cascade those of all levels, whatever their images' size.
    """
    if isinstance(solver, Cascade):
        return sum(num_evaluations(solver.solver, steps) for steps in num_steps)
    last = 1 if last_step_is_x_hat else solver.evaluations_per_step
    return (num_steps - 1) * solver.evaluations_per_step + last


def at_least_float32(a: Array) -> Array:
    """Noise levels and the state of a solver do not fit half precision."""
    a = jnp.asarray(a)
    return a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a


def _clipped(denoise: Denoiser, clip: tuple[float, float] | None) -> Denoiser:
    if clip is None:
        return denoise
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), *clip)


def _integrate(denoise, z, key, logsnrs, solver, last_step_is_x_hat, return_trajectory):
    """Scans the solver over the grid `logsnrs` [N + 1]: the end, and the trajectory or None."""
    num_steps = logsnrs.shape[0] - 1
    if num_steps == 1 and last_step_is_x_hat and not return_trajectory:
        # Without the loop's condition that its end is like its beginning: it may be larger.
        return solver.evaluate(denoise, z, *logsnrs, solver.init(z, logsnrs)), None

    def step(carry, inputs):
        z, memory = carry
        i, logsnr_t, logsnr_s, logsnr_k = inputs
        ahead = {"logsnr_k": logsnr_k} if solver.looks_ahead else {}
        step_key = None if key is None else noise.fold_in(key, i)
        x_hat = solver.evaluate(denoise, z, logsnr_t, logsnr_s, memory)

        def advance():
            return solver.step(denoise, z, x_hat, logsnr_t, logsnr_s, step_key, memory, **ahead)

        if last_step_is_x_hat:
            carry = jax.lax.cond(i == num_steps - 1, lambda: (x_hat, memory), advance)
        else:
            carry = advance()
        return carry, carry[0] if return_trajectory else None

    after = jnp.concatenate([logsnrs[2:], logsnrs[-1:]])  # the last step has none
    steps = (jnp.arange(num_steps), logsnrs[:-1], logsnrs[1:], after)
    (x, _), rest = jax.lax.scan(step, (z, solver.init(z, logsnrs)), steps)
    return x, jnp.concatenate([z[None], rest]) if return_trajectory else None
