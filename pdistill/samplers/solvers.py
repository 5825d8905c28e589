"""One-step solvers, from z at logsnr_t to z at logsnr_s, given x_hat = denoise(z, logsnr_t).

Deterministic solvers integrate the probability-flow ODE dz/dphi = v in either direction.
Solvers are frozen dataclasses: hashable, so they can be static arguments of jit. A solver that
remembers earlier steps keeps that in `memory`, a pytree of fixed shape carried by the scan.
"""

import abc
import dataclasses
import itertools
import math
import re
import typing
from typing import Any

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import (
    Denoiser,
    Schedule,
    alpha_sigma,
    angle,
    diffuse,
    eps_from_x,
    expand,
    v_from_x,
)
from pdistill.samplers.noise import normal

Steps = int | tuple[int, ...]  # a sampler's count, or a cascade's counts, one a resolution


class Solver(abc.ABC):
    """A rule for one step, as `samplers.sample` calls it.

    Attributes:
      name: its name in `SOLVERS` and `results.jsonl`.
      stochastic: it draws noise.
      looks_ahead: its step needs the noise level after the next one, too.
      evaluations_per_step: network evaluations in a step.
      min_steps, max_steps: smallest and largest number of steps.
      noisiest: log-SNR at which a step begins from given `times` that have more noise.
      model: the model that it samples: "denoiser", at every noise level; "one_step", at pure noise
        only; "multistep", at some noise levels only; "jump"; or "variance", a denoiser that also
        says the variance of a step.
    """

    name: str
    stochastic = False
    looks_ahead = False
    evaluations_per_step = 1
    min_steps = 1
    max_steps = math.inf
    noisiest = -math.inf
    model = "denoiser"

    @property
    def jumps(self) -> bool:
        """Whether it samples a `Jump` instead of a denoiser."""
        return self.model == "jump"

    @typing.final
    def grid(self, schedule: Schedule, num_steps: int, dtype: jnp.dtype) -> Array:
        """Noise levels of N steps, logsnr [N + 1]."""
        return self.level(schedule, jnp.arange(num_steps + 1), num_steps, dtype)

    def level(
        self, schedule: Schedule, i: Array, num_steps: Array | int, dtype: jnp.dtype
    ) -> Array:
        """Noise level after i of N steps, logsnr of i's shape: the schedule at t = 1 - i / N."""
        return schedule((num_steps - i).astype(dtype) / jnp.asarray(num_steps, dtype))

    def prior_std(self, logsnr: Array) -> Array | float:
        """Returns the deviation of the noise that a sample starts from, at the first level."""
        del logsnr
        return 1.0

    def init(self, z: Array, logsnr_end: Array, num_steps: Array | int) -> Any:
        """Returns the memory before the first of N steps, of which the last ends at logsnr_end."""
        del z, logsnr_end, num_steps
        return ()

    def perturb(
        self, z: Array, logsnr_t: Array, key: Array | None, memory: Any
    ) -> tuple[Array, Array]:
        """Moves z and its level before a step's evaluation; most solvers leave both."""
        del key, memory
        return z, logsnr_t

    def evaluate(
        self, denoise: Denoiser, z: Array, logsnr_t: Array, logsnr_s: Array, memory: Any
    ) -> Array:
        """Evaluates the model for a step from t to s: x_hat at t, or a jump's z, or x_hat and the
        fraction of a variance; `step` and `end` are given the same."""
        del logsnr_s, memory
        return denoise(z, jnp.broadcast_to(logsnr_t, z.shape[:1]))

    def end(self, z: Array, x_hat: Array, logsnr_t: Array) -> Array:
        """Returns the image that the last step makes of z and x_hat at t: x_hat, for most."""
        del z, logsnr_t
        return x_hat

    @abc.abstractmethod
    def step(
        self,
        denoise: Denoiser,
        z: Array,
        x_hat: Array,
        logsnr_t: Array,
        logsnr_s: Array,
        key: Array | None,
        memory: Any,
    ) -> tuple[Array, Any]:
        """Steps z and x_hat [B, ...] from logsnr_t to logsnr_s, which are scalars.

        A solver that `looks_ahead` is also given `logsnr_k`, the noise level after logsnr_s. `key`
        is None in deterministic use, [], or [B]. Returns z at logsnr_s, and the new memory.
        """


def ddim_step(z: Array, x_hat: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """DDIM's step z_s = alpha_s x_hat + sigma_s eps_hat, arranged so that nothing cancels.

    z_s = (sigma_s / sigma_t) z + alpha_s (1 - exp((logsnr_t - logsnr_s) / 2)) x_hat
    (Song et al. 2020; Salimans & Ho 2022, eq. 8). All arguments broadcast.
    """
    _, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    return sigma_s / sigma_t * z - alpha_s * jnp.expm1((logsnr_t - logsnr_s) / 2) * x_hat


def heun_step(
    denoise: Denoiser, z: Array, logsnr_t: Array, logsnr_s: Array, x_hat: Array | None = None
) -> Array:
    """Heun's step of Karras et al. (2022, algorithm 1), two evaluations; noise levels are [B].

    Without the first one if x_hat at t is given. It is the trapezoid rule in the variance exploding
    coordinates z / alpha and sigma / alpha, where the slope is eps and Euler's step is DDIM's: half
    of that step with eps at t, half with eps at s.
    """
    level_t, level_s = expand(logsnr_t, z), expand(logsnr_s, z)
    alpha_t, sigma_t = alpha_sigma(level_t)
    alpha_s, sigma_s = alpha_sigma(level_s)
    x_hat = denoise(z, logsnr_t) if x_hat is None else x_hat
    z_euler = ddim_step(z, x_hat, level_t, level_s)
    eps_s = eps_from_x(z_euler, denoise(z_euler, logsnr_s), logsnr_s)
    with_eps_s = alpha_s / alpha_t * (z - sigma_t * eps_s) + sigma_s * eps_s
    return (z_euler + with_eps_s) / 2


def ancestral_step(
    z: Array,
    x_hat: Array,
    logsnr_t: Array,
    logsnr_s: Array,
    fraction: Array | float,
    key: Array | None,
) -> Array:
    """DDPM's step, with noise of a variance between the two of `Ancestral`.

    fraction is the weight of the logarithm of the large one, a number or like z.
    """
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    r = jnp.exp(logsnr_t - logsnr_s)
    one_minus_r = -jnp.expm1(logsnr_t - logsnr_s)
    mean = r * (alpha_s / alpha_t) * z + one_minus_r * alpha_s * x_hat
    sigma = sigma_t**fraction * sigma_s ** (1 - fraction)
    return mean + jnp.sqrt(one_minus_r) * sigma * normal(key, z.shape, z.dtype)


@dataclasses.dataclass(frozen=True)
class Ddim(Solver):
    """Deterministic DDIM (Song et al. 2020): first order, one evaluation a step."""

    name = "ddim"

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        return ddim_step(z, x_hat, logsnr_t, logsnr_s), memory


@dataclasses.dataclass(frozen=True)
class OneStep(Ddim):
    """A single step, x_hat of pure noise, for models that are made for nothing else."""

    name = "one_step"
    model = "one_step"
    max_steps = 1


@dataclasses.dataclass(frozen=True)
class Ancestral(Solver):
    """DDPM's ancestral sampler in log-SNR form (Ho et al. 2020; Salimans & Ho 2022, eq. 6).

    Attributes:
      variance: "small", the posterior's given x; "large", the variance of z_t given z_s; or
        "medium:F", their geometric interpolation, from small at F = 0 to large at F = 1.
    """

    variance: str = "large"
    name = "ancestral"
    stochastic = True

    def __post_init__(self):
        _ = self._fraction

    @property
    def _fraction(self) -> float:
        """Weight of the logarithm of the large variance."""
        match = re.fullmatch(r"(small)|(large)|medium:(\d*\.?\d+)", self.variance)
        fraction = match and (0.0 if match[1] else 1.0 if match[2] else float(match[3]))
        if fraction is None or fraction > 1:
            raise ValueError(
                "variance must be 'small', 'large' or 'medium:F' with 0 <= F <= 1; "
                f"got {self.variance!r}"
            )
        return fraction

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        return ancestral_step(z, x_hat, logsnr_t, logsnr_s, self._fraction, key), memory


@dataclasses.dataclass(frozen=True)
class Stochastic(Solver):
    """Two steps forward in one DDIM step, one step back with fresh noise (Meng et al. 2023).

    For models whose steps are twice as long as the grid's, as `methods.Progressive` distils them
    with `stochastic`; N evaluations for N steps.
    """

    name = "stochastic"
    stochastic = True
    looks_ahead = True

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory, *, logsnr_k):
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        alpha_k, _ = alpha_sigma(logsnr_k)
        z_k = ddim_step(z, x_hat, logsnr_t, logsnr_k)
        sigma = sigma_s * jnp.sqrt(-jnp.expm1(logsnr_s - logsnr_k))
        return alpha_s / alpha_k * z_k + sigma * normal(key, z.shape, z.dtype), memory


@dataclasses.dataclass(frozen=True)
class Multistep(Solver):
    """Denoises, then adds fresh noise of the next level (consistency models, Song et al. 2023).

    For generators that know a few noise levels only, as `methods.Dmd` makes them.

    Attributes:
      levels: rising log-SNRs; N steps use the first N.
    """

    levels: tuple[float, ...] = (-20.0,)
    name = "multistep"
    model = "multistep"
    stochastic = True

    def __post_init__(self):
        rising = all(a < b for a, b in itertools.pairwise(self.levels))
        if not (self.levels and rising and all(map(math.isfinite, self.levels))):
            raise ValueError(f"levels must be rising log-SNRs, all finite; got {self.levels}")

    @property
    def max_steps(self) -> int:
        return len(self.levels)

    def level(self, schedule, i, num_steps, dtype):
        known = jnp.array(self.levels, dtype)[jnp.minimum(i, len(self.levels) - 1)]
        return jnp.where(i == num_steps, schedule(jnp.zeros((), dtype)), known)

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        return diffuse(x_hat, normal(key, z.shape, z.dtype), logsnr_s), memory


@dataclasses.dataclass(frozen=True)
class Heun(Solver):
    """Heun's trapezoid rule on v in the angle phi: second order, two evaluations a step.

    z' = z + h v(z, phi_t), z_s = z + h (v(z, phi_t) + v(z', phi_s)) / 2 with h = phi_s - phi_t.
    """

    name = "heun"
    evaluations_per_step = 2

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        h = angle(logsnr_s) - angle(logsnr_t)
        v_t = v_from_x(z, x_hat, logsnr_t)
        z_euler = z + h * v_t
        x_euler = denoise(z_euler, jnp.broadcast_to(logsnr_s, z.shape[:1]))
        return z + h / 2 * (v_t + v_from_x(z_euler, x_euler, logsnr_s)), memory


@dataclasses.dataclass(frozen=True)
class DpmSolverPP2M(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step.

    A DDIM step with x_hat extrapolated from the last two evaluations. A grid that is uniform in
    logsnr suits it best; the first step is plain DDIM.
    """

    name = "dpmpp_2m"

    def init(self, z, logsnr_end, num_steps):
        return jnp.zeros_like(z), jnp.full((), math.inf, z.dtype)

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        x_before, h_before = memory
        h = logsnr_s - logsnr_t
        x_ahead = x_hat + h / (2 * h_before) * (x_hat - x_before)  # h_before is inf at first
        return ddim_step(z, x_ahead, logsnr_t, logsnr_s), (x_hat, h)


@dataclasses.dataclass(frozen=True)
class Gamma(Solver):
    """Jumps below the next level, and back up to it with fresh noise (Kim et al. 2023, sec. 3.3).

    For a `Jump` in the place of the denoiser. With tau = sigma / alpha, and tau_0 at the last noise
    level, a jump towards s lands at sqrt(1 - gamma^2) (tau_s - tau_0) + tau_0; the last one stays.

    Attributes:
      gamma: amount of fresh noise in [0, 1]: 0 jumps deterministically, 1 jumps to the end at each
        step, which is multistep consistency sampling.
    """

    gamma: float = 0.0
    name = "gamma"
    model = "jump"

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1]; got {self.gamma}")

    @property
    def stochastic(self) -> bool:
        return self.gamma > 0

    def init(self, z, logsnr_end, num_steps):
        return logsnr_end

    def evaluate(self, jump, z, logsnr_t, logsnr_s, logsnr_end):
        levels = logsnr_t, self._landing(logsnr_s, logsnr_end)
        return jump(z, *(jnp.broadcast_to(level, z.shape[:1]) for level in levels))

    def step(self, jump, z, z_landed, logsnr_t, logsnr_s, key, logsnr_end):
        if not self.gamma:
            return z_landed, logsnr_end
        landing = self._landing(logsnr_s, logsnr_end)
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        alpha, _ = alpha_sigma(landing)
        sigma = sigma_s * jnp.sqrt(-jnp.expm1(logsnr_s - landing))
        return alpha_s / alpha * z_landed + sigma * normal(key, z.shape, z.dtype), logsnr_end

    def _landing(self, logsnr_s: Array, logsnr_end: Array) -> Array:
        """Noise level at which a jump towards s lands."""
        keep = math.sqrt(1 - self.gamma**2)
        ratio = keep + (1 - keep) * jnp.exp((logsnr_s - logsnr_end) / 2)  # tau / tau_s
        return logsnr_s - 2 * jnp.log(ratio)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A cascade's way of sampling, for `samplers.sample_cascade`; each resolution has its steps.

    Attributes:
      solver: rule for one step, the same at every resolution.
      noise: standard deviation of the noise on each condition, not negative.
    """

    solver: Solver = Ddim()
    noise: float = 0.0
    name = "cascade"
    model = "cascade"
    stochastic = True  # there is fresh noise at each resolution
    jumps = False

    def __post_init__(self):
        if self.solver.model != "denoiser":
            raise ValueError(
                f"a cascade's solver must sample denoisers, such as ddim; got {self.solver.name}"
            )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must not be negative, and finite; got {self.noise}")
