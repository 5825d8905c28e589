"""What transformers are made of, and the attention of U-Nets."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention among tokens: three [B, T, heads, channels] -> one; softmax in float32."""
    with jax.numpy_dtype_promotion("standard"):  # it relies on it; callers may be strict
        return jax.nn.dot_product_attention(q, k, v)


def normalize(tokens: Array, epsilon: float = 1e-6) -> Array:
    """Layer norm without scale and bias; float32 inside, as the input outside."""
    norm = nn.LayerNorm(epsilon=epsilon, use_bias=False, use_scale=False)
    return norm(tokens.astype(jnp.float32)).astype(tokens.dtype)


def modulate(tokens: Array, shift: Array, scale: Array) -> Array:
    """Tokens [B, T, C] times 1 + scale, plus shift, [B, 1, C] each."""
    return tokens * (1 + scale) + shift
