"""The U-Nets of Karras et al. 2022 (EDM): SongUNet, which is DDPM++ and NCSN++, and DhariwalUNet.

Layers have the names that they have in the published files, dots included: "enc.32x32_block0" is
one name. The augmentation label of their training is left out, as it is when they sample.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.networks.attention import attend
from pdistill.networks.conditioning import Conditioning
from pdistill.networks.embeddings import one_hot, waves
from pdistill.networks.linear import Dense
from pdistill.networks.norms import GroupNorm
from pdistill.networks.published.base import PublishedUNet, dropout
from pdistill.networks.transformer import separate


class EdmBlock(nn.Module):
    """h [B, H, W, C], embedding [B, E] -> [B, H', W', features]; attention may follow.

    Attributes:
      resample: "up", "down" or "", with the filter `taps`, on both paths.
      heads: attention heads; 0 for none.
      scale_shift: the embedding scales and shifts the second norm; else it is added before it.
      project: the skip path has a 1x1 convolution whenever the block resamples.
      skip_scale: factor after each addition. epsilon: added in the norms.
    """

    features: int
    resample: str = ""
    heads: int = 0
    dropout: float = 0.0
    scale_shift: bool = True
    project: bool = False
    skip_scale: float = 1.0
    epsilon: float = 1e-5
    taps: tuple[int, ...] = (1, 1)

    @nn.compact
    def __call__(self, h: Array, embedding: Array) -> Array:
        norm = functools.partial(group_norm, epsilon=self.epsilon)
        resample = functools.partial(filtered, taps=self.taps, resample=self.resample)
        skip = h
        h = nn.Conv(self.features, (3, 3), name="conv0")(resample(nn.silu(norm(h, "norm0"))))
        affine = Dense(self.features * (2 if self.scale_shift else 1), name="affine")(embedding)
        affine = affine[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(affine, 2, axis=-1)
            h = nn.silu(norm(h, "norm1") * (1 + scale) + shift)
        else:
            h = nn.silu(norm(h + affine, "norm1"))
        h = nn.Conv(self.features, (3, 3), name="conv1")(dropout(h, self.dropout))
        channels, skip = skip.shape[-1], resample(skip)
        if channels != self.features or (self.project and self.resample):
            skip = Dense(self.features, name="skip")(skip)
        h = (h + skip) * self.skip_scale
        if self.heads:
            batch, height, width, channels = h.shape
            qkv = Dense(3 * channels, name="qkv")(norm(h, "norm2"))
            qkv = qkv.reshape(batch, height * width, self.heads, -1, 3)
            tokens = attend(*separate(qkv, -1)).reshape(batch, height * width, channels)
            tokens = Dense(channels, name="proj")(tokens)
            h = (h + tokens.reshape(h.shape)) * self.skip_scale
        return h


class EdmUNet(PublishedUNet):
    """The common form of both: levels that halve the image on the way down, with skips across.

    Attributes:
      channels: unit of `multipliers`, the channels of each level.
      embedding_multiplier: width of the embedding, in channels.
      blocks: per level on the way down; there is one more on the way up.
      attention_sizes: heights at which attention follows blocks.
    """

    convention: tuple = ("edm",)
    channels: int = 128
    embedding_multiplier: int = 4
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention_sizes: tuple[int, ...] = (16,)

    def levels(
        self,
        h: Array,
        embedding: Array,
        block: Callable[..., nn.Module],
        *,
        first: int,
        heads: Callable[[int], int],
        attend_each: bool,
        join: Callable[[Array, str], Array] = lambda h, name: h,
        conv: Callable[..., nn.Module] = lambda features, name: nn.Conv(
            features, (3, 3), name=name
        ),
        concatenate: Callable[[Array, Array], Array] = lambda *parts: jnp.concatenate(parts, -1),
    ) -> Array:
        """Down and up: [B, H, H, C] -> [B, H, H, channels of the first level].

        Args:
          block: an `EdmBlock` but for its features, resample, heads and name.
          first: channels of the first convolution. heads: attention heads, by features.
          attend_each: attention follows each block on the way up, not only the last of a level.
          join: function of h each time that the image was halved, given the level's name.
          conv: the first convolution, but for its features and name.
          concatenate: joins the channels of h and of a skip.
        """
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        sizes = [h.shape[1] >> i for i in range(len(widths))]

        def heads_at(i: int) -> int:
            return heads(widths[i]) if sizes[i] in self.attention_sizes else 0

        skips = []
        for i, features in enumerate(widths):
            name = f"enc.{sizes[i]}x{sizes[i]}"
            if i == 0:
                h = conv(first, name=f"{name}_conv")(h)
            else:
                h = join(block(h.shape[-1], "down", name=f"{name}_down")(h, embedding), name)
            skips.append(h)
            for j in range(self.blocks):
                h = block(features, heads=heads_at(i), name=f"{name}_block{j}")(h, embedding)
                skips.append(h)
            self.sow("maps", "maps", h)

        for i, features in reversed(list(enumerate(widths))):
            name = f"dec.{sizes[i]}x{sizes[i]}"
            if i == len(widths) - 1:
                h = block(features, heads=heads(features), name=f"{name}_in0")(h, embedding)
                h = block(features, name=f"{name}_in1")(h, embedding)
            else:
                h = block(h.shape[-1], "up", name=f"{name}_up")(h, embedding)
            for j in range(self.blocks + 1):
                attended = heads_at(i) if attend_each or j == self.blocks else 0
                h = concatenate(h, skips.pop())
                h = block(features, heads=attended, name=f"{name}_block{j}")(h, embedding)
        return h


class SongUNet(EdmUNet):
    """DDPM++ and NCSN++ (Song et al. 2021). Attention has one head.

    Attributes:
      waves: "positional" (DDPM++) or "fourier" (NCSN++), with frequencies from the file.
      wave_multiplier: number of sinusoids, in channels.
      residual: the image, too, goes down and is added at each level (NCSN++).
      taps: the resampling filter.
    """

    waves: str = "positional"
    wave_multiplier: int = 1
    residual: bool = False
    taps: tuple[int, ...] = (1, 1)

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        width = self.wave_multiplier * self.channels
        if self.waves == "fourier":
            init = nn.initializers.normal(16.0)
            frequencies = self.param("map_noise.freqs", init, (width // 2,), jnp.float32)
            angles = 2 * np.pi * time[:, None] * jax.lax.stop_gradient(frequencies)[None]
            embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            embedding = waves(time, width, shift=1.0, cosines_first=False)
        if self.num_labels:
            labels = one_hot(told.label, self.num_labels, h.shape[0])
            labels = math.sqrt(self.num_labels) * labels
            embedding += Dense(width, name="map_label")(labels)
        embedding = self.add_guidance(embedding, told)
        for i in range(2):
            dense = Dense(self.embedding_multiplier * self.channels, name=f"map_layer{i}")
            embedding = nn.silu(dense(embedding))
        embedding = self.add_target(embedding, width, logsnr, told)

        block = functools.partial(
            EdmBlock,
            dropout=rate,
            scale_shift=False,
            project=True,
            skip_scale=math.sqrt(0.5),
            epsilon=1e-6,
            taps=self.taps,
        )
        image, size = h, h.shape[1]

        def join(h: Array, name: str) -> Array:
            nonlocal image
            if self.residual:
                pad = 1 + (len(self.taps) - 1) // 2
                conv = nn.Conv(h.shape[-1], (3, 3), padding=pad, name=f"{name}_aux_residual")
                image = filtered(conv(image), self.taps, "down", padding=0)
                h = image = (h + image) / math.sqrt(2)
            return h

        h = self.levels(
            h, embedding, block, first=self.channels, heads=lambda features: 1, attend_each=False,
            join=join,
        )  # fmt: skip
        h = self.grow(h, embedding, rate)
        h = nn.silu(group_norm(h, f"dec.{size}x{size}_aux_norm", epsilon=1e-6))
        return nn.Conv(self.out_channels, (3, 3), name=f"dec.{size}x{size}_aux_conv")(h)


class DhariwalUNet(EdmUNet):
    """The network of Dhariwal & Nichol 2021 (ADM) as EDM has it: a head for 64 channels."""

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_sizes: tuple[int, ...] = (32, 16, 8)

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        embedding = self.add_guidance(waves(time, self.channels), told)
        dense = functools.partial(Dense, self.embedding_multiplier * self.channels)
        embedding = dense(name="map_layer1")(nn.silu(dense(name="map_layer0")(embedding)))
        if self.num_labels:
            labels = one_hot(told.label, self.num_labels, h.shape[0])
            embedding += dense(use_bias=False, name="map_label")(labels)
        embedding = nn.silu(self.add_target(embedding, self.channels, logsnr, told))
        block = functools.partial(EdmBlock, dropout=rate)
        h = self.levels(
            h, embedding, block, first=self.channels * self.multipliers[0],
            heads=lambda features: features // 64, attend_each=True,
        )  # fmt: skip
        h = self.grow(h, embedding, rate)
        h = nn.silu(group_norm(h, "out_norm"))
        return nn.Conv(self.out_channels, (3, 3), name="out_conv")(h)


def group_norm(h: Array, name: str, epsilon: float = 1e-5) -> Array:
    """Group norm of 32 groups, or fewer, so that each has four channels."""
    return GroupNorm(min(32, h.shape[-1] // 4), epsilon=epsilon, name=name)(h)


def filtered(h: Array, taps: tuple[int, ...], resample: str, padding: int | None = None) -> Array:
    """Twice or half the size ("up", "down"), by a separable filter; unchanged for "".

    [B, H, W, C]; `padding`: of the input, those of a filter around each pixel by default.
    """
    if not resample:
        return h
    line = np.asarray(taps, np.float32) / sum(taps)
    kernel = np.outer(line, line)[..., None, None]
    reach = (len(taps) - 1) // 2 if padding is None else padding
    if resample == "down":
        strides, dilation, pad = (2, 2), None, reach
    else:
        kernel, strides, dilation, pad = 4 * kernel, (1, 1), (2, 2), len(taps) - 1 - reach
    return jax.lax.conv_general_dilated(
        h,
        jnp.asarray(np.tile(kernel, (1, 1, 1, h.shape[-1])), h.dtype),
        strides,
        [(pad, pad)] * 2,
        lhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=h.shape[-1],
    )
