"""The vision transformer of DINOv2 (Oquab et al. 2024), with the layers of transformers' files.

Layers have the names that they have there, dots included.
"""

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.networks.linear import Dense
from pdistill.networks.transformer import attend_by_layers
from pdistill.networks.vision.cubic import cubic

# Added to the wanted number of positions where the original code finds the scale of its
# interpolation, so that its places are not quite transformers' own. Published distances have it.
OFFSET = 0.1
EPSILON = 1e-6  # of norms


class Dinov2Block(nn.Module):
    """tokens [B, T, D], normalised before each layer and scaled after it -> [B, T, D].

    Attributes: as of `Dinov2`.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        features = tokens.shape[-1]
        norm = functools.partial(nn.LayerNorm, EPSILON, use_fast_variance=False)

        def scale(name: str) -> Array:
            return self.param(f"{name}.lambda1", nn.initializers.ones, (features,))[None, None]

        layers = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
        h = norm(name="norm1")(tokens)
        h = attend_by_layers(h, self.heads, layers, "attention.output.dense")
        tokens = tokens + scale("layer_scale1") * h
        h = Dense(4 * features, name="mlp.fc1")(norm(name="norm2")(tokens))
        h = Dense(features, name="mlp.fc2")(nn.gelu(h, approximate=False))
        return tokens + scale("layer_scale2") * h


class Dinov2(nn.Module):
    """Images to the class token's features, after the last norm; the defaults are ViT-B/14's.

    ViT-L/14 has features=1024, depth=24, heads=16.

    Attributes:
      features: width of the tokens. depth, heads: blocks, and attention's heads.
      patch: pixels a side of a patch.
      grid: places a side that there are position embeddings for; images of other sizes have
        interpolated ones.
    """

    features: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 14
    grid: int = 37

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, 3], with H and W multiples of the patch -> features [B, D]."""
        size, normal = (self.patch, self.patch), nn.initializers.normal(0.02)
        embed = nn.Conv(
            self.features, size, size, "VALID", name="embeddings.patch_embeddings.projection"
        )
        patches = embed(x)
        batch, rows, columns, features = patches.shape
        first = self.param("embeddings.cls_token", normal, (1, 1, features))
        places = (1, 1 + self.grid**2, features)
        places = self.param("embeddings.position_embeddings", normal, places)
        tokens = patches.reshape(batch, rows * columns, features)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, features)), tokens], axis=1)
        h = tokens + resized_positions(places, rows, columns)
        for i in range(self.depth):
            h = Dinov2Block(self.heads, name=f"encoder.layer.{i}")(h)
        norm = nn.LayerNorm(EPSILON, use_fast_variance=False, name="layernorm")
        return norm(h[:, 0])


def resized_positions(positions: Array, rows: int, columns: int) -> Array:
    """Position embeddings [1, 1 + g^2, D], the class token's first, of a grid of another shape.

    Bicubic, not antialiased, as the original code with its OFFSET: [1, 1 + rows columns, D].
    """
    _, count, features = positions.shape
    side = round((count - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = positions[0, 1:].reshape(side, side, features)
    weights = (jnp.asarray(_weights(side, wanted), grid.dtype) for wanted in (rows, columns))
    grid = jnp.einsum("ri,cj,ijd->rcd", *weights, grid, precision="highest")
    return jnp.concatenate([positions[:, :1], grid.reshape(1, -1, features)], axis=1)


def _weights(side: int, wanted: int) -> np.ndarray:
    """Weights of `side` places in each of `wanted` others: [wanted, side]."""
    at = (np.arange(wanted) + 0.5) * side / (wanted + OFFSET) - 0.5
    weights = np.zeros((wanted, side))
    for tap in range(-1, 3):
        place = np.floor(at).astype(int) + tap
        inside = np.clip(place, 0, side - 1)  # those outside are the outermost
        np.add.at(weights, (np.arange(wanted), inside), cubic(at - place, -0.75))
    return weights
