"""Laws of the jumps that a flow map learns: from which noise level to which."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri

from pdistill.diffusion import Schedule, angle, logsnr_of_angle
from pdistill.diffusion.guidance import acting
from pdistill.diffusion.schedules import SMALL, ends
from pdistill.methods.parts.times import check_law, normal_levels, shuffled_times
from pdistill.networks import Conditioning

ENDS = ("ordered", "sorted", "below", "gap", "data", "dyadic")
STEPS = 16  # that a map with a `least` takes at most: a card has each count
CUTS = ("half", "shrinking", "sigmoid", "ect", "ict")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpLaw:
    """The law of a jump's levels, from t to s, both log-SNRs within the schedule's.

    Attributes:
      level: mean and deviation of log(sigma / alpha) at t, normal: that is a lognormal sigma for
        EDM and consistency models, and a logit-normal time for rectified flows. () for times that
        are uniform in the schedule's.
      to: "ordered", a second level, and s is the less noisy of it and t; "sorted", also t is the
        noisier of the two; "below", uniform in the angle from the clean end to t; "gap", s by
        `level`, of the levels from which t, so far above it as `end` says, is not beyond noise
        (terminal velocity matching); "data", the schedule's clean end; "dyadic", one of 1, 2, 4,
        ... `most` equal steps from 1 to 0 in the schedule's time, each count as often, and at
        s = t one of 2 `most` times, 1 / (2 `most`) to 1 (shortcut models).
      least: lowest log(sigma / alpha) of t, if not (); what `level` draws below is there.
      end: for "ordered" and "sorted" as `level`, of the second level; () for the same law, by which
        both are sorted. For "gap" the mean and deviation of the logit of the way in rectified
        flow's time, sigma / (alpha + sigma).
      stratified: uniform times of t, and the uniform share of "below", are evenly spread over the
        batch, as `shuffled_times`.
      instantaneous: fraction of a batch with s = t, where a flow map is the velocity.
      most: largest count of steps for "dyadic", a power of two.
      still: mean and deviation, as `level`, where s = t; () for the law of the other t.
      border: weight of the jumps that begin at `least`, where a map below says the target.
    """

    level: tuple[float, ...] = ()
    least: tuple[float, ...] = ()
    to: str = "ordered"
    end: tuple[float, ...] = ()
    stratified: bool = False
    instantaneous: float = 0.0
    most: int = 128
    border: float = 1.0
    still: tuple[float, ...] = ()

    def __post_init__(self):
        if self.to not in ENDS:
            raise ValueError(f"jumps.to must be one of {', '.join(ENDS)}; got {self.to!r}")
        for name in ("level", "end", "still"):
            check_law(f"jumps.{name}", getattr(self, name))
        if self.least and not (len(self.least) == 1 and self.level and self.to == "data"):
            raise ValueError(
                f"jumps.least is one number, for a level and to='data'; got {self.least}"
            )
        if not 0 < self.border < math.inf or (self.border != 1 and not self.least):
            raise ValueError(
                f"jumps.border is a positive weight where jumps.least is; got {self.border}"
            )
        if self.to == "gap" and not (self.level and self.end):
            raise ValueError("jumps.to='gap' needs a level, of s, and an end, of the way")
        if self.end and self.to not in ("ordered", "sorted", "gap"):
            raise ValueError(
                "jumps.end is for to='ordered', 'sorted' and 'gap'; "
                f"got {self.end} with {self.to!r}"
            )
        if self.still and (self.to == "dyadic" or not self.instantaneous):
            raise ValueError(
                "jumps.still is the law where s = t, unless that is of 'dyadic' times: set "
                "jumps.instantaneous, or leave it out"
            )
        if self.stratified and (self.level or self.to == "dyadic"):
            raise ValueError("jumps.stratified is for times that are uniform: leave level out")
        if not 0 <= self.instantaneous <= 1:
            raise ValueError(f"jumps.instantaneous must be in [0, 1]; got {self.instantaneous}")
        if self.most < 1 or self.most & self.most - 1:
            raise ValueError(f"jumps.most must be a power of two; got {self.most}")

    def check_batch(self, num: int) -> None:
        """Raises ValueError for so few jumps that one of the two kinds is left out."""
        if 0 < self.instantaneous < 1 and not 0 < self.count_same(num) < num:
            raise ValueError(
                f"loop.batch_size: {num} jumps, of which a fraction of {self.instantaneous:g} has "
                "no length (jumps.instantaneous), are not of both kinds; take a larger batch"
            )

    def count_same(self, num: int) -> int:
        """Number of `num` jumps with s = t."""
        return round(self.instantaneous * num)

    def weights(self, t: Array) -> Array:
        """Weights of jumps from log-SNRs t, [B] each: 1, but `border` at the level of `least`."""
        if not self.least:
            return jnp.ones_like(t)
        return jnp.where(t == -2 * self.least[0], self.border, jnp.ones_like(t))

    def check_within(self, schedule: Schedule) -> None:
        """Raises ValueError for a `least` beyond a schedule's levels."""
        least, most = (-end / 2 for end in ends(schedule)[::-1])
        if self.least and not least - SMALL / 2 <= self.least[0] <= most + SMALL / 2:
            raise ValueError(
                f"jumps.least is a log(sigma / alpha) of the schedule, in {least:.3g} .. "
                f"{most:.3g}; got {self.least[0]:g}"
            )

    def most_steps(self, schedule: Schedule) -> int:
        """The most equal steps of a schedule's time, up to `STEPS`, that begin at `least` or above.

        0 for any, without a `least`.
        """
        if not self.least:
            return 0
        with jax.ensure_compile_time_eval():
            last = schedule(1 / jnp.arange(1, STEPS + 1))
            return int(jnp.sum(last <= -2 * self.least[0] + SMALL))

    def draw(self, key: Array, num: int, schedule: Schedule, dtype=jnp.float32):
        """Log-SNRs at t and s, [num] each; of the first `instantaneous` they are equal."""
        first_key, second_key = jax.random.split(key)
        if self.to == "dyadic":
            t, s = self._steps(first_key, second_key, num, schedule, dtype)
        elif self.to == "gap":
            t, s = self._gap(first_key, second_key, num, schedule, dtype)
        else:
            t = self._first(first_key, num, schedule, dtype)
            t, s = self._second(second_key, t, schedule)
        same, still_key = jnp.arange(num) < self.count_same(num), jax.random.fold_in(key, 2)
        if self.to == "dyadic":
            count = jax.random.randint(still_key, (num,), 1, 2 * self.most + 1).astype(dtype)
            t = jnp.where(same, schedule(count / (2 * self.most)), t)
        elif self.still:
            t = jnp.where(same, _level(still_key, self.still, num, schedule, dtype), t)
        return t, jnp.where(same, t, s)

    def _first(self, key: Array, num: int, schedule: Schedule, dtype) -> Array:
        """Log-SNRs at t, [num]."""
        if self.level:
            drawn = _level(key, self.level, num, schedule, dtype)
            return jnp.minimum(drawn, -2 * self.least[0]) if self.least else drawn
        return schedule(shuffled_times(key, num, self.stratified, dtype))

    def _second(self, key: Array, t: Array, schedule: Schedule) -> tuple[Array, Array]:
        """Log-SNRs at t and s, [num] each, from those of a first level."""
        clean = jnp.full_like(t, ends(schedule)[1])
        if self.to == "data":
            return t, clean
        if self.to == "below":
            share = shuffled_times(key, len(t), self.stratified, t.dtype)
            return t, logsnr_of_angle(angle(clean) + share * (angle(t) - angle(clean)))
        s = _level(key, self.end or self.level, len(t), schedule, t.dtype)
        keep = self.to == "ordered" and self.end
        return t if keep else jnp.minimum(t, s), jnp.maximum(t, s)

    def _steps(self, count_key: Array, step_key: Array, num: int, schedule: Schedule, dtype):
        """Log-SNRs at both ends of one of 1, 2, 4, ... equal steps, [num] each."""
        powers = 1 + int(math.log2(self.most))
        count = 2.0 ** jax.random.randint(count_key, (num,), 0, powers).astype(dtype)
        step = 1 + jnp.floor(count * jax.random.uniform(step_key, (num,), dtype))
        return schedule(step / count), schedule((step - 1) / count)

    def _gap(self, way_key: Array, end_key: Array, num: int, schedule: Schedule, dtype):
        """Log-SNRs at t and s, [num] each: logits of t in rectified flow's time are -logsnr / 2."""
        (mean, deviation), (middle, spread) = self.level, self.end
        way = jax.nn.sigmoid(middle + spread * jax.random.normal(way_key, (num,), dtype))
        most = ndtr((-jnp.log(way / (1 - way)) - mean) / deviation)  # of s there is below 1 - way
        share = most * jax.random.uniform(end_key, (num,), dtype, jnp.finfo(dtype).tiny)
        logit = mean + deviation * ndtri(jnp.maximum(share, jnp.finfo(dtype).tiny))
        s = jax.nn.sigmoid(logit)
        t = jnp.log((s + way) / jnp.maximum(1 - way - s, jnp.finfo(dtype).tiny))
        return tuple(jnp.clip(-2 * a, *ends(schedule)) for a in (t, logit))


def _level(key: Array, law: tuple[float, ...], num: int, schedule: Schedule, dtype) -> Array:
    """Log-SNRs [num] with log(sigma / alpha) by a normal law, or at uniform times without one."""
    if not law:
        return schedule(jax.random.uniform(key, (num,), dtype))
    return normal_levels(jax.random.normal(key, (num,), dtype), law, schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """The law of a level u between t and s, at which a jump is cut in two.

    Attributes:
      at: "half" of the way in the angle (progressive distillation, shortcut models); "shrinking",
        the whole way at first and `least` in the end, with an exponential between (SoFlow's l);
        "sigmoid", the whole way at first and `least` in the end, with a sigmoid of
        steepness 25 between (AlphaFlow); "ect", where sigma / alpha is that of t times
        1 - q^-(stage + 1) (1 + 8 sigmoid(-sigma / alpha)), not beyond s (Geng et al. 2024); "ict",
        one step further on EDM's grid of 10 * 2^stage + 1 levels from 80 to 0.002 (Song & Dhariwal
        2023).
      least: smallest fraction of the way, for "shrinking" and "sigmoid".
      q, stages: as above; `stage` grows that many times in the run, from `first`.
    """

    at: str = "half"
    least: float = 1e-3
    q: float = 2.0
    stages: int = 8
    first: int = 0

    def __post_init__(self):
        if self.at not in CUTS:
            raise ValueError(f"between.at must be one of {', '.join(CUTS)}; got {self.at!r}")
        if not (0 < self.least < 1 < self.q and self.stages >= 1 and self.first >= 0):
            raise ValueError(
                f"between needs 0 < least < 1 < q, stages >= 1 and first >= 0; got {self}"
            )

    @property
    def moves(self) -> bool:
        """Whether the law changes in the course of a run."""
        return self.at in ("shrinking", "sigmoid") or (self.at != "half" and self.stages > 1)

    def way(self, t: Array, s: Array, progress: Array) -> Array:
        """The angle from t to u, [B], between log-SNRs t and s [B]; progress is 0 to 1 in a run."""
        whole = angle(t) - angle(s)
        if self.at == "half":
            return whole / 2
        if self.at == "shrinking":
            return whole * self.least**progress
        if self.at == "sigmoid":
            return whole * jnp.maximum(jax.nn.sigmoid(25 * (0.5 - progress)), self.least)
        stage, sigma = self.first + jnp.floor(progress * self.stages), jnp.exp(-t / 2)
        if self.at == "ict":
            step = (80 ** (1 / 7) - 0.002 ** (1 / 7)) / (10 * 2**stage)
            lower = jnp.maximum(sigma ** (1 / 7) - step, 0.0) ** 7
        else:
            left = self.q ** -(stage + 1) * (1 + 8 * jax.nn.sigmoid(-sigma))
            lower = sigma * jnp.maximum(1 - left, 0.0)
        way = jnp.arctan((sigma - lower) / (1 + sigma * lower))  # atan(sigma) - atan(lower)
        return jnp.minimum(way, whole)


class Rows(NamedTuple):
    """Jumps of a batch: z [B, ...] at log-SNRs t [B], to s [B], and the velocity v at z.

    The student is told `told`; w [B] are the weights of guidance, None without, and levels [B, 2]
    the log-SNRs between which they act, None for all.
    """

    z: Array
    v: Array
    t: Array
    s: Array
    told: Conditioning
    w: Array | None = None
    levels: Array | None = None

    def told_at(self, logsnr: Array) -> Conditioning:
        """The conditioning of a velocity at log-SNRs [B]: with the weight that acts there."""
        w = self.told.guidance
        w = None if w is None else acting(w, self.levels, logsnr)
        return self.told.replace(guidance=w, guidance_levels=None)
