"""The U-Net of Karras et al. 2024 (EDM2), whose layers keep the magnitude of what they are given.

Weights have the scale that the files have; each call divides them by their length, so that their
gradients are those of the normalised ones. EDM2's training also sets the weights to that length
after each update, which is not done here. Layers have the names of the published files.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.data.images import average, repeat
from pdistill.networks.attention import attend
from pdistill.networks.conditioning import Conditioning
from pdistill.networks.embeddings import one_hot
from pdistill.networks.published.base import dropout
from pdistill.networks.published.edm_unet import EdmUNet
from pdistill.networks.transformer import separate

EPSILON = 1e-4  # added to lengths
BALANCE = 0.3  # share of a branch in its sum with the path that it leaves
LARGEST = 256.0  # magnitude that each block's output is clipped to


class MpLayer(nn.Module):
    """h [..., C] -> [..., features]: linear, or a convolution of odd `side`, without bias.

    The weights of an output, n of them, are w / (EPSILON + |w| / sqrt(n)) gain / sqrt(n).
    """

    features: int
    side: int = 1

    @nn.compact
    def __call__(self, h: Array, gain: Array | float = 1.0) -> Array:
        window = (self.side, self.side) if self.side > 1 else ()
        shape = (*window, h.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        fan_in = math.prod(shape[:-1])
        kernel = unit(kernel, tuple(range(kernel.ndim - 1))) * (gain / math.sqrt(fan_in))
        kernel = kernel.astype(h.dtype)
        if not window:
            return h @ kernel
        return jax.lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class Edm2Block(nn.Module):
    """h [B, H, W, C], embedding [B, E] -> [B, H', W', features]; attention may follow.

    Attributes:
      resample: "up", "down" or "", before both paths.
      heads: attention heads; 0 for none.
      decoder: a block of the way up, which neither projects nor normalises before its branch.
    """

    features: int
    resample: str = ""
    heads: int = 0
    decoder: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Array, embedding: Array) -> Array:
        if self.resample:
            h = average(h, 2) if self.resample == "down" else repeat(h, 2)

        def project(h: Array) -> Array:
            if h.shape[-1] == self.features:
                return h
            return MpLayer(self.features, name="conv_skip")(h)

        if not self.decoder:
            h = unit(project(h), -1)
        branch = MpLayer(self.features, 3, name="conv_res0")(mp_silu(h))
        gain = self.param("emb_gain", nn.initializers.zeros, (), jnp.float32)
        scale = 1 + MpLayer(self.features, name="emb_linear")(embedding, gain)
        branch = dropout(mp_silu(branch * scale[:, None, None]), self.dropout)
        branch = MpLayer(self.features, 3, name="conv_res1")(branch)
        h = mp_sum(project(h) if self.decoder else h, branch, BALANCE)
        if self.heads:
            batch, height, width, channels = h.shape
            qkv = MpLayer(3 * channels, name="attn_qkv")(h)
            qkv = unit(qkv.reshape(batch, height * width, self.heads, -1, 3), -2)
            tokens = attend(*separate(qkv, -1)).reshape(h.shape)
            h = mp_sum(h, MpLayer(channels, name="attn_proj")(tokens), BALANCE)
        return jnp.clip(h, -LARGEST, LARGEST)


class Edm2UNet(EdmUNet):
    """The network of EDM2, of channels 64 (XXS), 128 (XS), 192 (S), 256, 320, 384 and 448 (XXL).

    Attributes:
      wave_multiplier: number of waves of the noise level, in channels.
      head_channels: channels of each attention head.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_sizes: tuple[int, ...] = (16, 8)
    wave_multiplier: int = 1
    head_channels: int = 64

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        waves = self.wave_multiplier * self.channels
        frequencies, phases = (
            jax.lax.stop_gradient(self.param(f"emb_fourier.{name}", init, (waves,), jnp.float32))
            for name, init in (
                ("freqs", nn.initializers.normal(2 * math.pi)),
                ("phases", nn.initializers.uniform(2 * math.pi)),
            )
        )
        angles = time[:, None] * frequencies[None] + phases[None]
        waves_of_time = self.add_guidance(math.sqrt(2) * jnp.cos(angles), told)
        layer = functools.partial(MpLayer, self.embedding_multiplier * self.channels)
        embedding = layer(name="emb_noise")(waves_of_time)
        if self.num_labels:
            labels = one_hot(told.label, self.num_labels, h.shape[0]).astype(embedding.dtype)
            labels = layer(name="emb_label")(math.sqrt(self.num_labels) * labels)
            embedding = mp_sum(embedding, labels, 0.5)
        embedding = mp_silu(self.add_target(embedding, waves, logsnr, told))

        def block(features: int, resample: str = "", *, heads: int = 0, name: str) -> nn.Module:
            decoder = name.startswith("dec.")
            return Edm2Block(features, resample, heads, decoder, rate, name=name)

        h = self.levels(
            jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1), embedding, block,
            first=self.channels * self.multipliers[0],
            heads=lambda features: features // self.head_channels, attend_each=True,
            conv=functools.partial(MpLayer, side=3), concatenate=mp_cat,
        )  # fmt: skip
        h = self.grow(h, embedding, rate)
        gain = self.param("out_gain", nn.initializers.zeros, (), jnp.float32)
        return MpLayer(self.out_channels, 3, name="out_conv")(h, gain)


def unit(a: Array, axes: int | tuple[int, ...]) -> Array:
    """`a` over its root mean square along these axes."""
    return a / (EPSILON + jnp.sqrt(jnp.mean(jnp.square(a), axes, keepdims=True)))


def mp_silu(h: Array) -> Array:
    return nn.silu(h) / 0.596


def mp_sum(a: Array, b: Array, share: float) -> Array:
    """The sum of a and b, in which b has this share, over its length if they are independent."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_cat(a: Array, b: Array) -> Array:
    """Joins channels so that a and b weigh alike, however many they are."""
    num, other = a.shape[-1], b.shape[-1]
    scale = math.sqrt((num + other) / 2)
    parts = [a * (scale / math.sqrt(num)), b * (scale / math.sqrt(other))]
    return jnp.concatenate(parts, axis=-1)
