"""Conditioning: all that a network is told beside its noisy image, one pytree that grows by
fields."""

from collections.abc import Mapping
from typing import Any

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

    def without(self, hidden: Array | None = None) -> "Text":
        """The same with "no prompt" in the rows `hidden` [B], bool; None for all."""
        kept = jnp.zeros_like(self.mask) if hidden is None else self.mask & ~hidden[:, None]
        return self.replace(mask=kept)

    @classmethod
    def zeros(cls, num: int, pooled: int, tokens: int, length: int = 1) -> "Text":
        """Rows of "no prompt", with embeddings of these widths; 0 for none."""
        return cls(
            jnp.zeros((num, length), bool),
            jnp.zeros((num, length, tokens)) if tokens else None,
            jnp.zeros((num, pooled)) if pooled else None,
        )


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

    @classmethod
    def of(cls, batch: Mapping[str, Any], **more: Any) -> "Conditioning":
        """The labels and prompts of a batch, where it has them, and `more` fields."""
        return cls(label=batch.get("label"), text=batch.get("text"), **more)

    def without(self, num_labels: int, hidden: Array | None = None) -> "Conditioning":
        """The same with "no label" and "no prompt" in the rows `hidden` [B], bool; None for all."""
        label = self.label
        if label is not None:
            hide = True if hidden is None else hidden
            label = jnp.where(hide, jnp.full_like(label, num_labels), label)
        return self.replace(label=label, text=self.text and self.text.without(hidden))

    def is_informed(self, num_labels: int) -> Array:
        """Whether each row has a label or a prompt, [B] bool."""
        label = self.label < num_labels
        return label if self.text is None else label | self.text.mask.any(-1)


NOTHING = Conditioning()
