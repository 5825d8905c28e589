"""The driver of all solvers, a loop over a grid of noise levels."""

import inspect
from collections.abc import Sequence
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.diffusion import Denoiser, DenoiserWithVariance, Jump, Schedule, alpha_sigma
from pdistill.samplers import noise
from pdistill.samplers.counts import check_steps, count_steps
from pdistill.samplers.levels import levels_of, told_from_data
from pdistill.samplers.names import parse_solver
from pdistill.samplers.solvers import Ddim, Heun, Solver

Sampled = Denoiser | Jump | DenoiserWithVariance


@overload
def sample(
    denoise: Sampled,
    key: Array | None,
    shape: Sequence[int] | None = None,
    *,
    schedule: Schedule,
    num_steps: Array | int | None = None,
    times: Sequence[float] | None = None,
    solver: Solver | str = ...,
    clip: tuple[float, float] | None = None,
    z_init: Array | None = None,
    last_step_is_x_hat: bool = True,
    return_trajectory: Literal[False] = False,
) -> Array: ...


@overload
def sample(
    denoise: Sampled,
    key: Array | None,
    shape: Sequence[int] | None = None,
    *,
    schedule: Schedule,
    num_steps: Array | int | None = None,
    times: Sequence[float] | None = None,
    solver: Solver | str = ...,
    clip: tuple[float, float] | None = None,
    z_init: Array | None = None,
    last_step_is_x_hat: bool = True,
    return_trajectory: Literal[True],
) -> tuple[Array, Array]: ...


def sample(
    denoise: Sampled,
    key: Array | None,
    shape: Sequence[int] | None = None,
    *,
    schedule: Schedule,
    num_steps: Array | int | None = None,
    times: Sequence[float] | None = None,
    solver: Solver | str = Ddim(),  # noqa: B008
    clip: tuple[float, float] | None = None,
    z_init: Array | None = None,
    last_step_is_x_hat: bool = True,
    return_trajectory: bool = False,
) -> Array | tuple[Array, Array]:
    """Generates samples from noise, by a solver on the grid t = 1, (N-1)/N, ..., 0 of `schedule`.

    `Edm`, `EulerMaruyama`, `ImprovedDdpm` and `Multistep` have noise levels of their own. Compile
    time and memory do not depend on `num_steps`. Works under jit, vmap and grad, and on sharded
    `z_init`.

    Args:
      denoise: (z [B, ...], logsnr [B]) -> x_hat [B, ...]; for a solver that `jumps`, a
        `diffusion.Jump`; for `ImprovedDdpm`, a `diffusion.DenoiserWithVariance`.
      key: PRNG key for the first noise and for stochastic solvers, or a key for each sample, [B]:
        then a sample depends on its own key only. May be None when `z_init` is given and the
        solver is deterministic.
      shape: [B, ...], not needed with `z_init`. schedule: t in [0, 1] -> logsnr.
      num_steps: N >= 1 steps. Network evaluations are `num_evaluations(solver, num_steps)`. A
        traced integer is not checked: one compiled program takes all counts, and it has no
        reverse-mode gradient.
      times: N + 1 falling times in [0, 1] instead of num_steps' equal ones; z_init is at the first.
      solver: the rule for one step, or its name, as in `parse_solver`; see `samplers.SOLVERS`.
      clip: range (low, high) that x_hat is clipped to at every evaluation, or None; for jumps, only
        the last image is clipped.
      z_init: standard normal noise [B, ...] to start from, or images with noise of the first time.
      last_step_is_x_hat: return x_hat at the last step, as Salimans & Ho 2022 do, or what
        `Solver.end` makes of it, instead of stepping to logsnr(0). On a schedule that ends at
        almost clean data (logsnr 20) this keeps every solver's order; on one that stops earlier it
        is the better image but not the flow's. Steps end at logsnr 20, or 10 above the one before.
      return_trajectory: also return z at every grid point, [N + 1, B, ...], noise first, x last.

    Returns:
      Samples [B, ...] in float32 or z_init's wider type, or (samples, trajectory).

    Raises:
      ValueError: arguments contradict each other or are out of range, `key` is a seed, or x_hat
        has another shape than z.
    """
    solver = parse_solver(solver)
    num_steps = count_steps(solver, num_steps, times)
    key, z = _start(key, shape, z_init, solver)
    level = levels_of(solver, schedule, num_steps, times, z.dtype)
    level = level if last_step_is_x_hat or solver.jumps else told_from_data(level, num_steps)
    denoise = _prepared(denoise, solver, clip)
    pure = times is None or times[0] == 1  # or else z_init is an image with noise
    z = z * solver.prior_std(level(jnp.asarray(0))) if pure else z
    ends = last_step_is_x_hat, return_trajectory
    x, trajectory = _integrate(denoise, z, key, level, num_steps, solver, *ends)
    x, trajectory = _clipped_end(x, trajectory, clip) if solver.jumps else (x, trajectory)
    return (x, trajectory) if return_trajectory else x


def _prepared(denoise: Sampled, solver: Solver, clip: tuple[float, float] | None) -> Sampled:
    """The denoiser, clipped, or the jump; ValueError for what cannot be called as the latter."""
    _check_clip(clip)
    if solver.model == "variance":
        return _with_variance(denoise, clip, solver.name)
    if not solver.jumps:
        return _clipped(denoise, clip)
    try:
        inspect.signature(denoise).bind("z", "logsnr_t", "logsnr_s")
    except ValueError:  # it has no signature that Python knows
        pass
    except TypeError as error:
        raise ValueError(
            f"{solver.name} is for jumps, (z, logsnr_t, logsnr_s) -> z at s, see diffusion.Jump: "
            f"{error}; for a denoiser take another solver, such as 'ddim'"
        ) from error
    return denoise


def _check_clip(clip: tuple[float, float] | None) -> None:
    """Raises ValueError for numbers that are no range; those of a traced program are not known."""
    traced = any(isinstance(end, jax.core.Tracer) for end in jax.tree.leaves(clip))
    if clip is None or traced:
        return
    low, high = np.asarray(clip) if isinstance(clip, Array) else clip
    if low is None or high is None:  # which `jnp.clip` takes, too
        return
    if not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"clip must be (low, high) or None; got {clip}")


def _start(
    key: Array | None, shape: Sequence[int] | None, z_init: Array | None, solver: Solver
) -> tuple[Array | None, Array]:
    """Returns the key of `sample`'s steps and the noise that they start from, drawn or z_init."""
    if key is None and (z_init is None or solver.stochastic):
        raise ValueError("key may be None only with z_init and a deterministic solver")
    key = None if key is None else noise.as_threefry(key)
    if z_init is None:
        if shape is None:
            raise ValueError("give either shape or z_init")
        _check_key(key, shape)
        key, init_key = noise.split(key)
        return key, noise.normal(init_key, tuple(shape), jnp.float32)
    z_init = at_least_float32(z_init)
    if shape is not None and tuple(shape) != z_init.shape:
        raise ValueError(f"shape {tuple(shape)} is not z_init's {z_init.shape}; leave it out")
    if key is not None:
        _check_key(key, z_init.shape)
    return key, z_init


def _check_key(key: Array, shape: Sequence[int]) -> None:
    """Raises ValueError for keys that are not one for each sample."""
    if key.shape not in ((), tuple(shape[:1])):
        raise ValueError(
            f"key must be one key, or one for each of the {shape[0]} samples; got {key.shape}"
        )


@overload
def encode(
    denoise: Denoiser,
    x: Array,
    *,
    schedule: Schedule,
    num_steps: int,
    solver: Solver | str = ...,
    return_trajectory: Literal[False] = False,
) -> Array: ...


@overload
def encode(
    denoise: Denoiser,
    x: Array,
    *,
    schedule: Schedule,
    num_steps: int,
    solver: Solver | str = ...,
    return_trajectory: Literal[True],
) -> tuple[Array, Array]: ...


def encode(
    denoise: Denoiser,
    x: Array,
    *,
    schedule: Schedule,
    num_steps: int,
    solver: Solver | str = Heun(),  # noqa: B008
    return_trajectory: bool = False,
) -> Array | tuple[Array, Array]:
    """Maps data to noise along the probability-flow ODE: t = 0, 1/N, ..., 1, or a solver's grid.

    The inverse of `sample(..., last_step_is_x_hat=False)` with the same solver, up to its order;
    with the default last step `sample` differs from that by one more Euler step's local error.
    Starts from z_0 = alpha(0) x, the mean of z_0 given x; where the grid begins at cleaner data
    than log-SNR 20, which single precision does not tell from x, there, or at 10 above the second
    level. Nothing is clipped.

    Args:
      x: data [B, ...]. solver: a deterministic one, or its name. Others as for `sample`.

    Returns:
      Noise [B, ...], or (noise, trajectory [N + 1, B, ...]).

    Raises:
      ValueError: the solver draws noise, jumps or is of one step, or num_steps is impossible.
    """
    solver = parse_solver(solver)
    check_steps(solver, num_steps)
    if solver.stochastic or solver.model != "denoiser":
        raise ValueError(
            f"encode needs a deterministic solver of denoisers, such as heun; got {solver}"
        )
    x = at_least_float32(x)
    level = told_from_data(levels_of(solver, schedule, num_steps, None, x.dtype), num_steps)
    alpha, _ = alpha_sigma(level(jnp.asarray(num_steps)))
    ends = False, return_trajectory
    z, trajectory = _integrate(
        denoise, alpha * x, None, lambda i: level(num_steps - i), num_steps, solver, *ends
    )
    z = z / solver.prior_std(level(jnp.asarray(0)))
    return (z, trajectory) if return_trajectory else z


def at_least_float32(a: Array) -> Array:
    """Casts half precision to float32, as the noise levels and the state of a solver need it.

    Raises:
      ValueError: `a` is of whole numbers.
    """
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(
            f"data and noise must be floating point, image / 127.5 - 1 of uint8; got {a.dtype}"
        )
    return a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a


def _clipped(denoise: Denoiser, clip: tuple[float, float] | None) -> Denoiser:
    if clip is None:
        return denoise
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), *clip)


def _clipped_end(
    x: Array, trajectory: Array | None, clip: tuple[float, float] | None
) -> tuple[Array, Array | None]:
    """The last image of jumps, clipped, and the trajectory that it ends."""
    if clip is None:
        return x, trajectory
    x = jnp.clip(x, *clip)
    return x, trajectory if trajectory is None else trajectory.at[-1].set(x)


def _with_variance(
    denoise: DenoiserWithVariance, clip: tuple[float, float] | None, name: str
) -> DenoiserWithVariance:
    """The denoiser, clipped, with a ValueError for one that does not say a variance."""

    def call(z: Array, logsnr: Array) -> tuple[Array, Array]:
        made = denoise(z, logsnr)
        if not isinstance(made, tuple) or len(made) != 2:
            raise ValueError(
                f"{name} is for a denoiser that returns (x_hat, fraction of the variance), see "
                "diffusion.DenoiserWithVariance; for another one take another solver, such as "
                "'ancestral'"
            )
        x_hat, fraction = made
        return x_hat if clip is None else jnp.clip(x_hat, *clip), fraction

    return call


def _checked(denoise: Sampled, larger: bool, variance: bool) -> Sampled:
    """The function that is sampled, with a ValueError for results that are not of z's shape.

    With `larger` only the number of images and of axes must be the same.
    """

    def check(z: Array, a: Array, name: str) -> Array:
        found = getattr(a, "shape", type(a).__name__)
        fits = found == z.shape or (
            larger and hasattr(a, "ndim") and (a.ndim, found[:1]) == (z.ndim, z.shape[:1])
        )
        if not fits:
            raise ValueError(
                f"denoise must return {name} of z's shape {z.shape}; it returned {found}"
            )
        return jnp.asarray(a, z.dtype)

    def call(z: Array, *levels: Array) -> Array | tuple[Array, Array]:
        made = denoise(z, *levels)
        if variance:
            return check(z, made[0], "x_hat"), check(z, made[1], "a fraction")
        return check(z, made, "x_hat")

    return call


def _integrate(denoise, z, key, level, num_steps, solver, last_step_is_x_hat, return_trajectory):
    """Loops the solver over levels 0 .. num_steps; returns the end, and trajectory or None."""
    counted = isinstance(num_steps, jax.core.Tracer)
    at_once = not counted and num_steps == 1 and last_step_is_x_hat and not return_trajectory
    denoise = _checked(denoise, larger=at_once, variance=solver.model == "variance")
    memory = solver.init(z, level(jnp.asarray(num_steps)), num_steps)

    def evaluate(i, z, logsnr_t, logsnr_s, memory):
        """x_hat of a step's perturbed beginning, which it returns too, with the step's key."""
        step_key = None if key is None else noise.fold_in(key, i)
        z, logsnr_t = solver.perturb(z, logsnr_t, step_key, memory)
        return solver.evaluate(denoise, z, logsnr_t, logsnr_s, memory), z, logsnr_t, step_key

    if at_once:
        # Outside a loop, the end may be larger than the beginning.
        levels = (level(jnp.asarray(i)) for i in range(2))
        x_hat, z, logsnr_t, _ = evaluate(0, z, *levels, memory)
        return solver.end(z, x_hat, logsnr_t), None

    def step(i, carry):
        z, memory = carry
        logsnr_t, logsnr_s = level(i), level(i + 1)
        after = jnp.minimum(i + 2, num_steps)  # the last step has none
        ahead = {"logsnr_k": level(after)} if solver.looks_ahead else {}
        x_hat, z, logsnr_t, step_key = evaluate(i, z, logsnr_t, logsnr_s, memory)

        def advance():
            return solver.step(denoise, z, x_hat, logsnr_t, logsnr_s, step_key, memory, **ahead)

        if last_step_is_x_hat:
            end = lambda: (solver.end(z, x_hat, logsnr_t), memory)  # noqa: E731
            return jax.lax.cond(i == num_steps - 1, end, advance)
        return advance()

    if counted:
        if return_trajectory:
            raise ValueError("a trajectory has a fixed number of steps; num_steps is traced")
        return jax.lax.fori_loop(0, num_steps, step, (z, memory))[0], None

    def kept(carry, i):
        carry = step(i, carry)
        return carry, carry[0] if return_trajectory else None

    (x, _), rest = jax.lax.scan(kept, (z, memory), jnp.arange(num_steps))
    return x, jnp.concatenate([z[None], rest]) if return_trajectory else None
