"""Group norm as of `flax.linen.GroupNorm`, with sums that read memory in its order."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.samplers.sampling import at_least_float32


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018) of h [B, ..., C], with a scale and a bias for each channel.

    At least float32 inside, as the input outside. Pixels are summed for each channel first: with
    groups as an axis, which flax's has, a CPU reads channels by twos or threes, three to four times
    as long.

    Attributes:
      num_groups: number of groups, which must divide C. epsilon: is added to variances.
      use_fast_variance: variances are E[h^2] - E[h]^2, instead of E[(h - E[h])^2].
    """

    num_groups: int
    epsilon: float = 1e-6
    use_fast_variance: bool = True

    @nn.compact
    def __call__(self, h: Array) -> Array:
        channels = h.shape[-1]
        if not self.num_groups or channels % self.num_groups:
            raise ValueError(
                f"Number of groups ({self.num_groups}) does not divide the {channels} channels"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = at_least_float32(h)
        mean = self._mean(wide)
        if self.use_fast_variance:
            variance = jnp.maximum(self._mean(wide * wide) - mean * mean, 0.0)
        else:
            variance = self._mean((wide - mean) ** 2)
        broadcast = lambda a: a.reshape((1,) * (h.ndim - 1) + (channels,))  # noqa: E731
        factor = jax.lax.rsqrt(variance + self.epsilon) * broadcast(scale)
        return ((wide - mean) * factor + broadcast(bias)).astype(h.dtype)

    def _mean(self, a: Array) -> Array:
        """Means over pixels and groups of channels, [B, 1, ..., C]."""
        of_channels = a.mean(tuple(range(1, a.ndim - 1)), keepdims=True)
        grouped = of_channels.reshape(*of_channels.shape[:-1], self.num_groups, -1)
        means = grouped.mean(-1, keepdims=True)
        return jnp.broadcast_to(means, grouped.shape).reshape(of_channels.shape)
