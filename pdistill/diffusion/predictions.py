"""What a network predicts, and what that says about the image and the noise.

Everything is variance preserving: z = alpha x + sigma eps, alpha^2 = sigmoid(logsnr),
sigma^2 = sigmoid(-logsnr). v = alpha eps - sigma x (Salimans & Ho 2022, section 4), so that
alpha = cos(phi), sigma = sin(phi) and dz/dphi = v.

Shapes: z, x, eps, v are [B, ...]; logsnr is [B] or a scalar. float64 in gives float64 out.
"""

import jax
import jax.numpy as jnp
from jax import Array

HEADS = ("v", "x", "eps", "both")


def expand(a: Array, like: Array) -> Array:
    """Appends axes of size one to `a` [B] (or []) until it broadcasts with `like` [B, ...]."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
    """Signal and noise amplitudes (alpha, sigma), both of logsnr's shape, in (0, 1)."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def angle(logsnr: Array) -> Array:
    """phi = arctan(sigma / alpha) in (0, pi/2), of logsnr's shape."""
    return jnp.arctan(jnp.exp(-logsnr / 2))


def _alpha_sigma_like(logsnr: Array, z: Array) -> tuple[Array, Array]:
    return alpha_sigma(expand(logsnr, z))


def diffuse(x: Array, eps: Array, logsnr: Array) -> Array:
    """z = alpha x + sigma eps."""
    alpha, sigma = _alpha_sigma_like(logsnr, x)
    return alpha * x + sigma * eps


def noised(key: Array, x: Array, logsnr: Array) -> tuple[Array, Array]:
    """z at the levels logsnr [B] of x [B, ...], and the noise eps in it, which is drawn."""
    eps = jax.random.normal(key, x.shape, x.dtype)
    return diffuse(x, eps, logsnr), eps


def v_target(x: Array, eps: Array, logsnr: Array) -> Array:
    """v = alpha eps - sigma x."""
    alpha, sigma = _alpha_sigma_like(logsnr, x)
    return alpha * eps - sigma * x


def x_from_v(z: Array, v: Array, logsnr: Array) -> Array:
    """x = alpha z - sigma v."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return alpha * z - sigma * v


def x_from_eps(z: Array, eps: Array, logsnr: Array) -> Array:
    """x = (z - sigma eps) / alpha; ill-conditioned as alpha -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return (z - sigma * eps) / alpha


def eps_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """eps = (z - alpha x) / sigma; ill-conditioned as sigma -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return (z - alpha * x) / sigma


def eps_from_v(z: Array, v: Array, logsnr: Array) -> Array:
    """eps = sigma z + alpha v."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return sigma * z + alpha * v


def v_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """v = (alpha z - x) / sigma; ill-conditioned as sigma -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return (alpha * z - x) / sigma


def v_from_eps(z: Array, eps: Array, logsnr: Array) -> Array:
    """v = (eps - sigma z) / alpha; ill-conditioned as alpha -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z)
    return (eps - sigma * z) / alpha


def output_channels(head: str, channels: int) -> int:
    """Channels a network must output for images of `channels` channels."""
    _check_head(head)
    return 2 * channels if head == "both" else channels


def v_from_output(head: str, z: Array, output: Array, logsnr: Array) -> Array:
    """v_hat implied by a network's output.

    Args:
      head: "v", "x", "eps", or "both": x in the first half of the last axis, eps in the second.
        The two merge into x_hat = sigma^2 x + alpha^2 x_from_eps(eps), which is
        v_hat = alpha eps - sigma x (Salimans & Ho 2022, section 4).
      z: [B, ..., C]. output: [B, ..., C], or [B, ..., 2C] for "both". logsnr: [B].
    """
    _check_head(head)
    if head == "v":
        return output
    if head == "x":
        return v_from_x(z, output, logsnr)
    if head == "eps":
        return v_from_eps(z, output, logsnr)
    x, eps = jnp.split(output, 2, axis=-1)
    return v_target(x, eps, logsnr)


def x_from_output(head: str, z: Array, output: Array, logsnr: Array) -> Array:
    """x_hat implied by a network's output; arguments as `v_from_output`."""
    _check_head(head)
    if head == "x":
        return output
    if head == "eps":
        return x_from_eps(z, output, logsnr)
    return x_from_v(z, v_from_output(head, z, output, logsnr), logsnr)


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}; got {head!r}")
