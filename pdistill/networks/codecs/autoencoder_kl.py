"""The KL autoencoder of latent diffusion (Rombach et al. 2022), as diffusers' AutoencoderKL.

Layers have the names that they have in its files, dots included, below "encoder" and "decoder".
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.linear import Dense
from pdistill.networks.norms import GroupNorm
from pdistill.networks.published.diffusers_unet import Attention, ResnetBlock
from pdistill.networks.unet import double

EPSILON = 1e-6
LOGVAR = (-30.0, 20.0)  # range that log-variances are clipped to


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, H / f, W / f, out_channels], f = 2 ** (levels - 1).

    Attributes: as of `AutoencoderKL`.
    """

    out_channels: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    middle_attention: bool
    groups: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        block, attention = _layers(self.groups)
        h = nn.Conv(self.channels[0], (3, 3), name="conv_in")(h)
        for i, features in enumerate(self.channels):
            name = f"down_blocks.{i}"
            for j in range(self.blocks):
                h = block(features, name=f"{name}.resnets.{j}")(h)
                if i in self.attention:
                    h = attention(name=f"{name}.attentions.{j}")(h)
            if i < len(self.channels) - 1:  # zeros below and to the right only
                h = nn.Conv(
                    features, (3, 3), (2, 2), [(0, 1)] * 2, name=f"{name}.downsamplers.0.conv"
                )(h)
        h = _middle(h, block, attention if self.middle_attention else None)
        return _last(h, self.groups, self.out_channels)


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> images [B, f h, f w, out_channels]; attributes as of `Encoder`."""

    out_channels: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    middle_attention: bool
    groups: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        block, attention = _layers(self.groups)
        h = nn.Conv(self.channels[-1], (3, 3), name="conv_in")(h)
        h = _middle(h, block, attention if self.middle_attention else None)
        for i, features in enumerate(reversed(self.channels)):
            name, level = f"up_blocks.{i}", len(self.channels) - 1 - i
            for j in range(self.blocks + 1):
                h = block(features, name=f"{name}.resnets.{j}")(h)
                if level in self.attention:
                    h = attention(name=f"{name}.attentions.{j}")(h)
            if level > 0:
                h = nn.Conv(features, (3, 3), name=f"{name}.upsamplers.0.conv")(double(h))
        return _last(h, self.groups, self.out_channels)


class AutoencoderKL(nn.Module):
    """Images to the moments of their latents, and latents to images.

    The defaults are Stable Diffusion's, f8d4. f8d16 of SD3 and FLUX has latent_channels=16,
    quant=False and post_quant=False; VA-VAE's f16d32 has channels=(128, 128, 256, 256, 512),
    latent_channels=32 and attention=(4,).

    Attributes:
      channels: width of each level, finest first; each but the last halves the image.
      latent_channels: channels of the latents. image_channels: channels of the images.
      blocks: residual blocks of each level of the encoder; the decoder has one more.
      attention: levels at which attention follows each block, 0 the finest. middle_attention: there
        is one in the middle, too.
      groups: as of `GroupNorm`.
      quant: the moments pass a last 1x1 convolution. post_quant: so do latents, first.
      unit_pixels: it sees pixels in [0, 1], and so makes them, as EDM2 uses Stable Diffusion's.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    image_channels: int = 3
    blocks: int = 2
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    groups: int = 32
    quant: bool = True
    post_quant: bool = True
    unit_pixels: bool = False

    def setup(self):
        same = (self.channels, self.blocks, self.attention, self.middle_attention, self.groups)
        self.encoder = Encoder(2 * self.latent_channels, *same)
        self.decoder = Decoder(self.image_channels, *same)
        if self.quant:
            self.quant_conv = Dense(2 * self.latent_channels)
        if self.post_quant:
            self.post_quant_conv = Dense(self.latent_channels)

    @property
    def factor(self) -> int:
        """Pixels a side of an image for each a side of its latents."""
        return 2 ** (len(self.channels) - 1)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, C] in [-1, 1] -> mean and log-variance, [B, H / f, W / f, c] each."""
        moments = self.encoder((images + 1) / 2 if self.unit_pixels else images)
        if self.quant:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(self, z: Array) -> Array:
        """Latents [B, h, w, c] -> images [B, f h, f w, C], in [-1, 1] up to the decoder's error."""
        images = self.decoder(self.post_quant_conv(z) if self.post_quant else z)
        return 2 * images - 1 if self.unit_pixels else images

    def __call__(self, images: Array) -> Array:
        """Images, encoded and decoded without noise: all parameters are used."""
        mean, _ = self.encode(images)
        return self.decode(mean)


def _layers(groups: int):
    """Residual block and attention; variances are exact, as means here can be far from zero."""
    norm = {"groups": groups, "epsilon": EPSILON, "use_fast_variance": False}
    return functools.partial(ResnetBlock, **norm), functools.partial(Attention, 1, **norm)


def _middle(h: Array, block, attention) -> Array:
    h = block(h.shape[-1], name="mid_block.resnets.0")(h)
    if attention:
        h = attention(name="mid_block.attentions.0")(h)
    return block(h.shape[-1], name="mid_block.resnets.1")(h)


def _last(h: Array, groups: int, out_channels: int) -> Array:
    norm = GroupNorm(groups, epsilon=EPSILON, use_fast_variance=False, name="conv_norm_out")
    return nn.Conv(out_channels, (3, 3), name="conv_out")(nn.silu(norm(h)))
