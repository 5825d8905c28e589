"""Conditioning: all that a network is told beside its noisy image, one pytree that grows by
fields."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill.data.text import Text
from pdistill.diffusion.guidance import acting
from pdistill.diffusion.schedules import SMALL, Schedule, known_ends
from pdistill.samplers import LowRes


class Conditioning(struct.PyTreeNode):
    """Values that a network is told beside its noisy image; None for what it is not told.

    Attributes:
      label: [B] int, 0 .. num_labels - 1; num_labels is "no label".
      guidance: weights w [B] of x_hat = (1 + w) x_cond - w x_uncond.
      guidance_levels: log-SNRs [B, 2], the lowest and the highest at which guidance acts.
      target: log-SNR to jump to, [B].
      image: the image one resolution below, for the networks of a cascade.
      text: prompts.
    """

    label: Array | None = None
    guidance: Array | None = None
    guidance_levels: Array | None = None
    target: Array | None = None
    image: LowRes | None = None
    text: Text | None = None

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


def guiding_weight(told: Conditioning, network: Any, logsnr: Array) -> Array:
    """Weights of the guidance that is told, [B], but 0 at log-SNRs that a guide has not learnt.

    It may predict what says nothing of an image there: eps, of which x_hat has the error by
    sigma / alpha. They are as told without a guide, and with one of the network's own schedule,
    which knows what the network does.
    """
    guide = network.guide
    if guide is None or guide.schedule == network.schedule:
        return told.guidance
    return acting(told.guidance, _learnt(guide.schedule), logsnr)


@functools.lru_cache(maxsize=16)
def _learnt(schedule: Schedule) -> tuple[float, float]:
    """The `known_ends` of a schedule and what they round by, once: they wait for the device."""
    low, high = known_ends(schedule)
    return low - SMALL, high + SMALL
