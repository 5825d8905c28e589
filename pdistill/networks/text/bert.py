"""BERT (Devlin et al. 2019) as an encoder of sentences, as transformers' BertModel.

Layers have the names that they have in its files, dots included.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.linear import Dense
from pdistill.networks.transformer import attend_by_layers

SMALLEST = 1e-12  # length that a sentence's embedding is divided by


class BertBlock(nn.Module):
    """tokens [B, L, D], normalised after each sum -> [B, L, D].

    Attributes: as of `Bert`.
    """

    hidden: int
    heads: int
    epsilon: float

    @nn.compact
    def __call__(self, tokens: Array, seen: Array) -> Array:
        features = tokens.shape[-1]
        norm = functools.partial(nn.LayerNorm, self.epsilon, use_fast_variance=False)
        layers = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
        h = attend_by_layers(tokens, self.heads, layers, "attention.output.dense", seen)
        tokens = norm(name="attention.output.LayerNorm")(tokens + h)
        h = Dense(self.hidden, name="intermediate.dense")(tokens)
        h = Dense(features, name="output.dense")(nn.gelu(h, approximate=False))
        return norm(name="output.LayerNorm")(tokens + h)


class Bert(nn.Module):
    """Token ids to embeddings of the tokens and of the sentence; pads change neither.

    The defaults are MiniLM-L6's.

    Attributes:
      vocabulary: number of token ids. positions: most tokens of a prompt.
      types: kinds of sentences, of which the first is used.
      features, hidden: width of the tokens, and between the layers of a block.
      depth, heads: blocks, and attention's heads.
      epsilon: as in `nn.LayerNorm`.
      pooling: the sentence is the "mean" over its tokens, or the first, "cls".
      unit: the sentence has unit length.
    """

    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    features: int = 384
    hidden: int = 1536
    depth: int = 6
    heads: int = 12
    epsilon: float = 1e-12
    pooling: str = "mean"
    unit: bool = True

    masked = True  # pads change nothing, so that prompts may be padded to any length

    @nn.compact
    def __call__(
        self, ids: Array, mask: Array, *, penultimate: bool = False
    ) -> tuple[Array, Array]:
        """Ids [B, L] and their mask -> tokens [B, L, D], zero for pads, and sentences [B, D]."""
        table = functools.partial(nn.Embed, features=self.features)
        h = table(self.vocabulary, name="embeddings.word_embeddings")(ids)
        place = table(self.positions, name="embeddings.position_embeddings")
        kind = table(self.types, name="embeddings.token_type_embeddings")
        h += place(jnp.arange(ids.shape[1]))[None] + kind(jnp.zeros_like(ids))
        norm = nn.LayerNorm(self.epsilon, use_fast_variance=False, name="embeddings.LayerNorm")
        before = h = norm(h)
        for i in range(self.depth):
            block = BertBlock(self.hidden, self.heads, self.epsilon, name=f"encoder.layer.{i}")
            before, h = h, block(h, mask[:, None, None])
        here = mask[..., None].astype(h.dtype)
        if self.pooling == "mean":
            pooled = (h * here).sum(1) / jnp.maximum(here.sum(1), 1)
        else:
            pooled = h[:, 0]
        if self.unit:
            length = jnp.sqrt((pooled**2).sum(-1, keepdims=True))
            pooled /= jnp.maximum(length, SMALLEST)
        return (before if penultimate else h) * here, pooled
