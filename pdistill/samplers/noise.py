"""Random numbers for a batch, from one key or from a key for each sample."""

import jax
from jax import Array


def as_typed(key: Array) -> Array:
    """Returns a typed key, [] or [B], from a typed key or raw uint32 key data [..., 2]."""
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def split(key: Array) -> tuple[Array, Array]:
    """Splits `key` into two keys of its shape."""
    pair = jax.vmap(jax.random.split)(key) if key.ndim else jax.random.split(key)
    return pair[..., 0], pair[..., 1]


def fold_in(key: Array, i: Array) -> Array:
    """Derives keys of the shape of `key`, different for each i."""
    return (jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in)(key, i)


def normal(key: Array, shape: tuple[int, ...], dtype) -> Array:
    """Draws normal noise of `shape` [B, ...]; with keys [B], row i depends on key[i] alone."""
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)
