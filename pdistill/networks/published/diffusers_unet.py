"""The U-Net that diffusers calls UNet2DModel: DDPM's, ADM's, and what is between them.

Layers have the names that they have in its files, dots included: "down_blocks.0.resnets.1" is one
name. guided-diffusion's checkpoints are renamed to them.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.conditioning import Conditioning
from pdistill.networks.embeddings import one_hot, waves
from pdistill.networks.linear import Dense
from pdistill.networks.norms import GroupNorm
from pdistill.networks.published.base import PublishedUNet, dropout
from pdistill.networks.transformer import attend_by_layers
from pdistill.networks.unet import double, halve


class ResnetBlock(nn.Module):
    """h [B, H, W, C], embedding [B, E] or None -> [B, H', W', features].

    Attributes:
      resample: "up", "down" or "", on both paths.
      scale_shift: the embedding scales and shifts the second norm; else it is added before it.
      groups, epsilon, use_fast_variance: as of `GroupNorm`.
    """

    features: int
    resample: str = ""
    scale_shift: bool = False
    groups: int = 32
    epsilon: float = 1e-5
    use_fast_variance: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Array, embedding: Array | None = None) -> Array:
        norm = functools.partial(
            GroupNorm,
            self.groups,
            epsilon=self.epsilon,
            use_fast_variance=self.use_fast_variance,
        )
        resample = {"up": double, "down": halve, "": lambda h: h}[self.resample]
        skip, h = resample(h), resample(nn.silu(norm(name="norm1")(h)))
        h = nn.Conv(self.features, (3, 3), name="conv1")(h)
        change = 0.0
        if embedding is not None:
            width = self.features * (2 if self.scale_shift else 1)
            change = Dense(width, name="time_emb_proj")(nn.silu(embedding))[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(change, 2, axis=-1)
            h = norm(name="norm2")(h) * (1 + scale) + shift
        else:
            h = norm(name="norm2")(h + change)
        h = nn.Conv(self.features, (3, 3), name="conv2")(dropout(nn.silu(h), self.dropout))
        if skip.shape[-1] != self.features:
            skip = Dense(self.features, name="conv_shortcut")(skip)
        return skip + h


class Attention(nn.Module):
    """Self-attention among the pixels of h [B, H, W, C], added to it; groups = 0 for no norm."""

    heads: int
    groups: int = 32
    epsilon: float = 1e-5
    use_fast_variance: bool = True

    @nn.compact
    def __call__(self, h: Array) -> Array:
        batch, height, width, channels = h.shape
        tokens = h
        if self.groups:
            norm = GroupNorm(
                self.groups,
                epsilon=self.epsilon,
                use_fast_variance=self.use_fast_variance,
                name="group_norm",
            )
            tokens = norm(h)
        tokens = tokens.reshape(batch, height * width, channels)
        tokens = attend_by_layers(tokens, self.heads, ("to_q", "to_k", "to_v"), "to_out.0")
        return h + tokens.reshape(h.shape)


class DiffusersUNet(PublishedUNet):
    """diffusers' UNet2DModel.

    Attributes:
      channels: width of each level; each halves the image.
      blocks: per level on the way down; there is one more on the way up.
      attention: levels at which attention follows each block, 0 the finest. middle_attention: there
        is one in the middle, too; middle_groups: of its norm, 0 for none.
      heads: attention heads; 0 for as many as head_channels need, and both 0 for one head.
      groups, epsilon: as of `GroupNorm`.
      resample_down, resample_up: at each level but the last: "resnet", or "conv" with a stride, or
        after repeating pixels. down_padding: 1, or 0 for zeros below and to the right only.
      scale_shift: as in the blocks.
      wave_channels, embedding_channels: widths of the time's sinusoids and of the embedding.
      wave_shift, cosines_first: as in `embeddings.waves`.
    """

    channels: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    middle_attention: bool = True
    middle_groups: int = 32
    heads: int = 0
    head_channels: int = 0
    groups: int = 32
    epsilon: float = 1e-5
    resample_down: tuple[str, ...] = ("conv", "conv", "conv")
    resample_up: tuple[str, ...] = ("conv", "conv", "conv")
    down_padding: int = 1
    scale_shift: bool = False
    wave_channels: int = 128
    embedding_channels: int = 512
    wave_shift: float = 0.0
    cosines_first: bool = True

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        embedding = self._embedding(time, logsnr, told)
        block = functools.partial(
            ResnetBlock,
            scale_shift=self.scale_shift,
            groups=self.groups,
            epsilon=self.epsilon,
            dropout=rate,
        )
        h = nn.Conv(self.channels[0], (3, 3), name="conv_in")(h)
        skips = [h]
        for i, features in enumerate(self.channels):
            name = f"down_blocks.{i}"
            for j in range(self.blocks):
                h = block(features, name=f"{name}.resnets.{j}")(h, embedding)
                if i in self.attention:
                    h = self._attention(f"{name}.attentions.{j}", features, self.groups)(h)
                skips.append(h)
            self.sow("maps", "maps", h)
            if i < len(self.channels) - 1:
                if self.resample_down[i] == "resnet":
                    h = block(features, "down", name=f"{name}.downsamplers.0")(h, embedding)
                else:
                    padding = [(self.down_padding, 1)] * 2
                    h = nn.Conv(
                        features, (3, 3), (2, 2), padding, name=f"{name}.downsamplers.0.conv"
                    )(h)
                skips.append(h)

        h = block(self.channels[-1], name="mid_block.resnets.0")(h, embedding)
        if self.middle_attention:
            h = self._attention("mid_block.attentions.0", self.channels[-1], self.middle_groups)(h)
        h = block(self.channels[-1], name="mid_block.resnets.1")(h, embedding)

        for i, features in enumerate(reversed(self.channels)):
            name, level = f"up_blocks.{i}", len(self.channels) - 1 - i
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(features, name=f"{name}.resnets.{j}")(h, embedding)
                if level in self.attention:
                    h = self._attention(f"{name}.attentions.{j}", features, self.groups)(h)
            if level > 0:
                if self.resample_up[i] == "resnet":
                    h = block(features, "up", name=f"{name}.upsamplers.0")(h, embedding)
                else:
                    h = nn.Conv(features, (3, 3), name=f"{name}.upsamplers.0.conv")(double(h))

        h = self.grow(h, embedding, rate)
        h = nn.silu(GroupNorm(self.groups, epsilon=self.epsilon, name="conv_norm_out")(h))
        return nn.Conv(self.out_channels, (3, 3), name="conv_out")(h)

    def _embedding(self, time: Array, logsnr: Array, told: Conditioning) -> Array:
        """The embedding [B, E] of the time and of everything that is told."""
        embedding = waves(
            time, self.wave_channels, shift=self.wave_shift, cosines_first=self.cosines_first
        )
        dense = functools.partial(Dense, self.embedding_channels)
        embedding = self.add_guidance(embedding, told)
        embedding = nn.silu(dense(name="time_embedding.linear_1")(embedding))
        embedding = dense(name="time_embedding.linear_2")(embedding)
        if self.num_labels:
            shape = (self.num_labels, self.embedding_channels)
            init = nn.initializers.normal(0.02)
            table = self.param("class_embedding.weight", init, shape, jnp.float32)
            embedding += one_hot(told.label, self.num_labels, time.shape[0]) @ table
        return self.add_target(embedding, self.wave_channels, logsnr, told)

    def _attention(self, name: str, channels: int, groups: int) -> Attention:
        heads = self.heads or channels // (self.head_channels or channels)
        return Attention(heads, groups, self.epsilon, name=name)
