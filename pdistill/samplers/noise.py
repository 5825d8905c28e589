"""Random numbers for a batch, from one key or from a key for each sample."""

import jax
import jax.numpy as jnp
from jax import Array

SEEDS = 2**32  # that are different: of others, jax.random.key takes the last 32 bits
GENERATOR = "threefry2x32"  # by which the rows of a batch can be drawn each by itself


def as_threefry(key: Array) -> Array:
    """Returns a threefry key, [] or [B], from a typed key or raw uint32 key data [..., 2 or 4].

    Other generators draw a row that depends on the batch (`rbg`, under vmap). The first two words
    of an `rbg` key are the threefry key of the same seed, splits and folds.

    Raises:
      ValueError: `key` is neither, such as a seed.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    elif dtype != jnp.uint32 or key.shape[-1:] not in ((2,), (4,)):
        raise ValueError(f"key must be a PRNG key, such as jax.random.key(0); got {key!r}")
    return jax.random.wrap_key_data(key[..., :2], impl=GENERATOR)


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
