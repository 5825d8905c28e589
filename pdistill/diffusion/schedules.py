"""Noise schedules, decreasing functions of t in [0, 1] to logsnr; t = 0 is data, t = 1 noise.

A schedule is any callable of that form. These are frozen dataclasses, so they hash, compare and
can be static arguments of jit. t may have any shape; float64 in gives float64 out.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion.predictions import as_float

Schedule = Callable[[Array], Array]
SMALL = 1e-3  # of log-SNRs: ends that are the same may round differently


def _check_range(logsnr_min: float, logsnr_max: float) -> None:
    if not -math.inf < logsnr_min < logsnr_max < math.inf:
        raise ValueError(
            f"logsnr_min must be below logsnr_max, both finite; got {logsnr_min} and {logsnr_max}"
        )


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """Cosine schedule with trimmed ends, alpha = cos(a t + b) (Salimans & Ho 2022).

    With b = arctan(exp(-logsnr_max / 2)) and a + b = arctan(exp(-logsnr_min / 2)),
    logsnr(t) = -2 log tan(a t + b) + shift. `shift` is 2 log(base / resolution) for images
    larger than the base the schedule was made for (Hoogeboom et al. 2023, simple diffusion);
    logsnr_min and logsnr_max are the ends before the shift.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def __post_init__(self):
        _check_range(self.logsnr_min + self.shift, self.logsnr_max + self.shift)

    def __call__(self, t: Array) -> Array:
        t = jnp.asarray(t)
        start = math.atan(math.exp(-self.logsnr_max / 2))
        rest = math.atan(math.exp(self.logsnr_min / 2))  # pi/2 minus the angle at t = 1
        slope = math.pi / 2 - rest - start
        # tan near pi/2 loses 1e-3 in float32; measure the angle from the nearer end instead.
        early = -2 * jnp.log(jnp.tan(slope * jnp.minimum(t, 0.5) + start))
        late = 2 * jnp.log(jnp.tan(slope * (1 - jnp.maximum(t, 0.5)) + rest))
        return jnp.where(t > 0.5, late, early) + self.shift

    def shifted(self, logsnr: float) -> "CosineSchedule":
        """The schedule with so much more log-SNR at every time."""
        return dataclasses.replace(self, shift=self.shift + logsnr)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """Times of a rectified flow, x_t = (1 - t) x + t eps (Liu et al. 2022; Lipman et al. 2022).

    logsnr(t) = 2 log((1 - t) / t) - 2 log(shift): on a grid of equal t, as many steps are spent on
    more noise for a shift above one, at tau = shift t / (1 + (shift - 1) t) (Esser et al. 2024,
    section 5.3.2; 3 for SD3). The ends are clipped at (1 - t) / t = e^30 and e^-30, so that logsnr
    is never infinite: z there is the data's or the noise's to 1e-13, and logsnr(0) and logsnr(1)
    are 60 and -60 without a shift.

    Attributes:
      shift: the factor a, in [0.001, 1000].
    """

    shift: float = 1.0

    def __post_init__(self):
        if not 1e-3 <= self.shift <= 1e3:
            raise ValueError(f"shift must be in [0.001, 1000]; got {self.shift}")

    def __call__(self, t: Array) -> Array:
        t, least = jnp.asarray(t), math.exp(-30)
        ratio = jnp.log(jnp.maximum(1 - t, least)) - jnp.log(jnp.maximum(t, least))
        return 2 * ratio - 2 * math.log(self.shift)

    def shifted(self, logsnr: float) -> "RectifiedFlow":
        """The schedule with so much more log-SNR at every time."""
        return dataclasses.replace(self, shift=self.shift * math.exp(-logsnr / 2))


@dataclasses.dataclass(frozen=True)
class LinearBetaSchedule:
    """Continuous limit of DDPM's linear betas (Ho et al. 2020; Song et al. 2021, VP SDE).

    alpha^2 = exp(-(beta_min s + (beta_max - beta_min) s^2 / 2)) with s = t_min + (1 - t_min) t,
    so logsnr = -log(expm1(...)). 1,000 DDPM betas from 1e-4 to 0.02 are beta_min = 0.1 and
    beta_max = 20; t_min > 0 keeps logsnr finite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max < inf; got {self}"
            )
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must be between 0 and 1; got {self}")

    def __call__(self, t: Array) -> Array:
        s = self.t_min + (1 - self.t_min) * jnp.asarray(t)
        return -jnp.log(jnp.expm1(self.beta_min * s + (self.beta_max - self.beta_min) / 2 * s**2))


@dataclasses.dataclass(frozen=True)
class KarrasSchedule:
    """EDM's grid of noise levels (Karras et al. 2022, eq. 5), as a schedule.

    sigma^(1 / rho) grows linearly in t from sigma_min to sigma_max, and logsnr is
    -2 log(sigma / data_std): the log-SNR of x + sigma eps for data of standard deviation data_std,
    which is scaled to one. With data_std = 1, sigma from 80 to 0.002 is logsnr from -8.8 to 12.4.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    data_std: float = 1.0

    def __post_init__(self):
        positive = all(0 < number < math.inf for number in (self.rho, self.data_std))
        if not 0 < self.sigma_min < self.sigma_max < math.inf or not positive:
            raise ValueError(
                "the schedule must have 0 < sigma_min < sigma_max, rho > 0 and data_std > 0, all "
                f"finite; got {self}"
            )

    def __call__(self, t: Array) -> Array:
        low, high = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        root = low + (high - low) * jnp.asarray(t)
        return -2 * (self.rho * jnp.log(root) - math.log(self.data_std))


@dataclasses.dataclass(frozen=True)
class LinearLogsnrSchedule:
    """Linear schedule, logsnr from logsnr_max to logsnr_min: the grid that suits DPM-Solver++."""

    logsnr_min: float = -6.0
    logsnr_max: float = 6.0

    def __post_init__(self):
        _check_range(self.logsnr_min, self.logsnr_max)

    def __call__(self, t: Array) -> Array:
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * jnp.asarray(t)


@dataclasses.dataclass(frozen=True)
class DdpmSchedule:
    """Discrete noise levels of DDPM: time step i = 0 .. num - 1 is at t = (i + 1) / num.

    alpha^2 of step i is the product of 1 - beta up to i. Between the steps logsnr is linear in t,
    and so it goes on below the first one.

    Attributes:
      betas: "linear" from beta_start to beta_end (Ho et al. 2020), "scaled_linear", whose square
        roots are linear, or "cosine" (Nichol & Dhariwal 2021, eq. 17), which has no ends.
      num: number of time steps, 2 .. 100,000.
    """

    betas: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num: int = 1000

    def __post_init__(self):
        if self.betas not in ("linear", "scaled_linear", "cosine"):
            raise ValueError(f"betas must be linear, scaled_linear or cosine; got {self.betas!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1; got {self}")
        if not 2 <= self.num <= 10**5:  # the table has as many entries
            raise ValueError(f"num must be in 2 .. 100,000; got {self.num}")

    def __call__(self, t: Array) -> Array:
        t = as_float(t)
        table = jnp.asarray(_ddpm_table(self), t.dtype)
        return jnp.interp(self.num * t, jnp.arange(self.num + 1, dtype=t.dtype), table)

    def step(self, logsnr: Array) -> Array:
        """Time step at a noise level, a real number in [0, num - 1], of logsnr's shape."""
        logsnr = as_float(logsnr)
        table = jnp.asarray(_ddpm_table(self)[:0:-1], logsnr.dtype)
        return jnp.interp(logsnr, table, jnp.arange(self.num - 1, -1, -1, dtype=logsnr.dtype))


def ends(schedule: Schedule) -> tuple[float, float]:
    """Log-SNRs at the noisiest time, 1, and at 0: numbers, also inside a traced function."""
    with jax.ensure_compile_time_eval():
        return float(schedule(jnp.asarray(1.0))), float(schedule(jnp.asarray(0.0)))


def known_ends(schedule: Schedule) -> tuple[float, float]:
    """Log-SNRs of the noisiest and the cleanest images that a network of a schedule has learnt.

    They are its `ends`, but DDPM's time steps begin later than its schedule.
    """
    low, high = ends(schedule)
    if isinstance(schedule, DdpmSchedule):
        with jax.ensure_compile_time_eval():
            high = float(schedule(jnp.asarray(1 / schedule.num)))
    return low, high


@functools.lru_cache(maxsize=16)
def _ddpm_table(schedule: DdpmSchedule) -> tuple[float, ...]:
    """Table of logsnr at t = 0, 1 / num, ..., 1, in Python's double precision."""
    num, start, end = schedule.num, schedule.beta_start, schedule.beta_end
    if schedule.betas == "cosine":
        curve = [math.cos((i / num + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num + 1)]
        betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(curve)]
    else:
        power = 2 if schedule.betas == "scaled_linear" else 1
        a, b = start ** (1 / power), end ** (1 / power)
        betas = [(a + (b - a) * i / (num - 1)) ** power for i in range(num)]
    logs = itertools.accumulate(math.log1p(-beta) for beta in betas)  # log alpha^2
    table = [log - math.log(-math.expm1(log)) for log in logs]
    return (2 * table[0] - table[1], *table)
