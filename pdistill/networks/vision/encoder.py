"""An image tower as a value, with its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array


class ImageEncoder(struct.PyTreeNode):
    """An image tower with its parameters: normalised images to features.

    Only `params` is traced, as of `Codec`; a *blank* encoder has None for them.

    Attributes:
      params: nested dictionary of arrays, or None.
      module: a `Dinov2` or a `ClipImage`.
    """

    params: Any
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Images x [B, H, W, 3], normalised as the tower's were -> features [B, D]."""
        with jax.default_matmul_precision("float32"):  # the same features on every machine
            return self.module.apply({"params": self.params}, x)

    @property
    def shapes(self) -> "ImageEncoder":
        """The encoder with the shapes of its parameters, `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def init(self, key: Array) -> "ImageEncoder":
        """The encoder with fresh parameters."""
        side = self.module.patch * self.module.grid
        x = jnp.zeros((1, side, side, 3))
        return self.replace(params=self.module.init(key, x)["params"])
