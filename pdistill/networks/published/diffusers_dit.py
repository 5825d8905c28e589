"""The diffusion transformer of Peebles & Xie 2022 as diffusers' DiTTransformer2DModel.

Layers have the names that they have in its files, dots included. Each block has an embedding of
the time and the label of its own; the published ones are copies of one.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.networks.conditioning import Conditioning
from pdistill.networks.embeddings import GuidanceEmbedding, waves
from pdistill.networks.linear import Dense
from pdistill.networks.patches import channels_to_pixels
from pdistill.networks.published.base import Published, dropout
from pdistill.networks.transformer import attend_by_layers, modulate, normalize

WAVES = 256


class DiTBlock(nn.Module):
    """tokens [B, T, C], modulated and gated by what it makes of waves and label -> [B, T, C].

    Also returns its embedding [B, C] of them.
    """

    heads: int
    num_labels: int
    guidance: bool
    dropout: float
    epsilon: float

    @nn.compact
    def __call__(
        self, tokens: Array, sines: Array, label: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        features = tokens.shape[-1]
        if self.guidance:
            sines += GuidanceEmbedding(WAVES, name="guidance_in")(weight, tokens.shape[0])
        name = "norm1.emb.timestep_embedder.linear_"
        embedding = Dense(features, name=f"{name}1")(sines)
        embedding = Dense(features, name=f"{name}2")(nn.silu(embedding))
        table = nn.Embed(
            self.num_labels + 1, features, name="norm1.emb.class_embedder.embedding_table"
        )
        embedding += table(label)
        modulation = Dense(6 * features, name="norm1.linear")(nn.silu(embedding))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)

        h = modulate(normalize(tokens), shift1, scale1)
        layers = tuple(f"attn1.to_{name}" for name in "qkv")
        h = attend_by_layers(h, self.heads, layers, "attn1.to_out.0")
        tokens = tokens + gate1 * dropout(h, self.dropout)

        h = modulate(normalize(tokens, self.epsilon), shift2, scale2)
        h = nn.gelu(Dense(4 * features, name="ff.net.0.proj")(h))
        h = Dense(features, name="ff.net.2")(dropout(h, self.dropout))
        return tokens + gate2 * h, embedding


class DiffusersDiT(Published):
    """diffusers' DiTTransformer2DModel, of square images.

    Attributes:
      patch: side of a square patch. depth, heads, head_channels: blocks, attention's heads.
      epsilon: added in each block's second norm.
    """

    num_labels: int = 1000
    patch: int = 2
    depth: int = 28
    heads: int = 16
    head_channels: int = 72
    epsilon: float = 1e-5

    def body(self, h: Array, time: Array, logsnr: Array, told: Conditioning, rate: float) -> Array:
        sines = waves(time, WAVES, shift=1.0)
        label = told.label
        label = jnp.full(h.shape[0], self.num_labels) if label is None else label

        p, features = self.patch, self.heads * self.head_channels
        tokens = nn.Conv(features, (p, p), (p, p), name="pos_embed.proj")(h)
        batch, side, _, _ = tokens.shape
        tokens = tokens.reshape(batch, side * side, features) + positions(side, features)[None]
        embeddings = []
        for i in range(self.depth):
            block = DiTBlock(
                self.heads,
                self.num_labels,
                self.guidance,
                rate,
                self.epsilon,
                name=f"transformer_blocks.{i}",
            )
            tokens, embedding = block(tokens, sines, label, told.guidance)
            embeddings.append(embedding)
            self.sow("maps", "maps", tokens.reshape(batch, side, side, features))

        modulation = Dense(2 * features, name="proj_out_1")(nn.silu(embeddings[0]))
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        tokens = modulate(normalize(tokens), shift, scale)
        pixels = Dense(p * p * self.out_channels, name="proj_out_2")(tokens)
        return channels_to_pixels(pixels.reshape(batch, side, side, -1), p)


def positions(side: int, features: int) -> Array:
    """[side^2, features]: sines and cosines of the column, then of the row, in patches."""
    quarter = features // 4
    frequencies = 10_000 ** -(np.arange(quarter) / quarter)
    angles = np.arange(side)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, features / 2]
    line = jnp.asarray(line, jnp.float32)
    return jnp.concatenate([jnp.tile(line, (side, 1)), jnp.repeat(line, side, axis=0)], axis=1)
