"""A network with what is needed to read it: its head and its schedule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import Denoiser, Schedule


@dataclasses.dataclass(frozen=True)
class Diffuser:
    """Reads a network's output as v or as a denoiser. Static and hashable; parameters are passed.

    Labels are dropped for a network that takes none (num_labels = 0).

    Attributes:
      network: network(z [B, ...], logsnr [B], label [B] or None, train=bool) -> output.
      head: what the output is, one of `diffusion.HEADS`.
      schedule: the noise schedule it is trained and sampled on.
    """

    network: nn.Module
    head: str
    schedule: Schedule

    def __post_init__(self):
        diffusion.output_channels(self.head, 1)  # raises for an unknown head

    @property
    def num_labels(self) -> int:
        """Labels the network takes; 0 if it is unconditional."""
        return getattr(self.network, "num_labels", 0)

    def init(self, key: Array, shape: tuple[int, ...]) -> Any:
        """Parameters for one example of `shape`."""
        return self.network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))["params"]

    def v(
        self,
        params: Any,
        z: Array,
        logsnr: Array,
        label: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """v_hat [B, ...]; with dropout if a key for it is given."""
        output = self._apply(params, z, logsnr, label, dropout_key)
        return diffusion.v_from_output(self.head, z, output, logsnr)

    def denoiser(self, params: Any, label: Array | None = None) -> Denoiser:
        """denoise(z, logsnr) -> x_hat, with parameters and label [B] closed over."""

        def denoise(z, logsnr):
            output = self._apply(params, z, logsnr, label, None)
            return diffusion.x_from_output(self.head, z, output, logsnr)

        return denoise

    def _apply(self, params, z, logsnr, label, dropout_key):
        label = label if self.num_labels else None
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return self.network.apply(
            {"params": params}, z, logsnr, label, train=dropout_key is not None, rngs=rngs
        )

    def with_head(self, head: str, channels: int) -> "Diffuser":
        """The same with another head, for images of `channels` channels."""
        network = self.network.clone(out_channels=diffusion.output_channels(head, channels))
        return dataclasses.replace(self, network=network, head=head)

    def without_dropout(self) -> "Diffuser":
        """The same with a network that has no dropout; parameters are shared."""
        if not getattr(self.network, "dropout", 0.0):
            return self
        return dataclasses.replace(self, network=self.network.clone(dropout=0.0))

    def param_shapes(self, shape: tuple[int, ...]) -> Any:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0), shape))
