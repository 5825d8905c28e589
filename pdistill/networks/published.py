"""What the published U-Nets have in common: sinusoids, normalisation, attention, resampling."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def waves(time: Array, features: int, *, shift: float = 0.0, cosines_first: bool = True) -> Array:
    """Sines and cosines of a network's own time: [B] -> [B, features].

    Frequencies exp(-j log(10000) / (half - shift)), j < half = features // 2; a zero pads odd
    `features`. `embeddings.sinusoidal` has shift = 1, sines first and time = 1000 u.
    """
    half = features // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - shift) * jnp.arange(half, dtype=time.dtype))
    angles = time[:, None] * frequencies[None]
    parts = [jnp.cos(angles), jnp.sin(angles)]
    joined = jnp.concatenate(parts if cosines_first else parts[::-1], axis=-1)
    return jnp.pad(joined, ((0, 0), (0, features % 2)))


def one_hot(label: Array | None, num_labels: int, batch: int) -> Array:
    """[B, num_labels] float32; zeros for label = num_labels, and for None throughout."""
    if label is None:
        return jnp.zeros((batch, num_labels))
    return jax.nn.one_hot(label, num_labels)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention among tokens: three [B, T, heads, channels] -> [B, T, heads channels]."""
    with jax.numpy_dtype_promotion("standard"):  # it relies on it; callers may be strict
        tokens = jax.nn.dot_product_attention(q, k, v)
    return tokens.reshape(*tokens.shape[:2], -1)


def dropout(h: Array, rate: float) -> Array:
    """Within a compact module; needs the "dropout" key unless `rate` is 0."""
    return nn.Dropout(rate, deterministic=False)(h)
