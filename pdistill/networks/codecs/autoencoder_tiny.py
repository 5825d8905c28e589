"""The tiny autoencoder TAESD (Bohan 2023), as diffusers' AutoencoderTiny.

Layers have the names that they have in its files, which count every layer, convolutions or not.
"""

import functools
import itertools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.codecs.autoencoder_kl import LOGVAR
from pdistill.networks.unet import double

REACH = 3.0  # latents are squashed to (-3, 3) before they are decoded


class Block(nn.Module):
    """h [B, H, W, C] -> [B, H, W, C]: three convolutions beside the identity, then relu."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        skip = h
        for i in (0, 2, 4):
            h = nn.Conv(skip.shape[-1], (3, 3), name=f"conv.{i}")(h if i == 0 else nn.relu(h))
        return nn.relu(h + skip)


class Encoder(nn.Module):
    """Images [B, H, W, C] in [0, 1] -> latents; attributes as of `AutoencoderTiny`."""

    out_channels: int
    channels: int
    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        name = _names()
        conv = functools.partial(nn.Conv, self.channels, (3, 3), padding=1)
        for i, blocks in enumerate(self.blocks):
            halved = {"strides": 2, "use_bias": False} if i else {}
            h = conv(**halved, name=next(name))(h)
            for _ in range(blocks):
                h = Block(name=next(name))(h)
        return nn.Conv(self.out_channels, (3, 3), name=next(name))(h)


class Decoder(nn.Module):
    """Latents -> images [B, H, W, C] in [0, 1]; attributes as of `AutoencoderTiny`."""

    out_channels: int
    channels: int
    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        name = _names()
        h = nn.relu(nn.Conv(self.channels, (3, 3), name=next(name))(h))
        next(name)  # of relu
        for i, blocks in enumerate(self.blocks):
            for _ in range(blocks):
                h = Block(name=next(name))(h)
            if i == len(self.blocks) - 1:
                return nn.Conv(self.out_channels, (3, 3), name=next(name))(h)
            next(name)  # of the upsampling
            h = nn.Conv(self.channels, (3, 3), use_bias=False, name=next(name))(double(h))


class AutoencoderTiny(nn.Module):
    """Images to latents, and latents to images, by plain convolutions.

    The latents are those of the codec that it imitates, scaled as networks take them; there are no
    variances of them.

    Attributes:
      channels: width of all layers.
      latent_channels: channels of the latents. image_channels: channels of the images.
      encoder_blocks: blocks of each level, finest first; each but the first halves the image.
      decoder_blocks: blocks of each level, coarsest first; each but the last doubles it.
    """

    channels: int = 64
    latent_channels: int = 4
    image_channels: int = 3
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    def setup(self):
        self.encoder = Encoder(self.latent_channels, self.channels, self.encoder_blocks)
        self.decoder = Decoder(self.image_channels, self.channels, self.decoder_blocks)

    @property
    def factor(self) -> int:
        """Pixels a side of an image for each a side of its latents."""
        return 2 ** (len(self.encoder_blocks) - 1)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [-1, 1] -> latents, and the least log-variance for each."""
        z = self.encoder((images + 1) / 2)
        return z, jnp.full_like(z, LOGVAR[0])

    def decode(self, z: Array) -> Array:
        """Latents [B, h, w, c] -> images [B, f h, f w, C], in [-1, 1] up to the decoder's error."""
        return 2 * self.decoder(REACH * jnp.tanh(z / REACH)) - 1

    def __call__(self, images: Array) -> Array:
        """Images, encoded and decoded: all parameters are used."""
        return self.decode(self.encode(images)[0])


def _names():
    """Names of a sequence's layers, one after another."""
    return (f"layers.{i}" for i in itertools.count())
