"""The U-Net of Dhariwal & Nichol 2021 (ADM), as in Salimans & Ho 2022.

Parameters have the names and shapes of the public progressive distillation checkpoints, dots
included: "down_0.block_1" is one name, not a path.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.data.images import average, repeat
from pdistill.networks.attention import attend
from pdistill.networks.cascades import beside, halvings
from pdistill.networks.checks import check_told
from pdistill.networks.conditioning import NOTHING, Conditioning, Text
from pdistill.networks.embeddings import (
    TIME_SCALE,
    GuidanceEmbedding,
    TargetEmbedding,
    TextEmbedding,
    logsnr_waves,
    one_hot,
)
from pdistill.networks.linear import Dense, DenseGeneral
from pdistill.networks.norms import GroupNorm
from pdistill.networks.patches import channels_to_pixels, pixels_to_channels
from pdistill.networks.remat import rematerialised
from pdistill.networks.transformer import TextAttention
from pdistill.samplers import LowRes
from pdistill.samplers.sampling import at_least_float32

halve = functools.partial(average, factor=2)
double = functools.partial(repeat, factor=2)


class ResBlock(nn.Module):
    """h [B, H, W, C], embedding [B, E] -> [B, H', W', features]; at first its skip path alone.

    With two embeddings, (embedding, of the target), each has a layer of its own; that of the
    target is zero at first.

    Attributes:
      features: channels of the output; if they are not C, the skip path is a 1x1 convolution.
      resample: `halve` or `double`, applied on both paths before the first convolution.
      dropout: rate before the second convolution; needs the "dropout" key unless 0.
      dtype: number format inside.
    """

    features: int
    resample: Callable[[Array], Array] | None = None
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: Array, embedding: Array | tuple[Array, Array]) -> Array:
        embedding, *target = embedding if isinstance(embedding, tuple) else (embedding,)
        conv = functools.partial(nn.Conv, self.features, (3, 3), dtype=self.dtype)
        skip, h = h, nn.swish(group_norm(h, "norm1"))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        h = conv(name="conv1")(h)

        project = functools.partial(Dense, 2 * self.features, dtype=self.dtype)
        modulation = project(name="temb_proj")(nn.swish(embedding))
        for of_target in target:
            zeros = nn.initializers.zeros
            modulation += project(kernel_init=zeros, name="target_proj")(nn.swish(of_target))
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        h = nn.swish(group_norm(h, "norm2") * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(kernel_init=nn.initializers.zeros, name="conv2")(h)

        if skip.shape[-1] != self.features:
            skip = Dense(self.features, dtype=self.dtype, name="nin_shortcut")(skip)
        return skip + h


class Attention(nn.Module):
    """Self-attention among the pixels of h [B, H, W, C], added to it; the identity at first.

    Attributes:
      head_channels: channels of a head; None for a single head.
      text_tokens: width of a prompt's tokens, attention to which follows; 0 for none.
      dtype: number format inside; the softmax is always float32.
    """

    head_channels: int | None = None
    text_tokens: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: Array, text: Text | None = None) -> Array:
        batch, height, width, channels = h.shape
        size = self.head_channels or channels
        if channels % size:
            raise ValueError(f"head_channels {size} must divide the {channels} channels")
        project = functools.partial(DenseGeneral, (channels // size, size), dtype=self.dtype)

        tokens = group_norm(h, "norm").reshape(batch, height * width, channels)
        q, k, v = (project(name=name)(tokens) for name in "qkv")
        out = DenseGeneral(
            channels, (-2, -1), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out"
        )
        h = h + out(attend(q, k, v)).reshape(h.shape)
        if not self.text_tokens:
            return h
        attention = TextAttention(self.text_tokens, channels // size, self.dtype, name="text")
        return h + attention(h.reshape(tokens.shape), text).reshape(h.shape)


class UNet(nn.Module):
    """z [B, H, W, C], logsnr [B] -> [B, H, W, out_channels] float32, or larger if it has `grown`.

    With several `resolutions` it is the one network of a cascade (LowDiff, Xu et al. 2025): an
    image enters and leaves at the level of its size, so that small ones skip the outer levels,
    which cost most. The way is our own design: each size has its own first and last layer and a
    learnt vector, added to the embedding; the other layers are shared. Beyond the smallest size
    there is the image of the size before and the log-SNR of its noise: its pixels, repeated,
    beside z in the first layer, and an embedding of the log-SNR. The smallest has no channels for
    one, which is the same as zeros there.

    The defaults are the CIFAR-10 network of Salimans & Ho 2022. Their others have
    head_channels=64, blocks=3 and attention_sizes=(8, 16, 32), and

      ImageNet 64: channels=192, embedding_channels=768, multipliers=(1, 2, 3, 4), num_labels=1000
      LSUN 128: channels=64, embedding_channels=768, multipliers=(1, 2, 4, 6, 8)

    Labels are 0 .. num_labels - 1. num_labels itself, or None for the whole batch, is "no label":
    the one-hot vector is zero, so that only the bias of its layer remains.

    Attributes:
      out_channels: channels of the output.
      patch: side of the squares of pixels that become channels before the first layer and pixels
        again after the last (1 in the paper): 2 is four times cheaper.
      channels: channels at the first level.
      embedding_channels: width of the embedding of the noise level and the label.
      multipliers: channels of each level, in units of `channels`; each level halves the image,
        so H and W must be multiples of patch * 2 ** (levels - 1).
      blocks: residual blocks per level on the way down; there is one more on the way up.
      attention_sizes: heights, after `patch`, at which attention follows each residual block;
        there is always attention in the middle.
      head_channels: channels of an attention head; None for a single head.
      num_labels: 0 for an unconditional network.
      text_pooled, text_tokens: widths of what it takes of prompts, as of `DiT`; tokens are attended
        to wherever pixels are.
      guidance: the network also takes a guidance weight, see `GuidanceEmbedding`.
      target: it also takes the log-SNR to jump to, see `TargetEmbedding`; None is logsnr itself.
      time_scale: fastest frequency of the noise levels' embedding, see `logsnr_waves`.
      target_in_blocks: the target's embedding goes into each residual block by a layer of its own,
        as in CTM's code, instead of being added to the other one.
      dropout: rate within each residual block when training.
      dtype: number format of the blocks; parameters and the output stay float32.
      remat: recompute blocks in the backward pass instead of storing their activations: True, or
        "products" to store those of matrix products and convolutions.
      grown: channels of levels behind the last one (Kim et al. 2024, PaGoDA), each of which doubles
        the image: the output is larger than z. At first their features are the last level's,
        repeated, where the channels are as many.
      grown_blocks: residual blocks in each of them, after the one that doubles.
      resolutions: heights of the images that it takes, rising by factors of two, four, ...;
        () for images of any one size, which is also what a single one comes to.
    """

    out_channels: int
    channels: int = 256
    embedding_channels: int = 1024
    multipliers: tuple[int, ...] = (1, 1, 1)
    blocks: int = 3
    attention_sizes: tuple[int, ...] = (8, 16)
    head_channels: int | None = None
    num_labels: int = 0
    text_pooled: int = 0
    text_tokens: int = 0
    guidance: bool = False
    target: bool = False
    time_scale: float = TIME_SCALE
    target_in_blocks: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool | str = False
    patch: int = 1
    grown: tuple[int, ...] = ()
    grown_blocks: int = 2
    resolutions: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        z: Array,
        logsnr: Array,
        told: Conditioning = NOTHING,
        *,
        train: bool = False,
    ) -> Array:
        height = z.shape[1]
        first = self._level(height, told.image)
        self._check(z, told, first)
        embedding = self._embedding(logsnr, told, z.shape[0], height)
        z = beside(z, told.image)

        block, attend_within = (rematerialised(m, self.remat) for m in (ResBlock, Attention))
        block = functools.partial(block, dropout=self.dropout if train else 0.0, dtype=self.dtype)

        def attention(h: Array, name: str) -> Array:
            layer = attend_within(self.head_channels, self.text_tokens, self.dtype, name=name)
            return layer(h, told.text)

        widths = [self.channels * multiplier for multiplier in self.multipliers]
        levels = list(enumerate(widths))[first:]
        size = f"_{height}" if first else ""  # in the names of what a smaller size has for itself

        entering = widths[first - 1] if first else self.channels  # as from the level before
        h = nn.Conv(entering, (3, 3), dtype=self.dtype, name=f"conv_in{size}")(
            pixels_to_channels(z, self.patch)
        )
        skips = self._down(h, embedding, levels, block, attention)
        h = block(widths[-1], name="mid.block_1")(skips[-1], embedding)
        h = attention(h, "mid.attn_1")
        h = block(widths[-1], name="mid.block_2")(h, embedding)
        h = self._up(h, skips, embedding, levels, block, attention)
        h = grow(h, embedding, self.grown, self.grown_blocks, block)

        h = nn.swish(group_norm(at_least_float32(h), f"norm_out{size}"))
        h = nn.Conv(
            self.patch**2 * self.out_channels,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            name=f"conv_out{size}",
        )(h)
        return channels_to_pixels(h, self.patch)

    def _embedding(self, logsnr: Array, told: Conditioning, batch: int, height: int):
        """The embedding [B, E] of everything that is told, and of the images' height.

        Or two, with one of the target alone, for `target_in_blocks`.
        """
        dense = functools.partial(Dense, self.embedding_channels, dtype=self.dtype)
        second = functools.partial(
            TargetEmbedding, self.channels, self.embedding_channels, self.dtype, self.time_scale
        )
        waves = logsnr_waves(logsnr, self.channels, self.time_scale)
        if self.guidance:
            waves += GuidanceEmbedding(self.channels, name="guidance_in")(told.guidance, batch)
        embedding = dense(name="dense0")(waves)
        embedding = dense(name="dense1")(nn.swish(embedding))
        apart = self.target and self.target_in_blocks
        if self.target:
            of_target = second(zero=not apart, name="target_in")(told.target, logsnr)
            embedding = embedding if apart else embedding + of_target
        if self.num_labels:
            labels = one_hot(told.label, self.num_labels, batch)
            embedding += dense(name="class_emb")(labels)
        if self.text_pooled:
            embedding += TextEmbedding(
                self.text_pooled, self.embedding_channels, self.dtype, name="text_emb"
            )(told.text, batch)
        if (num_sizes := len(self.resolutions)) > 1:
            embed = nn.Embed(
                num_sizes, self.embedding_channels, dtype=self.dtype, name="resolution_emb"
            )
            embedding += embed(jnp.full(1, self.resolutions.index(height)))
        if told.image is not None:
            embedding += second(name="condition_in")(told.image.logsnr, logsnr)
        return (embedding, of_target) if apart else embedding

    def _down(self, h: Array, embedding: Array, levels, block, attention) -> list[Array]:
        """Activations on the way down from h, the first layer's, for the skip connections."""
        skips = [h]
        for i, features in levels:
            for j in range(self.blocks):
                h = block(features, name=f"down_{i}.block_{j}")(h, embedding)
                if h.shape[1] in self.attention_sizes:
                    h = attention(h, f"down_{i}.attn_{j}")
                skips.append(h)
            self.sow("maps", "maps", h)
            if i < len(self.multipliers) - 1:
                h = block(features, halve, name=f"down_{i}.downsample")(h, embedding)
                skips.append(h)
        return skips

    def _up(self, h: Array, skips, embedding: Array, levels, block, attention) -> Array:
        """The last activations, from h in the middle and `skips`, which are taken from the end."""
        skips = list(skips)
        for i, features in reversed(levels):
            for j in range(self.blocks + 1):
                h = _joined(h, skips.pop())
                h = block(features, name=f"up_{i}.block_{j}")(h, embedding)
                if h.shape[1] in self.attention_sizes:
                    h = attention(h, f"up_{i}.attn_{j}")
            if i > levels[0][0]:
                h = block(features, double, name=f"up_{i}.upsample")(h, embedding)
        return h

    def _check(self, z: Array, told: Conditioning, first: int) -> None:
        """Raises ValueError for a size that the levels from `first` cannot halve, or as told."""
        check_told(self, told)
        _, height, width, _ = z.shape
        num = len(self.multipliers) - first
        multiple = self.patch * 2 ** (num - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"with {num} levels and patch {self.patch} the image size must be a "
                f"multiple of {multiple}; got {height}x{width}"
            )

    def _level(self, height: int, image: LowRes | None) -> int:
        """The level at which images of this height enter and leave; 0 is the outermost.

        Raises:
          ValueError: as `halvings`; more resolutions than levels.
        """
        level = halvings(self.resolutions, height, image)
        sizes = self.resolutions
        if sizes and sizes[0] << len(self.multipliers) <= sizes[-1]:
            raise ValueError(
                f"resolutions must be one for each of the {len(self.multipliers)} levels at most; "
                f"got {sizes}"
            )
        if self.grown and len(sizes) > 1:
            raise ValueError("a network of several resolutions cannot have grown levels")
        return level


def grow(
    h: Array,
    embedding: Array,
    widths: tuple[int, ...],
    blocks: int,
    block: Callable[..., nn.Module],
) -> Array:
    """h [B, H, W, C] after levels of these widths, each twice as large; in a compact module.

    Args:
      block: a `ResBlock` but for its features, resample and name. blocks: in each level, after the
        one that doubles.
    """
    for i, features in enumerate(widths):
        h = block(features, double, name=f"grown_{i}.upsample")(h, embedding)
        for j in range(blocks):
            h = block(features, name=f"grown_{i}.block_{j}")(h, embedding)
    return h


def _joined(h: Array, skip: Array) -> Array:
    """Activations beside those of a skip connection, kept in their own number format.

    Without the barrier XLA keeps them in the norm's float32: twice the bytes and 2.5 times the
    temporary memory of a gradient in bfloat16 (benchmarks/README.md).
    """
    return jax.lax.optimization_barrier(jnp.concatenate([h, skip], axis=-1))


def group_norm(h: Array, name: str) -> Array:
    """A layer of gcd(32, C) groups: 32, or fewer for small networks."""
    return GroupNorm(math.gcd(32, h.shape[-1]), name=name)(h)
