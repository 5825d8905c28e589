"""The transformer of SiT (Ma et al. 2024) and of the original DiT, with LightningDiT's options.

Layers have the names that they have in its files, dots included. SiT and DiT are one function, of
other times; diffusers' DiT is another one.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.networks.attention import attend
from pdistill.networks.blocks import apply_blocks
from pdistill.networks.checks import check_late
from pdistill.networks.conditioning import Conditioning
from pdistill.networks.embeddings import TargetEmbedding, waves
from pdistill.networks.linear import Dense
from pdistill.networks.patches import channels_to_pixels
from pdistill.networks.published.base import Published, dropout
from pdistill.networks.published.conventions import parse_convention
from pdistill.networks.published.diffusers_dit import WAVES, positions
from pdistill.networks.remat import rematerialised
from pdistill.networks.transformer import (
    modulate,
    normalize,
    rms_normalize,
    rotary_angles,
    rotate,
    separate,
    swiglu,
)
from pdistill.samplers.sampling import at_least_float32

TARGET_SCALE = 16.0  # fastest frequency of the embedding of a jump's target, see `logsnr_waves`


class SiTBlock(nn.Module):
    """tokens [B, T, C], modulated and gated by the embedding [B, C] -> [B, T, C].

    Attributes: of `SiT`; dropout, the rate now.
    """

    heads: int
    rms_norm: bool
    qk_norm: bool
    swiglu: bool
    shifts: bool
    dropout: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, tokens: Array, embedding: Array, angles: np.ndarray | None) -> Array:
        features = tokens.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype)
        parts = 6 if self.shifts else 4
        modulation = dense(
            parts * features, kernel_init=nn.initializers.zeros, name="adaLN_modulation.1"
        )(nn.silu(embedding))
        *modulation, gate2 = jnp.split(modulation[:, None], parts, axis=-1)
        shift1, scale1, gate1, shift2, scale2 = modulation if self.shifts else (
            0, *modulation[:2], 0, modulation[2]
        )  # fmt: skip

        h = modulate(_normalize(tokens, self.rms_norm, "norm1"), shift1, scale1)
        qkv = dense(3 * features, name="attn.qkv")(h)
        q, k, v = separate(qkv.reshape(*h.shape[:2], 3, self.heads, -1), 2)
        if self.qk_norm:
            q, k = (self._normalize_head(a, f"attn.{n}_norm") for a, n in ((q, "q"), (k, "k")))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        h = dense(features, name="attn.proj")(attend(q, k, v).reshape(h.shape))
        tokens = tokens + gate1 * dropout(h, self.dropout)

        h = modulate(_normalize(tokens, self.rms_norm, "norm2"), shift2, scale2)
        if self.swiglu:
            h = dense(features, name="mlp.w3")(swiglu(h, self.dtype, "mlp.w12"))
        else:
            h = nn.gelu(dense(4 * features, name="mlp.fc1")(h))
            h = dense(features, name="mlp.fc2")(dropout(h, self.dropout))
        return tokens + gate2 * h

    def _normalize_head(self, a: Array, name: str) -> Array:
        if self.rms_norm:
            return rms_normalize(a, name)
        return nn.LayerNorm(epsilon=1e-5, name=name)(at_least_float32(a)).astype(a.dtype)


class SiT(Published):
    """The transformer of SiT, DiT and LightningDiT, of square images.

    Attributes:
      convention: "flow" for SiT and LightningDiT, "ddpm" for DiT.
      patch: side of a square patch. features, depth, heads: width, blocks, attention's heads.
      target: it also takes the log-SNR to jump to, see `TargetEmbedding`; None is logsnr itself.
      rms_norm, qk_norm, rope, swiglu: LightningDiT's, as of `DiT`; its norms of queries and keys
        are layer norms, with scale and bias, without rms_norm.
      shifts: whether blocks shift what they scale.
      target_blocks: as of `DiT`, with `target`.
      dtype, remat: number format and rematerialisation of the blocks, as of `DiT`.
    """

    BLOCK: ClassVar[str] = "blocks.{}"  # names of the blocks

    convention: tuple = ("flow",)
    num_labels: int = 1000
    patch: int = 2
    features: int = 1152
    depth: int = 28
    heads: int = 16
    target: bool = False
    rms_norm: bool = False
    qk_norm: bool = False
    rope: bool = False
    swiglu: bool = False
    shifts: bool = True
    dtype: jnp.dtype | None = None
    remat: bool | str = False
    target_blocks: int = 0

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        check_late(self)
        p, features = self.patch, self.features
        tokens = nn.Conv(features, (p, p), (p, p), name="x_embedder.proj", dtype=self.dtype)(h)
        batch, side, _, _ = tokens.shape
        tokens = tokens.reshape(batch, side * side, features)
        tokens += positions(side, features)[None].astype(tokens.dtype)
        embedding, late = self._embeddings(h, time, logsnr, told)
        angles = rotary_angles((side, side), features // self.heads) if self.rope else None
        options = {
            name: getattr(self, name)
            for name in ("rms_norm", "qk_norm", "swiglu", "shifts", "dtype")
        }
        block = functools.partial(
            rematerialised(SiTBlock, self.remat), self.heads, dropout=rate, **options
        )
        tokens, maps = apply_blocks(self, block, tokens, embedding, late, angles)
        for each in maps:
            self.sow("maps", "maps", each.reshape(batch, side, side, features))

        zero = functools.partial(Dense, kernel_init=nn.initializers.zeros)
        modulation = zero(2 * features, name="final_layer.adaLN_modulation.1")
        shift, scale = jnp.split(modulation(nn.silu(late))[:, None], 2, axis=-1)
        tokens = _normalize(at_least_float32(tokens), self.rms_norm, "final_layer.norm_final")
        tokens = modulate(tokens, shift, scale)
        pixels = zero(p * p * self.out_channels, name="final_layer.linear")(tokens)
        return channels_to_pixels(pixels.reshape(batch, side, side, -1), p)

    def _embeddings(
        self, h: Array, time: Array, logsnr: Array, told: Conditioning
    ) -> tuple[Array, Array]:
        """The embeddings [B, features] of the blocks, and of the last `target_blocks` of them."""
        if not (self.target and self.target_blocks):
            embedding = self._embedding(time, logsnr, told)
            return embedding, embedding
        target = logsnr if told.target is None else told.target
        _, then = parse_convention(self.convention).enter(h, target)
        time, logsnr, told = jax.tree.map(
            lambda *both: jnp.concatenate(both), (time, logsnr, told), (then, target, told)
        )
        embedding, late = jnp.split(self._embedding(time, logsnr, told), 2)
        return embedding, late

    def _embedding(self, time: Array, logsnr: Array, told: Conditioning) -> Array:
        """The embedding [B, features] of everything that is told."""
        sines = self.add_guidance(waves(time, WAVES), told)
        embedding = Dense(self.features, name="t_embedder.mlp.0")(sines)
        embedding = Dense(self.features, name="t_embedder.mlp.2")(nn.silu(embedding))
        if self.target and not self.target_blocks:
            embed = TargetEmbedding(WAVES, self.features, time_scale=TARGET_SCALE, name="target_in")
            embedding += embed(told.target, logsnr)
        label = jnp.full(time.shape[0], self.num_labels) if told.label is None else told.label
        table = nn.Embed(self.num_labels + 1, self.features, name="y_embedder.embedding_table")
        return embedding + table(label)


def _normalize(tokens: Array, rms: bool, name: str) -> Array:
    return rms_normalize(tokens, name) if rms else normalize(tokens)
