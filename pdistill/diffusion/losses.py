"""The denoising loss and its weightings.

At one z the errors of x, eps and v differ only by factors of the noise level:
x_error = -sigma v_error and eps_error = alpha v_error. So every weighting is a bounded factor on
the squared error of v, which is the well-conditioned way to compute it.
"""

import math

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion.predictions import alpha_sigma, check_shape, expand, velocity_from_v

# Each is named by its weight on the squared error of x (Salimans & Ho 2022, section 4 and Table 1),
# and computes the weight on the squared error of v from alpha and sigma: sigma^2 times the other.
WEIGHTINGS = {
    "constant": lambda alpha, sigma: sigma**2,  # 1
    "snr": lambda alpha, sigma: alpha**2,  # SNR
    "snr_trunc": lambda alpha, sigma: jnp.maximum(alpha**2, sigma**2),  # max(SNR, 1)
    "v_mse": lambda alpha, sigma: jnp.ones_like(alpha),  # SNR + 1
    "velocity_mse": lambda alpha, sigma: (alpha + sigma) ** 2,  # (sqrt(SNR) + 1)^2
}


def check_weighting(weighting: str) -> None:
    """Raises ValueError unless `weighting` is in WEIGHTINGS."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}; got {weighting!r}")


def check_data_std(data_std: float) -> None:
    """Raises ValueError unless a deviation of data is positive and finite."""
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be positive and finite; got {data_std}")


def v_weight(weighting: str, logsnr: Array, data_std: float = 1.0) -> Array:
    """Factor on the squared v error, of logsnr's shape, in [0, 2] for data of unit deviation.

    Args:
      data_std: deviation d of the data. The loss is that of x / d, whose SNR is d^2 times as
        large: for "v_mse" the weight on the squared error of x is SNR + 1 / d^2, as Karras et al.
        (2022) have it with d = 0.5.

    Raises:
      ValueError: `weighting` is not in WEIGHTINGS, or data_std is not positive.
    """
    check_weighting(weighting)
    check_data_std(data_std)
    alpha, sigma = alpha_sigma(logsnr)
    if data_std == 1:
        return WEIGHTINGS[weighting](alpha, sigma)
    weight = WEIGHTINGS[weighting](*alpha_sigma(logsnr + 2 * math.log(data_std)))
    return weight * (alpha**2 + (sigma / data_std) ** 2)


def denoising_loss(
    v_hat: Array, v: Array, logsnr: Array, weighting: str = "v_mse", data_std: float = 1.0
) -> Array:
    """Weighted squared error of each example, averaged over its pixels.

    Args:
      v_hat, v: predicted and true velocity [B, ...].
      logsnr: noise levels [B], or one for all.
      weighting: a key of WEIGHTINGS. data_std: as for `v_weight`.

    Returns:
      Losses [B]. Their mean is the loss of Salimans & Ho 2022, section 4.

    Raises:
      ValueError: v_hat and v differ in shape, or logsnr has another one than these.
    """
    check_shape(v_hat, v)
    error = jnp.mean(jnp.square(v_hat - v), axis=tuple(range(1, v.ndim)))
    return v_weight(weighting, expand(logsnr, error), data_std) * error


def direction_loss(v_hat: Array, v: Array, z: Array, logsnr: Array) -> Array:
    """1 - the cosine between two velocities of a rectified flow, averaged over an image's pixels.

    The vectors are those of a pixel's channels (FasterDiT, Yao et al. 2024; the code of
    LightningDiT adds it to the squared error of the velocity).

    Args:
      v_hat, v: predicted and true v [B, ..., C] at z [B, ..., C] and logsnr [B].

    Returns:
      Losses [B], in [0, 2].
    """
    check_shape(v_hat, v)

    def unit(v: Array) -> Array:
        u = velocity_from_v(z, v, logsnr)
        return u / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(u), -1, keepdims=True), 1e-16))

    cosine = jnp.sum(unit(v_hat) * unit(v), axis=-1)
    return 1 - jnp.mean(cosine, axis=tuple(range(1, cosine.ndim)))
