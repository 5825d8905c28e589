"""A cascade: images of rising resolution, each made on the condition of the one before."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule
from pdistill.samplers import noise
from pdistill.samplers.sampling import sample
from pdistill.samplers.solvers import Cascade

# Number of the first level's key: out of the way of those that a key is split into.
FIRST_LEVEL = 1000

# Images of the level before [B, h, w, C], with noise, and the log-SNR of that noise [B].
Condition = tuple[Array, Array]


class Level(NamedTuple):
    """One resolution of a cascade.

    Attributes:
      size: pixels a side. schedule: of its noise.
      denoiser: a condition, or None at the first level -> the denoiser of such images.
    """

    size: int
    schedule: Schedule
    denoiser: Callable[[Condition | None], Denoiser]


def sample_cascade(
    levels: Sequence[Level],
    key: Array,
    shape: Sequence[int],
    *,
    num_steps: Sequence[int],
    solver: Cascade,
    clip: tuple[float, float] | None = None,
    return_levels: bool = False,
) -> Array | list[Array]:
    """Generates at the first level, then at each of the others what goes with the level before.

    Each level starts from noise of its own. One level alone is `sample`, to the bit.

    Args:
      levels: smallest first. key: as for `sample`. shape: [B, H, W, C] of the last level's images.
      num_steps: of each level; its network evaluations are those of `solver.solver`.
      clip: as for `sample`. return_levels: return the images of all levels.

    Returns:
      Images [B, H, W, C], or a list of [B, h, w, C].

    Raises:
      ValueError: there are not as many step counts as levels, or images are of another size.
    """
    if len(num_steps) != len(levels):
        raise ValueError(
            f"the cascade has {len(levels)} levels, of {[level.size for level in levels]} pixels; "
            f"give as many step counts, not {tuple(num_steps)}"
        )
    batch, *sides, channels = shape
    if tuple(sides) != (levels[-1].size,) * 2:
        raise ValueError(f"the last level makes images of {levels[-1].size} pixels; got {shape}")
    key = noise.as_typed(key)
    made, condition = [], None
    for i, (level, steps) in enumerate(zip(levels, num_steps, strict=True)):
        level_key = key
        if made:
            noise_key, level_key = noise.split(noise.fold_in(key, FIRST_LEVEL + i))
            condition = with_noise(noise_key, made[-1], jnp.full(batch, solver.noise))
        x = sample(
            level.denoiser(condition),
            level_key,
            (batch, level.size, level.size, channels),
            schedule=level.schedule,
            num_steps=steps,
            solver=solver.solver,
            clip=clip,
        )
        made.append(x)
    return made if return_levels else made[-1]


def with_noise(key: Array, x: Array, std: Array) -> Condition:
    """The condition x + std eps for images x [B, h, w, C]; std [B] is known by logsnr -2 log std.

    The conditioning augmentation of cascaded diffusion models (Ho et al. 2021), so that a level
    that was trained on real images takes generated ones. Without noise the log-SNR is infinite.
    """
    eps = noise.normal(key, x.shape, x.dtype)
    return x + std.astype(x.dtype)[:, None, None, None] * eps, -2 * jnp.log(std)
