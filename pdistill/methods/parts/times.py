"""Laws of the times and guidance weights of a batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import KarrasSchedule, Schedule
from pdistill.diffusion.schedules import SMALL, ends, known_ends


def uniform_times(key: Array, batch: int, stratified: bool, dtype=jnp.float32) -> Array:
    """Times in [0, 1): [batch], independent, or evenly spread from one random offset.

    The second (Kingma et al. 2021, appendix I.1) has the same expectation and less variance.
    """
    if not stratified:
        return jax.random.uniform(key, (batch,), dtype)
    t = (jnp.arange(batch, dtype=dtype) + jax.random.uniform(key, (), dtype)) / batch
    return jnp.minimum(t, 1 - jnp.finfo(dtype).epsneg)  # the last one may round to 1


def noise_levels(
    key: Array,
    batch: int,
    law: tuple[float, ...],
    schedule: Schedule,
    stratified: bool,
    dtype=jnp.float32,
) -> Array:
    """Log-SNRs [batch] within the schedule's, at `uniform_times` or by a law of noise.

    Args:
      law: mean and deviation of log(sigma / alpha), normal; () for uniform times.
    """
    u = uniform_times(key, batch, stratified, dtype)
    if not law:
        return schedule(u)
    normal = jax.scipy.special.ndtri(jnp.maximum(u, jnp.finfo(dtype).tiny))
    return normal_levels(normal, law, schedule)


def normal_levels(normal: Array, law: tuple[float, ...], schedule: Schedule) -> Array:
    """Log-SNRs within the schedule's of standard normal numbers; law as in `noise_levels`."""
    mean, deviation = law
    return jnp.clip(-2 * (mean + deviation * normal), *ends(schedule))


def shuffled_times(key: Array, batch: int, stratified: bool, dtype=jnp.float32) -> Array:
    """Times as `uniform_times`, in a random order: stratified ones do not go with others."""
    draw_key, order_key = jax.random.split(key)
    return jax.random.permutation(order_key, uniform_times(draw_key, batch, stratified, dtype))


def guidance_weights(
    key: Array, batch: int, interval: tuple[float, float], stratified: bool, dtype=jnp.float32
) -> Array:
    """Guidance weights in [low, high), as `shuffled_times`: [batch]."""
    low, high = interval
    return low + (high - low) * shuffled_times(key, batch, stratified, dtype)


def importance(guidance: Array, discount: float) -> Array:
    """Weight of examples with guidance w, (1 + w) ** -discount: guided errors grow with 1 + w."""
    return (1 + guidance) ** -discount


def within(name: str, levels: KarrasSchedule, teacher: Schedule) -> KarrasSchedule:
    """Levels that a teacher knows: of the default ones, EDM's, those that it does.

    Raises:
      ValueError: other levels are beyond the teacher's.
    """
    if levels == KarrasSchedule():
        levels = narrowed(levels, teacher)
    if narrowed(levels, teacher) != levels:
        least, most = (levels.data_std * math.exp(-end / 2) for end in known_ends(teacher)[::-1])
        of = "sigma / alpha" if levels.data_std == 1 else "data_std sigma / alpha"
        raise ValueError(
            f"{name}: the teacher knows {of} from {least:.3g} to {most:.3g}; set sigma_min and "
            "sigma_max within"
        )
    return levels


def narrowed(levels: KarrasSchedule, teacher: Schedule) -> KarrasSchedule:
    """The levels without those that the teacher does not know, see `known_ends`."""
    (low, high), (first, last) = known_ends(teacher), ends(levels)
    changes = {}
    if last > high + SMALL:
        changes["sigma_min"] = levels.data_std * math.exp(-high / 2)
    if first < low - SMALL:
        changes["sigma_max"] = levels.data_std * math.exp(-low / 2)
    return dataclasses.replace(levels, **changes)


def check_within(role: str, schedule: Schedule, teacher: Schedule) -> None:
    """Raises ValueError for the schedule of `role` if a teacher of another knows less."""
    (low, high), (first, last) = known_ends(teacher), ends(schedule)
    if schedule != teacher and (first < low - SMALL or last > high + SMALL):
        raise ValueError(
            f"{role}: its schedule has log-SNRs from {first:.3g} to {last:.3g}, of which the "
            f"teacher knows {low:.3g} to {high:.3g}; leave {role} out, or give one within"
        )


def check_law(name: str, law: tuple[float, ...]) -> None:
    """Raises ValueError unless a law is (mean, deviation) of a normal one, or empty."""
    if law and not (len(law) == 2 and math.isfinite(law[0]) and 0 < law[1] < math.inf):
        raise ValueError(f"{name} must be (mean, deviation) or empty; got {law}")


def check_interval(name: str, interval: tuple[float, ...], least: float, most: float) -> None:
    """Raises ValueError unless least <= low < high <= most."""
    if len(interval) != 2 or not least <= interval[0] < interval[1] <= most:
        raise ValueError(
            f"{name} must be (low, high) with {least:g} <= low < high <= {most:g}; got {interval}"
        )


def check_weights(name: str, interval: tuple[float, ...]) -> None:
    """Raises ValueError unless guidance weights are 0 <= low < high < infinity."""
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] < math.inf:
        raise ValueError(
            f"{name} must be (low, high), both finite, with 0 <= low < high; got {interval}"
        )
