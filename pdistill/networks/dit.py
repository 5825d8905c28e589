"""A small diffusion transformer (Peebles & Xie 2022) with adaLN-zero blocks."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.attention import attend
from pdistill.networks.blocks import apply_blocks
from pdistill.networks.cascades import beside, halvings
from pdistill.networks.checks import check_late, check_told
from pdistill.networks.conditioning import NOTHING, Conditioning, Text
from pdistill.networks.embeddings import (
    TIME_SCALE,
    GuidanceEmbedding,
    LabelEmbedding,
    LevelsEmbedding,
    TargetEmbedding,
    TextEmbedding,
    logsnr_waves,
)
from pdistill.networks.linear import Dense, DenseGeneral
from pdistill.networks.patches import channels_to_pixels
from pdistill.networks.remat import rematerialised
from pdistill.networks.transformer import (
    TextAttention,
    modulate,
    normalize,
    rms_normalize,
    rotary_angles,
    rotate,
    separate,
    swiglu,
)
from pdistill.samplers.sampling import at_least_float32


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the embedding; identity at first.

    Queries and keys are turned by `angles`, see `rotary_angles`; None for no rotary positions.
    With text_tokens, the width of a prompt's, attention to these follows that among tokens.
    `dropout` is the rate now, on the tokens that it is given.
    """

    heads: int
    dtype: jnp.dtype | None = None
    rms_norm: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    text_tokens: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        embedding: Array,
        angles: Array | None = None,
        text: Text | None = None,
    ) -> Array:
        features = tokens.shape[-1]
        tokens = nn.Dropout(self.dropout, deterministic=False)(tokens)
        modulation = Dense(
            6 * features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation"
        )(nn.swish(embedding))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)

        h = modulate(self._normalize(tokens, "norm1"), shift1, scale1)
        qkv = DenseGeneral((3, self.heads, features // self.heads), dtype=self.dtype, name="qkv")
        q, k, v = separate(qkv(h), -3)
        if self.qk_norm:
            q, k = rms_normalize(q, "q_norm"), rms_normalize(k, "k_norm")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        out = DenseGeneral(features, axis=(-2, -1), dtype=self.dtype, name="attention_out")
        h = out(attend(q, k, v))
        tokens = tokens + gate1 * h
        if self.text_tokens:
            attention = TextAttention(self.text_tokens, self.heads, self.dtype, name="text")
            tokens = tokens + attention(tokens, text)

        h = modulate(self._normalize(tokens, "norm2"), shift2, scale2)
        if self.swiglu:
            h = swiglu(h, self.dtype)
        else:
            h = nn.gelu(Dense(4 * features, dtype=self.dtype, name="mlp_in")(h))
        h = Dense(features, dtype=self.dtype, name="mlp_out")(h)
        return tokens + gate2 * h

    def _normalize(self, tokens: Array, name: str) -> Array:
        return rms_normalize(tokens, name) if self.rms_norm else normalize(tokens)


class DiT(nn.Module):
    """z [B, H, W, C], logsnr [B] -> [B, H, W, out_channels] float32.

    Attributes:
      out_channels: channels of the output.
      patch: side of a square patch; must divide H and W.
      features, depth, heads: width, number of blocks, attention heads.
      num_labels: 0 for an unconditional network; else labels 0 .. num_labels - 1 may be given,
        and num_labels for "no label".
      text_pooled: width of the pooled embeddings of prompts that are added to that of the noise
        level; 0 for a network that takes none.
      text_tokens: width of the tokens of prompts that each block attends to; 0 for none.
      guidance: the network also takes a guidance weight, see `GuidanceEmbedding`.
      guidance_levels: with `guidance`, it takes the levels at which the weight acts, too, see
        `LevelsEmbedding`.
      target: it also takes the log-SNR to jump to, see `TargetEmbedding`; None is logsnr itself.
      target_blocks: the last of the blocks, which with `target` are told where to jump instead of
        from where, by the same embedding: the teacher's parameters are a flow map's as they are
        (decoupled MeanFlow, Lee et al. 2025). 0 for an embedding of its own, in all blocks.
      time_scale: fastest frequency of the noise levels' embedding, see `logsnr_waves`.
      rms_norm, qk_norm, rope, swiglu: RMS norms with a learnt scale in place of layer norms; such
        norms of queries and keys; rotary positions beside the learnt ones (rows turn one half of a
        head's channels, columns the other); an MLP with a gate. All four are LightningDiT's.
      registers: number of learnt tokens beside those of patches, dropped before the output.
      velocity: it has a second head, for `Network.velocity` (improved MeanFlow).
      resolutions: as of `UNet`, for the one network of a cascade. All sizes share the blocks, told
        which one it is; the first layer and the positions of a smaller size are its own.
      dropout: rate on the input of each block when training.
      dtype: number format of the blocks; parameters and the output stay float32.
      remat: recompute each block in the backward pass instead of storing its activations: True, or
        "products" to store those of matrix products.
    """

    BLOCK: ClassVar[str] = "block_{}"  # names of the blocks

    out_channels: int
    patch: int = 2
    features: int = 128
    depth: int = 4
    heads: int = 4
    num_labels: int = 0
    text_pooled: int = 0
    text_tokens: int = 0
    guidance: bool = False
    guidance_levels: bool = False
    target: bool = False
    target_blocks: int = 0
    time_scale: float = TIME_SCALE
    rms_norm: bool = False
    qk_norm: bool = False
    rope: bool = False
    swiglu: bool = False
    registers: int = 0
    velocity: bool = False
    resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool | str = False

    @nn.compact
    def __call__(
        self,
        z: Array,
        logsnr: Array,
        told: Conditioning = NOTHING,
        *,
        train: bool = False,
    ) -> Array:
        batch, height, width, _ = z.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(f"patch {p} must divide the image size {height}x{width}")
        if self.features % self.heads:
            raise ValueError(f"heads {self.heads} must divide features {self.features}")
        check_late(self)
        check_told(self, told)

        small = halvings(self.resolutions, height, told.image) > 0
        size = f"_{height}" if small else ""  # in the names of what a smaller size has for itself
        embedding, late = self._embeddings(logsnr, told, height)
        patches = nn.Conv(self.features, (p, p), (p, p), dtype=self.dtype, name=f"patches{size}")
        tokens = patches(beside(z, told.image))
        grid = tokens.shape[1:3]
        tokens = tokens.reshape(batch, grid[0] * grid[1], self.features)
        self._check_size(f"position{size}", tokens.shape[1])
        tokens += self._learnt(f"position{size}", tokens.shape[1], tokens.dtype)
        if self.registers:
            first = self._learnt("registers", self.registers, tokens.dtype)
            tokens = jnp.concatenate([first.repeat(batch, axis=0), tokens], axis=1)
        channels = self.features // self.heads
        angles = rotary_angles(grid, channels, self.registers) if self.rope else None

        names = ("rms_norm", "qk_norm", "swiglu", "text_tokens", "dtype")
        options = {name: getattr(self, name) for name in names}
        options["dropout"] = self.dropout if train else 0.0
        block = functools.partial(rematerialised(Block, self.remat), self.heads, **options)
        tokens, maps = apply_blocks(self, block, tokens, embedding, late, angles, told.text)
        for each in maps:
            self.sow("maps", "maps", each[:, self.registers :].reshape(batch, *grid, -1))

        modulation = Dense(2 * self.features, kernel_init=nn.initializers.zeros, name="modulation")(
            nn.swish(late)
        )
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        tokens = tokens[:, self.registers :]
        normed = rms_normalize(tokens, "norm") if self.rms_norm else normalize(tokens)
        maps = at_least_float32(modulate(normed, shift, scale)).reshape(batch, *grid, -1)
        if self.velocity:
            self.sow("velocity", "velocity", self._pixels(maps, "velocity_pixels"))
        return self._pixels(maps, "pixels")

    def _check_size(self, name: str, num: int) -> None:
        """Raises ValueError for images of another size than the positions are for."""
        if self.has_variable("params", name):
            known = len(self.get_variable("params", name))
            if known != num:
                raise ValueError(
                    f"this transformer knows {known} patches of {self.patch} pixels a side, but "
                    f"the images have {num}; give images of the size that it was made for"
                )

    def _learnt(self, name: str, num: int, dtype: jnp.dtype) -> Array:
        """A learnt array [1, num, features]."""
        init = nn.initializers.normal(0.02)
        return self.param(name, init, (num, self.features), jnp.float32)[None].astype(dtype)

    def _pixels(self, maps: Array, name: str) -> Array:
        """A head: [B, h, w, features] -> [B, H, W, out_channels], zero at first."""
        layer = Dense(
            self.patch**2 * self.out_channels, kernel_init=nn.initializers.zeros, name=name
        )
        return channels_to_pixels(layer(maps), self.patch)

    def _embeddings(self, logsnr: Array, told: Conditioning, height: int) -> tuple[Array, Array]:
        """The embeddings [B, features] of the blocks, and of the last `target_blocks` of them."""
        batch = logsnr.shape[0]
        if not (self.target and self.target_blocks):
            embedding = self._embedding(logsnr, told, height)
            return embedding, embedding
        target = logsnr if told.target is None else told.target
        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), told)
        both = self._embedding(jnp.concatenate([logsnr, target]), twice, height)
        return both[:batch], both[batch:]

    def _embedding(self, logsnr: Array, told: Conditioning, height: int) -> Array:
        """The embedding [B, features] of everything that is told, and of the images' height."""
        batch = logsnr.shape[0]
        level = functools.partial(
            TargetEmbedding, self.features, self.features, self.dtype, self.time_scale
        )
        waves = logsnr_waves(logsnr, self.features, self.time_scale)
        if self.guidance:
            waves += GuidanceEmbedding(self.features, name="guidance_in")(told.guidance, batch)
        embedding = Dense(self.features, dtype=self.dtype, name="logsnr_in")(waves)
        embedding = Dense(self.features, dtype=self.dtype, name="logsnr_out")(nn.swish(embedding))
        if self.target and not self.target_blocks:
            embedding += level(name="target_in")(told.target, logsnr)
        if self.guidance_levels:
            embedding += LevelsEmbedding(
                self.features, self.dtype, self.time_scale, name="guidance_levels_in"
            )(told.guidance_levels, batch)
        if self.num_labels:
            embedding += LabelEmbedding(self.num_labels, self.features, self.dtype, name="label")(
                told.label, batch
            )
        if self.text_pooled:
            embedding += TextEmbedding(self.text_pooled, self.features, self.dtype, name="text")(
                told.text, batch
            )
        if (num := len(self.resolutions)) > 1:
            embed = nn.Embed(num, self.features, dtype=self.dtype, name="resolution_in")
            embedding += embed(jnp.full(1, self.resolutions.index(height)))
        if told.image is not None:
            embedding += level(name="condition_in")(told.image.logsnr, logsnr)
        return embedding
