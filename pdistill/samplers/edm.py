"""The sampler of Karras et al. (2022), on noise levels of its own."""

import dataclasses
import math

import jax.numpy as jnp

from pdistill.diffusion import KarrasSchedule, alpha_sigma
from pdistill.samplers.noise import normal
from pdistill.samplers.solvers import Solver, heun_step


@dataclasses.dataclass(frozen=True)
class Edm(Solver):
    """EDM's own sampler (Karras et al. 2022, algorithm 2): `heun_step` on their grid of levels.

    N steps begin at N levels of sigma / alpha from sigma_max to sigma_min, as far as the schedule
    has them, and the last one is Euler's to zero: x_hat. As in their code a sample starts from
    sigma_max eps, without an image, whose z is a little less than the noise eps. Times that are
    given instead begin at sigma_max, too, where they have more noise: the slopes at a step's two
    ends are weighed by sigma / alpha, which has no bound.

    It is for what was published with it: on the same levels, those of `KarrasSchedule`, `Heun` is
    closer to the exact flow of a mixture of any width that was tried, and on the cosine schedule of
    wide ones (18 steps).

    Attributes:
      churn, churn_min, churn_max, churn_noise: their S_churn, S_min, S_max and S_noise: before a
        step at a level in [churn_min, churn_max] it rises by min(churn / N, sqrt(2) - 1) of itself,
        by fresh noise of the deviation churn_noise.
      sigma_min, sigma_max, rho: as in `KarrasSchedule`.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    name = "edm"
    evaluations_per_step = 2

    def __post_init__(self):
        KarrasSchedule(self.sigma_min, self.sigma_max, self.rho)  # raises
        if not (0 <= self.churn < math.inf and 0 <= self.churn_noise < math.inf):
            raise ValueError(
                "churn and churn_noise must not be negative, and finite; got "
                f"{self.churn} and {self.churn_noise}"
            )
        if not 0 <= self.churn_min < self.churn_max:
            raise ValueError(
                "churn_min must not be negative, and below churn_max; got "
                f"{self.churn_min} and {self.churn_max}"
            )

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def level(self, schedule, i, num_steps, dtype):
        cleanest, noisiest = schedule(jnp.array([0, 1], dtype))
        low = jnp.maximum(self.sigma_min, jnp.exp(-cleanest / 2)) ** (1 / self.rho)
        high = jnp.minimum(self.sigma_max, jnp.exp(-noisiest / 2)) ** (1 / self.rho)
        part = i.astype(dtype) / jnp.maximum(num_steps - 1, 1).astype(dtype)
        root = high + (low - high) * jnp.minimum(part, 1)
        return jnp.where(i == num_steps, cleanest, -2 * self.rho * jnp.log(root))

    @property
    def noisiest(self) -> float:
        return -2 * math.log(self.sigma_max)

    def prior_std(self, logsnr):
        return alpha_sigma(logsnr)[1]

    def init(self, z, logsnr_end, num_steps):
        if not self.churn:
            return ()
        return jnp.minimum(self.churn / jnp.asarray(num_steps, z.dtype), math.sqrt(2) - 1)

    def perturb(self, z, logsnr_t, key, memory):
        if not self.churn:
            return z, logsnr_t
        sigma = jnp.exp(-logsnr_t / 2)
        within = (self.churn_min <= sigma) & (sigma <= self.churn_max)
        raised = logsnr_t - 2 * jnp.where(within, jnp.log1p(memory), 0)
        (alpha_t, _), (alpha, sigma) = alpha_sigma(logsnr_t), alpha_sigma(raised)
        fresh = jnp.where(raised < logsnr_t, raised - logsnr_t, -1)  # no root of 0, of no slope
        fresh = jnp.where(raised < logsnr_t, jnp.sqrt(-jnp.expm1(fresh)), 0)
        std = self.churn_noise * sigma * fresh
        return alpha / alpha_t * z + std * normal(key, z.shape, z.dtype), raised

    def step(self, denoise, z, x_hat, logsnr_t, logsnr_s, key, memory):
        levels = (jnp.broadcast_to(level, z.shape[:1]) for level in (logsnr_t, logsnr_s))
        return heun_step(denoise, z, *levels, x_hat), memory
