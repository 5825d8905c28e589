"""The common form of the networks of others: their call, and dropout."""

import abc
import functools

from flax import linen as nn
from jax import Array

from pdistill.data.images import repeat
from pdistill.networks.conditioning import NOTHING, Conditioning
from pdistill.networks.embeddings import GuidanceEmbedding, TargetEmbedding
from pdistill.networks.published.conventions import parse_convention
from pdistill.networks.unet import ResBlock, grow


class Published(nn.Module, abc.ABC):
    """z [B, H, W, C], logsnr [B] -> [B, H, W, out_channels] float32, of the convention's head.

    Attributes:
      out_channels: channels of the output.
      convention: the convention of its inputs and outputs, as in `conventions.parse_convention`.
      num_labels: labels are 0 .. num_labels - 1; num_labels, or None for the batch, is "no label".
      guidance: the network also takes a guidance weight, see `GuidanceEmbedding`.
      dropout: rate within each block when training.
    """

    out_channels: int
    convention: tuple = ("ddpm",)
    num_labels: int = 0
    guidance: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        z: Array,
        logsnr: Array,
        told: Conditioning = NOTHING,
        *,
        train: bool = False,
    ) -> Array:
        convention = parse_convention(self.convention)
        h, time = convention.enter(z, logsnr)
        h = self.body(h, time, logsnr, told, self.dropout if train else 0.0)
        z = repeat(z, h.shape[1] // z.shape[1])  # for a network that has grown
        return convention.leave(z, logsnr, h)

    @abc.abstractmethod
    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        """The network as it was published, at its own time [B]; `rate` is dropout's."""

    def add_guidance(self, sinusoids: Array, told: Conditioning) -> Array:
        """The time's sinusoids [B, features], with those of the weight if it takes one."""
        if not self.guidance:
            return sinusoids
        embed = GuidanceEmbedding(sinusoids.shape[-1], name="guidance_in")
        return sinusoids + embed(told.guidance, sinusoids.shape[0])


class PublishedUNet(Published):
    """A U-Net of these.

    Attributes:
      target: it also takes the log-SNR to jump to, see `TargetEmbedding`; None is logsnr itself.
      grown, grown_blocks: levels behind the last one, of the blocks of our `UNet`, as it has them.
    """

    target: bool = False
    grown: tuple[int, ...] = ()
    grown_blocks: int = 2

    def grow(self, h: Array, embedding: Array, rate: float) -> Array:
        """h [B, H, W, C] after the grown levels, larger by a factor of two for each."""
        block = functools.partial(ResBlock, dropout=rate)
        return grow(h, embedding, self.grown, self.grown_blocks, block)

    def add_target(
        self, embedding: Array, sinusoids: int, logsnr: Array, told: Conditioning
    ) -> Array:
        """The embedding [B, features], with that of the target if it takes one."""
        if not self.target:
            return embedding
        embed = TargetEmbedding(sinusoids, embedding.shape[-1], name="target_in")
        return embedding + embed(told.target, logsnr)


def dropout(h: Array, rate: float) -> Array:
    """Within a compact module; needs the "dropout" key unless `rate` is 0."""
    return nn.Dropout(rate, deterministic=False)(h)
