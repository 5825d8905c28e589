"""Log-densities of data under a denoiser's probability flow."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule, alpha_sigma, between, v_from_x
from pdistill.runtime.kernels import without_kernels
from pdistill.samplers import noise
from pdistill.samplers.counts import check_count
from pdistill.samplers.levels import bounded
from pdistill.samplers.sampling import at_least_float32


def log_likelihood(
    denoise: Denoiser,
    x: Array,
    *,
    schedule: Schedule,
    num_steps: int = 64,
    key: Array | None = None,
) -> Array:
    """Log-density log p(x) in nats, from the flow to noise (Song et al. 2021, D.2).

    dz/dphi = v and d log p / dphi = -div v are integrated from schedule(0) to schedule(1), where z
    is taken for N(0, 1), by Runge-Kutta steps of fourth order in the angle phi between the
    schedule's equal times. p is the density of x with noise of standard deviation sigma / alpha at
    schedule(0), or log-SNR 20 or 10 above the next level, beyond which float32 has no flow.

    Args:
      denoise: (z, logsnr) -> x_hat; for a model that jumps, its denoiser.
      x: continuous data [B, ...]; add uniform noise one grey value wide to 8-bit images.
      schedule: t in [0, 1] -> logsnr.
      num_steps: steps, at least 1, each four evaluations of the denoiser and its derivatives.
      key: PRNG key for Hutchinson's estimate of each example's divergence, by one probe of random
        signs; None for the exact one, by as many derivatives as an example has elements.

    Returns:
      Log-densities [B], in the wider of x's type and float32.
    """
    num_steps = check_count(num_steps)
    x = at_least_float32(x)
    levels = schedule(jnp.arange(num_steps + 1, dtype=x.dtype) / num_steps)
    levels = levels.at[0].set(bounded(*levels[:2]))
    alpha, _ = alpha_sigma(levels[0])
    if key is None:
        divergence = exact_divergence
    else:
        probe = jax.random.rademacher(noise.as_threefry(key), x.shape, x.dtype)
        divergence = lambda push, z: differentiate_along(push, probe)  # noqa: E731

    def slopes(z: Array, logsnr: Array) -> tuple[Array, Array]:
        logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
        with without_kernels():
            v, push = jax.linearize(
                lambda z: v_from_x(z, denoise(z, logsnr).astype(z.dtype), logsnr), z
            )
        return v, divergence(push, z)

    def step(carry, ends):
        z, total = carry
        begin, end = ends
        middle, h = between(begin, end, 0.5)
        v_1, d_1 = slopes(z, begin)
        v_2, d_2 = slopes(z + h / 2 * v_1, middle)
        v_3, d_3 = slopes(z + h / 2 * v_2, middle)
        v_4, d_4 = slopes(z + h * v_3, end)
        z = z + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        return (z, total + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)), None

    start = alpha * x, jnp.zeros(len(x), x.dtype)
    (z, total), _ = jax.lax.scan(step, start, (levels[:-1], levels[1:]))
    size, squares = math.prod(x.shape[1:]), jnp.sum(jnp.square(z.reshape(len(z), -1)), axis=1)
    return -squares / 2 - size / 2 * math.log(2 * math.pi) + total + size * jnp.log(alpha)


def bits_per_dim(log_likelihood: Array, size: int) -> Array:
    """Bits an element for 8-bit images of `size` elements, scaled by image / 127.5 - 1."""
    return -log_likelihood / (size * math.log(2)) + math.log2(127.5)


def exact_divergence(push: Callable[[Array], Array], z: Array) -> Array:
    """Trace [B] of each example's derivative by itself, from its products `push` with vectors."""
    size = math.prod(z.shape[1:])

    def add(i, total):
        unit = jax.nn.one_hot(i, size, dtype=z.dtype).reshape(1, *z.shape[1:])
        return total + differentiate_along(push, jnp.broadcast_to(unit, z.shape))

    return jax.lax.fori_loop(0, size, add, jnp.zeros(len(z), z.dtype))


def differentiate_along(push: Callable[[Array], Array], probe: Array) -> Array:
    """Computes probe . (derivative probe) for each example: [B]."""
    return jnp.sum((probe * push(probe)).reshape(len(probe), -1), axis=1)
