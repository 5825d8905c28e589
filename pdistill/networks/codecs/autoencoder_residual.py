"""A small KL autoencoder of our own, which trains within minutes on a CPU.

Residual branches begin with a norm without parameters and end with a learnt scale: at the same cost
that was four times as efficient as plain blocks.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.codecs.autoencoder_kl import LOGVAR
from pdistill.networks.linear import Dense
from pdistill.networks.patches import channels_to_pixels, pixels_to_channels


class Block(nn.Module):
    """h [B, H, W, C] -> [B, H, W, C]: h and `scale` times two convolutions of h over its RMS."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        conv = functools.partial(nn.Conv, h.shape[-1], (3, 3))
        rms = jnp.sqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-4)
        branch = conv(name="conv2")(nn.relu(conv(name="conv1")(h / rms)))
        scale = self.param("scale", nn.initializers.constant(0.2), (1,))
        return h + scale[None, None, None] * branch


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, H / f, W / f, out_channels]; as of `AutoencoderResidual`."""

    out_channels: int
    channels: tuple[int, ...]
    blocks: int
    patch: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = pixels_to_channels(h, self.patch)
        h = nn.relu(nn.Conv(self.channels[0], (3, 3), name="conv_in")(h))
        for i, features in enumerate(self.channels):
            if i > 0:
                h = Dense(features, name=f"down_{i}")(pixels_to_channels(h, 2))
            for j in range(self.blocks):
                h = Block(name=f"level_{i}.block_{j}")(h)
        return nn.Conv(self.out_channels, (3, 3), bias_init=_little_noise, name="conv_out")(h)


def _little_noise(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Biases of moments, 0 for means and -6 for log-variances: a decoder learns to heed latents."""
    del key
    return jnp.where(jnp.arange(*shape) < shape[0] // 2, 0, -6).astype(dtype)


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> images [B, f h, f w, out_channels]; as of `AutoencoderResidual`."""

    out_channels: int
    channels: tuple[int, ...]
    blocks: int
    patch: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = nn.relu(nn.Conv(self.channels[-1], (3, 3), name="conv_in")(h))
        for i in reversed(range(len(self.channels))):
            for j in range(self.blocks):
                h = Block(name=f"level_{i}.block_{j}")(h)
            if i > 0:
                h = Dense(4 * self.channels[i - 1], name=f"up_{i}")(h)
                h = channels_to_pixels(h, 2)
        h = nn.Conv(self.patch**2 * self.out_channels, (3, 3), name="conv_out")(h)
        return channels_to_pixels(h, self.patch)


class AutoencoderResidual(nn.Module):
    """Images to the moments of their latents, and latents to images, without attention.

    Attributes:
      channels: width of each level, finest first; each but the last halves the image.
      latent_channels: channels of the latents. image_channels: channels of the images.
      blocks: residual blocks of each level.
      patch: side of the squares of pixels that become channels before the first level.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    latent_channels: int = 4
    image_channels: int = 3
    blocks: int = 2
    patch: int = 2

    def setup(self):
        same = (self.channels, self.blocks, self.patch)
        self.encoder = Encoder(2 * self.latent_channels, *same)
        self.decoder = Decoder(self.image_channels, *same)

    @property
    def factor(self) -> int:
        """Pixels a side of an image for each a side of its latents."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [-1, 1] -> mean and log-variance, [B, H / f, W / f, c] each."""
        mean, logvar = jnp.split(self.encoder(images), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(self, z: Array) -> Array:
        """Latents [B, h, w, c] -> images [B, f h, f w, C], in [-1, 1] up to the decoder's error."""
        return self.decoder(z)

    def __call__(self, images: Array) -> Array:
        """Images, encoded and decoded without noise: all parameters are used."""
        mean, _ = self.encode(images)
        return self.decode(mean)
