"""Generators of a few network evaluations, for methods that differentiate their images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule, diffuse
from pdistill.methods.parts.given import check_given, jumps
from pdistill.networks import Conditioning, Network
from pdistill.samplers import ddim_step


def begin_generator(
    key: Array,
    teacher: Network,
    start: Network | None,
    *,
    scratch: bool,
    changes: Mapping[str, Any],
) -> Network:
    """The network that a generator starts as, "start" or else the teacher: without dropout.

    Args:
      teacher: a network that the method has checked.
      scratch: fresh parameters; only then may `changes` say other arguments of the module.

    Raises:
      ValueError: a network that it cannot start from; changes without `scratch`.
    """
    check_given(start or teacher, "start", one_step=True)
    if start and jumps(start) and not scratch:
        raise ValueError(
            "start jumps, and a generator would begin as its denoiser instead: start from a "
            "generator or from the teacher, or set scratch"
        )
    if changes and not scratch:
        raise ValueError("another network starts from scratch; set scratch")
    start = (start or teacher).without_dropout().unguided()
    return start.with_module(changes).init(key) if scratch else start


def generate_few(denoise: Denoiser, z: Array, schedule: Schedule, num_steps: int = 1) -> Array:
    """Images that `samplers.sample` makes of noise z [B, ...] in DDIM steps, unrolled; no clipping.

    One step is x_hat at the largest noise. Unrolled, because gradients of convolutions are slow in
    a loop on CPUs, and few steps compile quickly.
    """
    for i in range(num_steps, 0, -1):
        logsnr_t, logsnr_s = schedule(jnp.array([i, i - 1], z.dtype) / num_steps)
        x_hat = denoise(z, jnp.broadcast_to(logsnr_t, z.shape[:1]))
        if i > 1:
            z = ddim_step(z, x_hat, logsnr_t, logsnr_s)
    return x_hat


def simulate_inputs(
    generator: Callable[[Conditioning], Denoiser],
    levels: Sequence[float],
    x: Array,
    told: Conditioning,
    key: Array,
) -> tuple[Array, Array]:
    """Inputs of a generator of these levels in training (backward simulation).

    The images have the levels in turn. Above the first one an input is what the generator itself
    makes of pure noise down to there, noised anew (DMD2, section 4.5; there all images of an update
    have one level, which is drawn), as `samplers.Multistep` does.

    Args:
      generator: conditioning -> the denoiser. levels: logsnr, rising; they divide B.
      x: images, whose shape [B, ...] and dtype the inputs have. told: conditioning of the B images.

    Returns:
      Inputs like x, and their levels [B].
    """
    num = len(levels)
    levels = jnp.array(levels, x.dtype)
    z = jax.random.normal(jax.random.fold_in(key, 0), x.shape, x.dtype)
    in_turn = lambda a: a.reshape(-1, num, *a.shape[1:])  # noqa: E731
    flat = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731
    z = in_turn(z)
    for i in range(1, num):
        behind = z[:, i:]  # at the level before
        denoise = generator(jax.tree.map(lambda a, i=i: flat(in_turn(a)[:, i:]), told))
        before = jnp.broadcast_to(levels[i - 1], behind.shape[:2])
        x_hat = denoise(flat(behind), flat(before)).reshape(behind.shape)
        eps = jax.random.normal(jax.random.fold_in(key, i), behind.shape, x.dtype)
        z = z.at[:, i:].set(diffuse(x_hat, eps, levels[i]))
    return flat(z), jnp.tile(levels, len(z))


def generator_solver(levels: tuple[float, ...]) -> str:
    """Name of the solver of a generator of these levels, for `samplers.parse_solver`."""
    if len(levels) <= 1:
        return "one_step"
    return f"multistep:{','.join(f'{level:g}' for level in levels)}"
