"""Predictions of a network, and the image, noise and velocity that each implies.

Everything is variance preserving: z = alpha x + sigma eps, alpha^2 = sigmoid(logsnr),
sigma^2 = sigmoid(-logsnr). v = alpha eps - sigma x (Salimans & Ho 2022, section 4), so that
alpha = cos(phi), sigma = sin(phi) and dz/dphi = v. "Velocity" is that of a rectified flow,
u = eps - x: the flow's image (1 - tau) x + tau eps is z / (alpha + sigma), and its time tau is
sigma / (alpha + sigma).

Shapes: z, x, eps, v are [B, ...], all of one shape; logsnr is [B] or a scalar. Other shapes are a
ValueError at trace time, for [B] against [B, 1] would broadcast to [B, B] without a word.
float64 in gives float64 out.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

HEADS = ("v", "x", "eps", "both", "velocity", "eps_variance")
_WITH_TWO_HALVES = ("both", "eps_variance")  # whose output has two halves


def expand(a: Array, like: Array) -> Array:
    """Appends axes of size one to `a` [B] (or []) until it broadcasts with `like` [B, ...].

    Raises:
      ValueError: `a` does not have the first axes of `like`, such as [B, 1] for [B].
    """
    a = jnp.asarray(a)
    if a.shape != like.shape[: a.ndim]:
        raise ValueError(
            f"shape {a.shape} does not go with arrays of shape {like.shape}: give one number for "
            "each example, or one for all"
        )
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def check_shape(a: Array, like: Array) -> None:
    """Raises ValueError, with both shapes, unless they are equal: nothing broadcasts silently."""
    if jnp.shape(a) != jnp.shape(like):
        raise ValueError(
            f"arrays of one shape are needed; got {jnp.shape(a)} and {jnp.shape(like)}: reshape "
            "one of them, so that they do not broadcast against each other"
        )


def as_float(a: Array | float) -> Array:
    """Array of a number or numbers, whole ones as floating point."""
    a = jnp.asarray(a)
    return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(float)


def alpha_sigma(logsnr: Array) -> tuple[Array, Array]:
    """Signal and noise amplitudes (alpha, sigma), both of logsnr's shape, in (0, 1)."""
    logsnr = as_float(logsnr)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def angle(logsnr: Array) -> Array:
    """Angle phi = arctan(sigma / alpha) in (0, pi/2), of logsnr's shape."""
    return jnp.arctan(jnp.exp(-logsnr / 2))


def logsnr_of_angle(phi: Array) -> Array:
    """Log-SNR -2 log tan(phi) at an angle in (0, pi/2): the inverse of `angle`.

    Within 1e-3 of pi/2 float32 has few digits of it. It is finite at 0 and pi/2 too, where tan is
    0, or negative as float32 has pi/2.
    """
    phi = as_float(phi)
    limits = jnp.finfo(phi.dtype)
    return -2 * jnp.log(jnp.tan(jnp.clip(phi, limits.tiny, math.pi / 2 - limits.eps)))


def between(logsnr_t: Array, logsnr_s: Array, fraction: Array | float) -> tuple[Array, Array]:
    """Log-SNR at a fraction of the way from t to s in the angle, and the way, phi_s - phi_t.

    All arguments broadcast. Angles are measured from the nearer end, 0 or pi/2, so that nothing
    cancels: tan of pi/2 as float32 has it is negative.
    """
    logsnr_t, logsnr_s = as_float(logsnr_t), as_float(logsnr_s)
    fraction = jnp.asarray(fraction, logsnr_t.dtype)
    (phi_t, phi_s), (rest_t, rest_s) = (
        (angle(sign * logsnr_t), angle(sign * logsnr_s)) for sign in (1, -1)
    )
    phi, rest = phi_t + fraction * (phi_s - phi_t), rest_t + fraction * (rest_s - rest_t)
    late = rest < phi
    logsnr = jnp.where(late, 2.0, -2.0) * jnp.log(jnp.tan(jnp.where(late, rest, phi)))
    both_late = (rest_t < phi_t) & (rest_s < phi_s)
    return logsnr, jnp.where(both_late, rest_t - rest_s, phi_s - phi_t)


def _alpha_sigma_like(logsnr: Array, z: Array, other: Array) -> tuple[Array, Array]:
    """Amplitudes that broadcast with z and `other`, once their shapes are known to be equal."""
    check_shape(other, z)
    return alpha_sigma(expand(logsnr, z))


def diffuse(x: Array, eps: Array, logsnr: Array) -> Array:
    """Noisy image z = alpha x + sigma eps."""
    alpha, sigma = _alpha_sigma_like(logsnr, x, eps)
    return alpha * x + sigma * eps


def noised(key: Array, x: Array, logsnr: Array) -> tuple[Array, Array]:
    """Draws noise eps for x [B, ...]: (z, eps), with z at the noise levels logsnr [B]."""
    eps = jax.random.normal(key, x.shape, x.dtype)
    return diffuse(x, eps, logsnr), eps


def v_target(x: Array, eps: Array, logsnr: Array) -> Array:
    """Velocity v = alpha eps - sigma x."""
    alpha, sigma = _alpha_sigma_like(logsnr, x, eps)
    return alpha * eps - sigma * x


def x_from_v(z: Array, v: Array, logsnr: Array) -> Array:
    """Image x = alpha z - sigma v."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, v)
    return alpha * z - sigma * v


def x_from_eps(z: Array, eps: Array, logsnr: Array) -> Array:
    """Image x = (z - sigma eps) / alpha; ill-conditioned as alpha -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, eps)
    return (z - sigma * eps) / alpha


def eps_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """Noise eps = (z - alpha x) / sigma; ill-conditioned as sigma -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, x)
    return (z - alpha * x) / sigma


def eps_from_v(z: Array, v: Array, logsnr: Array) -> Array:
    """Noise eps = sigma z + alpha v."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, v)
    return sigma * z + alpha * v


def v_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """Velocity v = (alpha z - x) / sigma; ill-conditioned as sigma -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, x)
    return (alpha * z - x) / sigma


def v_from_eps(z: Array, eps: Array, logsnr: Array) -> Array:
    """Velocity v = (eps - sigma z) / alpha; ill-conditioned as alpha -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, eps)
    return (eps - sigma * z) / alpha


def x_from_velocity(z: Array, velocity: Array, logsnr: Array) -> Array:
    """Image x = (z - sigma u) / (alpha + sigma) from the velocity u = eps - x."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, velocity)
    return (z - sigma * velocity) / (alpha + sigma)


def eps_from_velocity(z: Array, velocity: Array, logsnr: Array) -> Array:
    """Noise eps = (z + alpha u) / (alpha + sigma) from the velocity u = eps - x."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, velocity)
    return (z + alpha * velocity) / (alpha + sigma)


def v_from_velocity(z: Array, velocity: Array, logsnr: Array) -> Array:
    """v = ((alpha - sigma) z + u) / (alpha + sigma) from the velocity u = eps - x."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, velocity)
    return ((alpha - sigma) * z + velocity) / (alpha + sigma)


def linear_time(logsnr: Array) -> Array:
    """Time tau = sigma / (alpha + sigma) of the linear path, 0 at data and 1 at noise."""
    return jax.nn.sigmoid(-logsnr / 2)


def velocity_from_v(z: Array, v: Array, logsnr: Array) -> Array:
    """Velocity of a rectified flow, u = eps - x = (alpha + sigma) v - (alpha - sigma) z."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, v)
    return (alpha + sigma) * v - (alpha - sigma) * z


def velocity_from_x(z: Array, x: Array, logsnr: Array) -> Array:
    """Velocity u = (z - (alpha + sigma) x) / sigma; ill-conditioned as sigma -> 0."""
    alpha, sigma = _alpha_sigma_like(logsnr, z, x)
    return (z - (alpha + sigma) * x) / sigma


def jump(z: Array, v: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """z at logsnr_s from z [B, ...] at logsnr_t: cos(d) z - sin(d) v, d = phi_t - phi_s.

    It is exactly z for s = t. With the velocity v at z it is a step of DDIM; a flow map has a v of
    the jump instead. In whichever line a jump is written, it is this one with v of its output:
    MeanFlow's, tau_t - tau_s times an average velocity (`v_from_velocity`); CTM's, sigma_s over
    sigma_t of the noisy image and the rest of an image (`v_from_x`).
    """
    turn = expand(angle(logsnr_t) - angle(logsnr_s), z)
    check_shape(v, z)
    return jnp.cos(turn) * z - jnp.sin(turn) * v


def output_channels(head: str, channels: int) -> int:
    """Channels a network must output for images of `channels` channels."""
    _check_head(head)
    return 2 * channels if head in _WITH_TWO_HALVES else channels


def v_from_output(head: str, z: Array, output: Array, logsnr: Array) -> Array:
    """Velocity v_hat implied by a network's output.

    Args:
      head: "v", "x", "eps", "velocity" of a rectified flow, eps - x, "both" or "eps_variance".
        "both" has x in the first half of the last axis, eps in the second. The two merge into
        x_hat = sigma^2 x + alpha^2 x_from_eps(eps), which is v_hat = alpha eps - sigma x
        (Salimans & Ho 2022, section 4). "eps_variance" has eps in the first half; the second one,
        for `variance_fraction`, says nothing of v.
      z: [B, ..., C]. output: [B, ..., C], or [B, ..., 2C] for the last two. logsnr: [B].
    """
    head, output = _without_variance(head, output)
    if head == "v":
        check_shape(output, z)
        return output
    if head == "x":
        return v_from_x(z, output, logsnr)
    if head == "eps":
        return v_from_eps(z, output, logsnr)
    if head == "velocity":
        return v_from_velocity(z, output, logsnr)
    x, eps = jnp.split(output, 2, axis=-1)
    check_shape(x, z)
    return v_target(x, eps, logsnr)


def x_from_output(head: str, z: Array, output: Array, logsnr: Array) -> Array:
    """Image x_hat implied by a network's output; arguments as `v_from_output`."""
    head, output = _without_variance(head, output)
    if head == "x":
        check_shape(output, z)
        return output
    if head == "eps":
        return x_from_eps(z, output, logsnr)
    if head == "velocity":
        return x_from_velocity(z, output, logsnr)
    return x_from_v(z, v_from_output(head, z, output, logsnr), logsnr)


def variance_fraction(output: Array) -> Array:
    """Share of the larger variance in that of a step, as an output of "eps_variance" says it.

    The logarithm of a step's variance is between those of the posterior's given x, at 0, and of
    the variance of z_t given z_s, at 1; both are of `samplers.Ancestral` (Nichol & Dhariwal 2021,
    eq. 15, where the output is in [-1, 1]).

    Args:
      output: [B, ..., 2C].

    Returns:
      [B, ..., C]; nothing keeps it in [0, 1].
    """
    return (jnp.split(output, 2, axis=-1)[1] + 1) / 2


def _without_variance(head: str, output: Array) -> tuple[str, Array]:
    """The head and its output, of a known head; of one with a variance, what is beside that."""
    _check_head(head)
    if head != "eps_variance":
        return head, output
    return "eps", jnp.split(output, 2, axis=-1)[0]


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}; got {head!r}")
