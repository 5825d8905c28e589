"""Cascades: images of rising resolution, each made on the condition of the smaller one before."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule
from pdistill.samplers import noise
from pdistill.samplers.sampling import sample
from pdistill.samplers.solvers import Cascade

# The first resolution's key has this number, away from the numbers that a key is split into.
FIRST_LEVEL = 1000


class LowRes(NamedTuple):
    """Images of the resolution below, on which those of the next one are made.

    Attributes:
      image: [B, h, w, C], with noise. logsnr: log-SNR of that noise, [B].
    """

    image: Array
    logsnr: Array


class Level(NamedTuple):
    """One resolution of a cascade.

    Attributes:
      size: pixels a side.
      schedule: noise schedule of its images.
      denoiser: condition, or None at the first resolution -> denoiser of images that go with it.
    """

    size: int
    schedule: Schedule
    denoiser: Callable[[LowRes | None], Denoiser]


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
    """Generates small images, then at each larger resolution images that go with those before.

    Each resolution starts from noise of its own. With one resolution this is `sample`, to the bit.

    Args:
      levels: the resolutions, smallest first.
      key: as for `sample`.
      shape: [B, H, W, C], the shape of the largest images.
      num_steps: steps of `solver.solver` at each resolution.
      solver: the cascade's solver and the noise on its conditions.
      clip: as for `sample`.
      return_levels: return the images of all resolutions.

    Returns:
      Images [B, H, W, C], or a list of [B, h, w, C].

    Raises:
      ValueError: there are not as many step counts as resolutions, `shape` has another size than
        the largest, or the solver is no `Cascade`.
    """
    _check(levels, shape, num_steps, solver)
    batch, *_, channels = shape
    key = noise.as_threefry(key)
    made, condition = [], None
    for i, (level, steps) in enumerate(zip(levels, num_steps, strict=True)):
        level_key = key
        if made:
            noise_key, level_key = noise.split(noise.fold_in(key, FIRST_LEVEL + i))
            std = jnp.full(batch, solver.noise, made[-1].dtype)
            condition = with_noise(noise_key, made[-1], std)
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


def _check(levels: Sequence[Level], shape: Sequence[int], num_steps: Sequence[int], solver) -> None:
    """Raises ValueError for arguments of `sample_cascade` that do not go together."""
    if not isinstance(solver, Cascade):
        raise ValueError(
            f"sample_cascade takes a cascade's solver, such as samplers.Cascade(); got {solver!r}"
        )
    if len(num_steps) != len(levels):
        sizes = [level.size for level in levels]
        raise ValueError(
            f"the cascade has {len(levels)} resolutions, {sizes} pixels: "
            f"give as many step counts, not {tuple(num_steps)}"
        )
    if tuple(shape[1:-1]) != (levels[-1].size,) * 2:
        raise ValueError(
            f"the cascade makes images of {levels[-1].size} pixels a side; got the shape {shape}"
        )


def with_noise(key: Array, x: Array, std: Array) -> LowRes:
    """Adds noise of standard deviation std [B] to images x [B, h, w, C], for a condition.

    The condition is x + std eps with the log-SNR -2 log std, infinite without noise. This is the
    conditioning augmentation of cascaded diffusion models (Ho et al. 2021), by which a resolution
    that was trained on real images takes generated ones.

    Raises:
      ValueError: std is not [B].
    """
    if std.shape != x.shape[:1]:
        raise ValueError(f"std must be [B] for images [B, h, w, C]; got {std.shape} and {x.shape}")
    eps = noise.normal(key, x.shape, x.dtype)
    return LowRes(x + std.astype(x.dtype)[:, None, None, None] * eps, -2 * jnp.log(std))
