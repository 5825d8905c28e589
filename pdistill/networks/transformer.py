"""Parts of transformers, and the attention of U-Nets."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.samplers.sampling import at_least_float32


def attend(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention among tokens: three [B, T, heads, channels] -> one; softmax in float32.

    Scaled and normalised where there are B T heads channels numbers, not where there are B T T
    heads, and with the heads before the tokens: fewer passes over memory, which on a CPU take half
    of the time of `jax.nn.dot_product_attention`.
    """
    q, k, v = (a.swapaxes(1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    wide = q.dtype if q.dtype == jnp.float64 else jnp.float32
    matmul = functools.partial(jnp.matmul, preferred_element_type=wide)
    logits = matmul(q, k.swapaxes(2, 3))
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = matmul(weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
    return mixed.astype(v.dtype).swapaxes(1, 2)


def normalize(tokens: Array, epsilon: float = 1e-6) -> Array:
    """Layer norm without scale and bias; at least float32 inside, as the input outside."""
    norm = nn.LayerNorm(epsilon=epsilon, use_bias=False, use_scale=False)
    return norm(at_least_float32(tokens)).astype(tokens.dtype)


def modulate(tokens: Array, shift: Array, scale: Array) -> Array:
    """Tokens [B, T, C] times 1 + scale, plus shift, [B, 1, C] each."""
    return tokens * (1 + scale) + shift
