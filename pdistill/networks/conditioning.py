"""Conditioning: all that a network is told beside its noisy image, one pytree that grows by
fields."""

import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill.samplers import LowRes


class Text(struct.PyTreeNode):
    """Prompts as a text encoder hands them on; None for what a network does not take.

    Attributes:
      mask: [B, L] bool, True for tokens of the prompt. A row without any is "no prompt".
      tokens: embeddings of the tokens [B, L, D], for cross-attention.
      pooled: one embedding of the whole prompt, [B, P].
    """

    mask: Array
    tokens: Array | None = None
    pooled: Array | None = None

    @property
    def dropped(self) -> "Text":
        """The same number of rows, each "no prompt"."""
        return self.replace(mask=jnp.zeros_like(self.mask))


class Conditioning(struct.PyTreeNode):
    """Values that a network is told beside its noisy image; None for what it is not told.

    Attributes:
      label: [B] int, 0 .. num_labels - 1; num_labels is "no label".
      text: prompts.
      guidance: weights w [B] of x_hat = (1 + w) x_cond - w x_uncond.
      levels: log-SNRs [B, 2], the lowest and the highest at which guidance acts.
      target: log-SNR to jump to, [B].
      image: the image one resolution below, for the networks of a cascade.
    """

    label: Array | None = None
    text: Text | None = None
    guidance: Array | None = None
    levels: Array | None = None
    target: Array | None = None
    image: LowRes | None = None


NOTHING = Conditioning()
