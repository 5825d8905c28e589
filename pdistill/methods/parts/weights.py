"""Weights of a loss: learnt beside the network as a function of the levels, or of unit length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.embeddings import logsnr_waves
from pdistill.training import Learner, Optimizer


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


def weight_learner(key: Array, optimizer: Optimizer) -> Learner:
    """A learner of a `LogVariance`, by a network's optimizer but without averages."""
    zeros, none = jnp.zeros(1), {"ema_decay": 0.0, "ema_ramp": 0.0, "ema_widths": ()}
    params = LogVariance().init(key, zeros, zeros)["params"]
    return Learner.of(params, dataclasses.replace(optimizer, **none), averaged=False)


def learnt_weights(params: Any, t: Array, s: Array, square: Array) -> tuple[Array, Any]:
    """Weights exp(-w) [B] of mean squares [B], and the gradient of w's parameters."""

    def fit(params):
        w = LogVariance().apply({"params": params}, t, s)
        return jnp.mean(jnp.exp(-w) * square + w), jnp.exp(-w)

    slopes, weights = jax.grad(fit, has_aux=True)(params)
    return weights, slopes


def normalise(residual: Array, floor: float) -> Array:
    """Each example of a residual [B, ...] over its norm plus `floor`; as it is for a floor of 0."""
    if not floor:
        return residual
    axes = tuple(range(1, residual.ndim))
    return residual / (jnp.sqrt(jnp.sum(jnp.square(residual), axis=axes, keepdims=True)) + floor)
