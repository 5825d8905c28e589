"""Classifier-free guidance as a transformation of predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.diffusion.denoisers import Denoiser
from pdistill.diffusion.predictions import expand

# (z [B, ...], logsnr [B]) -> conditional and unconditional prediction, each like z.
Pair = Callable[[Array, Array], tuple[Array, Array]]


def guide(
    pair: Pair,
    weight: float | Array,
    *,
    interval: tuple[float, float] | Array | None = None,
    rescale: float = 0.0,
    channels: int | None = None,
) -> Denoiser:
    """Guides predictions: (1 + w) conditional - w unconditional (Ho & Salimans 2022, eq. 6).

    w = 0 is no guidance. The rule is linear, so it is the same for x, eps and v: the result
    predicts whichever of them the pair predicts.

    Args:
      pair: both predictions, see `Pair`; `pair_of` joins two denoisers, and a network gives both
        in one call.
      weight: w, a number or [B].
      interval: log-SNRs (low, high), or [B, 2], between which to guide; elsewhere w = 0
        (Kynkaanniemi et al. 2024).
      rescale: phi in [0, 1], the share of the way by which each guided prediction is scaled back
        to the conditional one's standard deviation (Lin et al. 2024, eq. 15 and 16); one that is
        constant stays as it is.
      channels: guide the first of the last axis only, as the code of DiT, SiT and LightningDiT
        guides three of their latents' 4 or 32; all by default.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be in [0, 1]; got {rescale}")
    known = not any(isinstance(end, Array) for end in jax.tree.leaves(interval))  # without waiting
    if interval is not None and known and not np.all(np.diff(np.asarray(interval)) > 0):
        raise ValueError(f"interval must be (low, high) in log-SNR; got {interval}")

    def predict(z: Array, logsnr: Array) -> Array:
        conditional, unconditional = pair(z, logsnr)
        w = jnp.broadcast_to(jnp.asarray(weight, logsnr.dtype), logsnr.shape)
        w = expand(acting(w, interval, logsnr), z)
        gap = conditional - unconditional
        gap = jnp.where((w == 0) & ~jnp.isfinite(gap), 0, gap)  # where it counts for nothing
        guided = conditional + w * gap
        if channels is not None:
            guided = jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)
        if rescale:
            ratio = _ratio_of_spreads(conditional, guided)
            guided = guided * expand(rescale * ratio + (1 - rescale), z)
        return guided

    return predict


def _ratio_of_spreads(conditional: Array, guided: Array) -> Array:
    """Ratio [B] of the standard deviations; 1 where the guided one is constant to rounding."""
    axes = tuple(range(1, guided.ndim))
    own, variance = jnp.var(conditional, axes), jnp.var(guided, axes)
    # The variance of equal numbers is not 0, by the rounding of their mean.
    way, largest = jnp.ptp(guided, axes), jnp.max(jnp.abs(guided), axes)
    varies = (variance > 0) & (way > 4 * jnp.finfo(guided.dtype).eps * largest)
    # No root of 0, whose slope is infinite.
    own = jnp.where(own > 0, jnp.sqrt(jnp.where(own > 0, own, 1)), 0)
    return jnp.where(varies, own / jnp.sqrt(jnp.where(varies, variance, 1)), 1)


def acting(w: Array, levels: tuple[float, float] | Array | None, logsnr: Array) -> Array:
    """Weights of guidance [B] at log-SNRs [B]: 0 but between the levels, see `guide`'s interval."""
    if levels is None:
        return w
    low, high = jnp.moveaxis(jnp.asarray(levels, logsnr.dtype), -1, 0)
    return jnp.where((low <= logsnr) & (logsnr <= high), w, 0)


def pair_of(conditional: Denoiser, unconditional: Denoiser) -> Pair:
    """Joins two denoisers into a pair of predictions."""
    return lambda z, logsnr: (conditional(z, logsnr), unconditional(z, logsnr))
