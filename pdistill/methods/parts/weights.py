"""Weights of a loss: learnt beside the network as a function of the levels, or of unit length."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.embeddings import logsnr_waves


class LogVariance(nn.Module):
    """w(t, s) [B], the log of the mean square that is expected of a jump; zero at first.

    Learnt by exp(-w) mean square + w, whose minimum is there (Kendall & Gal 2017; Karras et al.
    2024, eq. 21). Linear in sinusoids of both log-SNRs [B], `waves` of each.
    """

    waves: int = 32
    time_scale: float = 16.0

    @nn.compact
    def __call__(self, t: Array, s: Array) -> Array:
        both = jnp.concatenate([logsnr_waves(a, self.waves, self.time_scale) for a in (t, s)], 1)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="w")(both)[:, 0]


def normalise(residual: Array, floor: float) -> Array:
    """Each example of a residual [B, ...] over its norm plus `floor`; as it is for a floor of 0."""
    if not floor:
        return residual
    axes = tuple(range(1, residual.ndim))
    return residual / (jnp.sqrt(jnp.sum(jnp.square(residual), axis=axes, keepdims=True)) + floor)
