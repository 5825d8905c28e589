"""Conditioning: all that a network is told beside its noisy image, one pytree that grows by
fields."""

from flax import struct
from jax import Array

from pdistill.samplers import LowRes


class Conditioning(struct.PyTreeNode):
    """Values that a network is told beside its noisy image; None for what it is not told.

    Attributes:
      label: [B] int, 0 .. num_labels - 1; num_labels is "no label".
      guidance: weights w [B] of x_hat = (1 + w) x_cond - w x_uncond.
      levels: log-SNRs [B, 2], the lowest and the highest at which guidance acts.
      target: log-SNR to jump to, [B].
      image: the image one resolution below, for the networks of a cascade.
    """

    label: Array | None = None
    guidance: Array | None = None
    levels: Array | None = None
    target: Array | None = None
    image: LowRes | None = None


NOTHING = Conditioning()
