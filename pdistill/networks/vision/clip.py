"""The image tower of CLIP (Radford et al. 2021), as transformers' CLIPVisionModelWithProjection.

Layers have the names that they have in its files, dots included, without "vision_model.".
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.linear import Dense
from pdistill.networks.text.clip import ClipBlock

EPSILON = 1e-5  # of norms


class ClipImage(nn.Module):
    """Images to embeddings in the space of CLIP's prompts; the defaults are ViT-L/14-336's.

    Attributes:
      features, hidden: width of the tokens, and between the layers of a block.
      depth, heads: blocks, and attention's heads.
      patch: pixels a side of a patch. grid: patches a side of an image.
      projection: width of the embeddings.
    """

    features: int = 1024
    hidden: int = 4096
    depth: int = 24
    heads: int = 16
    patch: int = 14
    grid: int = 24
    projection: int = 768

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, patch grid, patch grid, 3] -> embeddings [B, projection], of any length."""
        norm = functools.partial(nn.LayerNorm, EPSILON, use_fast_variance=False)
        size = self.patch, self.patch
        embed = nn.Conv(
            self.features, size, size, "VALID", use_bias=False, name="embeddings.patch_embedding"
        )
        patches = embed(x).reshape(len(x), self.grid**2, self.features)
        normal = nn.initializers.normal(0.02)
        first = self.param("embeddings.class_embedding", normal, (self.features,))
        first = jnp.broadcast_to(first, (len(x), 1, self.features))
        place = nn.Embed(self.grid**2 + 1, self.features, name="embeddings.position_embedding")
        h = jnp.concatenate([first, patches], axis=1) + place(jnp.arange(self.grid**2 + 1))[None]
        h = norm(name="pre_layrnorm")(h)
        for i in range(self.depth):
            layer = f"encoder.layers.{i}"
            h = ClipBlock(self.hidden, self.heads, EPSILON, quick_gelu=True, name=layer)(h, None)
        h = norm(name="post_layernorm")(h[:, 0])
        return Dense(self.projection, use_bias=False, name="visual_projection")(h)
