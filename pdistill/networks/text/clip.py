"""The text encoder of CLIP (Radford et al. 2021), as transformers' CLIPTextModel.

Layers have the names that they have in its files, dots included, without "text_model.".
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.linear import Dense
from pdistill.networks.transformer import attend_by_layers

LARGEST_ID = 2  # "end of text" in old configs, which stands for the largest id of a prompt


class ClipBlock(nn.Module):
    """tokens [B, L, D], normalised before each layer -> [B, L, D].

    Attributes: as of `ClipText`.
    """

    hidden: int
    heads: int
    epsilon: float
    quick_gelu: bool

    @nn.compact
    def __call__(self, tokens: Array, seen: Array | None) -> Array:
        features = tokens.shape[-1]
        norm = functools.partial(nn.LayerNorm, self.epsilon, use_fast_variance=False)
        h = norm(name="layer_norm1")(tokens)
        layers = tuple(f"self_attn.{name}_proj" for name in "qkv")
        tokens = tokens + attend_by_layers(h, self.heads, layers, "self_attn.out_proj", seen)
        h = Dense(self.hidden, name="mlp.fc1")(norm(name="layer_norm2")(tokens))
        h = h * nn.sigmoid(1.702 * h) if self.quick_gelu else nn.gelu(h, approximate=False)
        return tokens + Dense(features, name="mlp.fc2")(h)


class ClipText(nn.Module):
    """Token ids to embeddings of the tokens and of the prompt.

    Each token sees those before it, so that pads change nothing of the prompt; networks that were
    trained with this encoder look at the pads' embeddings too, so that a prompt must be padded to
    all positions. The defaults are those of CLIP ViT-L/14, Stable Diffusion's encoder. SDXL's
    second one, OpenCLIP bigG, has features=1280, hidden=5120, depth=32, heads=20,
    quick_gelu=False and projection=1280.

    Attributes:
      vocabulary: number of token ids. positions: most tokens of a prompt.
      features, hidden: width of the tokens, and between the layers of a block.
      depth, heads: blocks, and attention's heads.
      epsilon: as in `nn.LayerNorm`.
      quick_gelu: x sigmoid(1.702 x) in place of the exact GELU.
      eos: id of "end of text", whose first place is the prompt's embedding; `LARGEST_ID` if it is
        where the largest id is.
      projection: width that the prompt's embedding is projected to; 0 for none.
    """

    vocabulary: int = 49408
    positions: int = 77
    features: int = 768
    hidden: int = 3072
    depth: int = 12
    heads: int = 12
    epsilon: float = 1e-5
    quick_gelu: bool = True
    eos: int = 49407
    projection: int = 0

    masked = False

    @nn.compact
    def __call__(
        self, ids: Array, mask: Array, *, penultimate: bool = False
    ) -> tuple[Array, Array]:
        """Ids [B, L] -> tokens [B, L, D] and prompts [B, projection or D]; `mask` is not used.

        The last layer's tokens are normalised, those of the last but one are not.
        """
        table = functools.partial(nn.Embed, features=self.features)
        place = table(self.positions, name="embeddings.position_embedding")
        before = h = table(self.vocabulary, name="embeddings.token_embedding")(ids)
        h += place(jnp.arange(ids.shape[1]))[None]
        causal = jnp.tri(ids.shape[1], dtype=bool)[None, None]
        for i in range(self.depth):
            block = ClipBlock(
                self.hidden, self.heads, self.epsilon, self.quick_gelu, name=f"encoder.layers.{i}"
            )
            before, h = h, block(h, causal)
        h = nn.LayerNorm(self.epsilon, use_fast_variance=False, name="final_layer_norm")(h)
        end = (ids if self.eos == LARGEST_ID else ids == self.eos).argmax(1)
        pooled = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
        if self.projection:
            pooled = Dense(self.projection, use_bias=False, name="text_projection")(pooled)
        return before if penultimate else h, pooled
