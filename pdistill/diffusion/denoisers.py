"""Denoisers, two of them known in closed form.

A denoiser is any function denoise(z, logsnr) -> x_hat with z [B, ...] and logsnr [B]; samplers,
distillation targets and metrics know nothing else of a model. For Gaussian data and mixtures the
optimal denoiser E[x | z] and the exact probability-flow map are known, which makes them the
yardstick for everything here.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion.predictions import alpha_sigma, as_float, between, expand, v_from_x

Denoiser = Callable[[Array, Array], Array]
# (z [B, ...], logsnr_t [B], logsnr_s [B]) -> z, moved along the probability flow from t to s.
Jump = Callable[[Array, Array, Array], Array]
# (z [B, ...], logsnr [B]) -> x_hat, and the `variance_fraction` of a step, both like z.
DenoiserWithVariance = Callable[[Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Gaussian data x ~ N(mean, std^2), independent in every element of any shape."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if self.std < 0:
            raise ValueError(f"std must not be negative; got {self.std}")

    def denoise(self, z: Array, logsnr: Array) -> Array:
        """Optimal denoiser: mean + alpha std^2 (z - alpha mean) / (alpha^2 std^2 + sigma^2)."""
        alpha, _ = alpha_sigma(expand(logsnr, z))
        gain = alpha * self.std**2 / self._scale(logsnr, z) ** 2
        return self.mean + gain * (z - alpha * self.mean)

    def flow(self, z: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
        """Exact probability-flow map of z [B, ...] from noise level t to s."""
        alpha_t, _ = alpha_sigma(expand(logsnr_t, z))
        alpha_s, _ = alpha_sigma(expand(logsnr_s, z))
        ratio = self._scale(logsnr_s, z) / self._scale(logsnr_t, z)
        return alpha_s * self.mean + ratio * (z - alpha_t * self.mean)

    def sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws x of `shape`."""
        return self.mean + self.std * jax.random.normal(key, shape)

    def _scale(self, logsnr: Array, z: Array) -> Array:
        alpha, sigma = alpha_sigma(expand(logsnr, z))
        return jnp.hypot(alpha * self.std, sigma)


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Mixture of Gaussians in D dimensions: x ~ sum_k weights[k] N(means[k], stds[k]^2 I).

    Attributes:
      weights: [K], positive, summing to one. means: [K, D]. stds: [K], not negative.
    """

    weights: Array
    means: Array
    stds: Array

    def __post_init__(self):
        for name in ("weights", "means", "stds"):
            object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
        k = self.weights.size
        if self.weights.ndim != 1 or self.stds.shape != (k,) or self.means.shape[:-1] != (k,):
            raise ValueError(
                "a mixture's arguments need weights [K], means [K, D] and stds [K]; got shapes "
                f"{self.weights.shape}, {self.means.shape} and {self.stds.shape}"
            )

    def denoise(self, z: Array, logsnr: Array) -> Array:
        """Optimal denoiser of z [B, D]: the components' E[x | z], averaged by responsibility."""
        alpha, sigma = alpha_sigma(jnp.broadcast_to(logsnr, z.shape[:1])[:, None])  # [B, 1]
        variance = (alpha * self.stds[None]) ** 2 + sigma**2  # [B, K]
        offset = z[:, None] - alpha[..., None] * self.means[None]  # [B, K, D]
        dim = z.shape[1]
        logits = (
            jnp.log(self.weights)[None]
            - jnp.sum(offset**2, -1) / (2 * variance)
            - dim / 2 * jnp.log(variance)
        )
        responsibility = jax.nn.softmax(logits, axis=-1)
        gain = alpha * self.stds[None] ** 2 / variance
        x_hat = self.means[None] + gain[..., None] * offset
        return jnp.sum(responsibility[..., None] * x_hat, axis=1)

    def flow(self, z: Array, logsnr_t: Array, logsnr_s: Array, num_steps: int = 512) -> Array:
        """Probability-flow map of z [B, D] from noise level t to s (scalars).

        In one dimension the flow keeps the cumulative distribution, so the map is exact to
        rounding: z_s = F_s^-1(F_t(z)). In more, dz/dphi = v is integrated by `num_steps`
        fourth-order Runge-Kutta steps in the angle phi; in float32 this needs logsnr <= 30.
        """
        z = as_float(z)
        if z.shape[1] == 1:
            return self._quantile(self._log_odds(z, logsnr_t), logsnr_s).astype(z.dtype)
        _, way = between(logsnr_t, logsnr_s, 0)
        h = (way / num_steps).astype(z.dtype)

        def velocity(z, i):
            logsnr, _ = between(logsnr_t, logsnr_s, i / num_steps)
            logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
            return v_from_x(z, self.denoise(z, logsnr), logsnr).astype(z.dtype)

        def step(z, i):
            k1 = velocity(z, i)
            k2 = velocity(z + h / 2 * k1, i + 0.5)
            k3 = velocity(z + h / 2 * k2, i + 0.5)
            k4 = velocity(z + h * k3, i + 1)
            return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        return jax.lax.scan(step, z, jnp.arange(num_steps, dtype=z.dtype))[0]

    def sample(self, key: Array, num: int) -> Array:
        """Draws x [num, D]."""
        component_key, noise_key = jax.random.split(key)
        k = jax.random.choice(component_key, self.weights.shape[0], (num,), p=self.weights)
        noise = jax.random.normal(noise_key, (num, self.means.shape[1]), self.means.dtype)
        return self.means[k] + self.stds[k, None] * noise

    def _log_odds(self, z: Array, logsnr: Array) -> Array:
        """Log-odds log F - log(1 - F) of the marginal at z [B, 1], accurate in both tails."""
        alpha, sigma = alpha_sigma(logsnr)
        score = (z - alpha * self.means[:, 0][None]) / jnp.hypot(alpha * self.stds, sigma)[None]
        log_weights = jnp.log(self.weights)[None]
        below = jax.scipy.special.logsumexp(log_weights + jax.scipy.stats.norm.logcdf(score), -1)
        above = jax.scipy.special.logsumexp(log_weights + jax.scipy.stats.norm.logcdf(-score), -1)
        return (below - above)[:, None]

    def _quantile(self, log_odds: Array, logsnr: Array) -> Array:
        """Inverse of `_log_odds` by bisection."""
        reach = jnp.max(jnp.abs(self.means)) + 20 * (1 + jnp.max(self.stds))

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            under = self._log_odds(middle, logsnr) < log_odds
            return jnp.where(under, middle, low), jnp.where(under, high, middle)

        start = (jnp.full_like(log_odds, -reach), jnp.full_like(log_odds, reach))
        low, high = jax.lax.fori_loop(0, 64, halve, start)
        return (low + high) / 2
