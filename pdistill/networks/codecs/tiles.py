"""Large images in tiles that overlap, so that memory does not grow with them."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def in_tiles(
    function: Callable[[Array], Array], a: Array, *, tile: int, kept: int, blended: int
) -> Array:
    """Applies a function to square tiles of `a` [B, H, W, C] and joins the results, as diffusers.

    Args:
      tile: side of a tile; each begins three quarters of it after the one before.
      kept: side of what is kept of each result. blended: rows and columns at its beginning that
        pass from the result above, or on the left, to its own.
    """
    step = tile * 3 // 4
    rows = [
        [function(a[:, i : i + tile, j : j + tile]) for j in range(0, a.shape[2], step)]
        for i in range(0, a.shape[1], step)
    ]
    for i, row in enumerate(rows):
        for j in range(len(row)):
            if i > 0:
                row[j] = _blend(rows[i - 1][j], row[j], blended, axis=1)
            if j > 0:
                row[j] = _blend(row[j - 1], row[j], blended, axis=2)
    joined = [jnp.concatenate([h[:, :kept, :kept] for h in row], axis=2) for row in rows]
    return jnp.concatenate(joined, axis=1)


def _blend(before: Array, h: Array, num: int, axis: int) -> Array:
    """h, whose first `num` rows or columns begin as the last of `before`."""
    size = h.shape[axis]
    num = min(before.shape[axis], size, num)
    share = jnp.arange(num, dtype=h.dtype) / num
    share = jnp.expand_dims(share, [i for i in range(h.ndim) if i != axis])
    last = lax.slice_in_dim(before, before.shape[axis] - num, None, axis=axis)
    mixed = (1 - share) * last + share * lax.slice_in_dim(h, 0, num, axis=axis)
    return jnp.concatenate([mixed, lax.slice_in_dim(h, num, size, axis=axis)], axis=axis)
