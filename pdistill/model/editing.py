"""A teacher as an encoder and a generator that has grown from it as its decoder (PaGoDA).

    coder = Autoencoder(load("runs/fashion/teacher"), load("runs/fashion/pagoda/32"))
    large = coder.super_resolve(small)

Edits that the paper shows without saying how are done here in the plainest way that its parts
allow.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.data.images import average
from pdistill.methods.columns import Latents
from pdistill.model.card import same_codec
from pdistill.model.model import Model
from pdistill.model.sampling import latents_of
from pdistill.networks import Conditioning, Network


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """Images of the generator's shape [B, H, W, C], small ones of the teacher's, [B, h, w, C].

    All are in [-1, 1]; latents are small and about unit normal. Labels [B] are for models that take
    them. Models of a codec's latents encode the means of an image's, and decode to images.

    Attributes:
      teacher: whose probability-flow ODE encodes. generator: a "pagoda" model of that teacher.
      latents: the encoding; None for the one that the generator was trained with.
    """

    teacher: Model
    generator: Model
    latents: Latents | None = None

    def __post_init__(self):
        teacher, generator = self.teacher, self.generator
        if teacher.noise_shape != generator.noise_shape:
            raise ValueError(
                f"the teacher is made from noise of {teacher.noise_shape}, the generator from "
                f"noise of {generator.noise_shape}"
            )
        if not same_codec(teacher.card.get("codec"), generator.card.get("codec")):
            raise ValueError("the teacher's codec is not the generator's; give models of one codec")
        if self.latents is None:
            if "latents" not in self.generator.card:
                raise ValueError("the generator's card does not say how to encode; give latents")
            trained = Latents(**self.generator.card["latents"])
            object.__setattr__(self, "latents", trained)

    @property
    def factor(self) -> int:
        """By which the generator's images are larger than the teacher's."""
        return self.generator.image_shape[0] // self.teacher.image_shape[0]

    def encode(self, small: Array, label: Array | None = None) -> Array:
        """Latents of small images."""
        return self._encode(self.teacher.network, small, label)

    def decode(self, z: Array, label: Array | None = None) -> Array:
        """Images of latents."""
        return self._decode(self.generator.network, z, label)

    def reconstruct(self, images: Array, label: Array | None = None) -> Array:
        """Images made again from their encoded reductions."""
        return self.super_resolve(average(images, self.factor), label)

    def super_resolve(self, small: Array, label: Array | None = None) -> Array:
        """Small images, large; reduced again they are nearly what they were."""
        return self.decode(self.encode(small, label), label)

    def change_class(self, small: Array, label: Array, new: Array) -> Array:
        """Large images of other labels, with the latents of small images of `label`."""
        return self.decode(self.encode(small, label), new)

    def interpolate(self, first: Array, last: Array, num: int, label: Array | None = None) -> Array:
        """`num` images on the way from one latent [h, w, C] to another, both included.

        On the great circle, where latents are as long as those of noise.
        """
        fractions = jnp.linspace(0, 1, num, dtype=first.dtype)
        return self.decode(slerp(first, last, fractions), label)

    def inpaint(
        self, images: Array, known: Array, label: Array | None = None, rounds: int = 4
    ) -> Array:
        """Images of which only the pixels `known` [B, H, W, 1], bool, count; those are kept.

        Unknown pixels begin as the mean of the known ones; in each round they become those of the
        reconstruction.
        """
        axes = (1, 2)
        count = jnp.maximum(known.sum(axes, keepdims=True), 1).astype(images.dtype)
        mean = jnp.where(known, images, 0).sum(axes, keepdims=True) / count
        filled = jnp.where(known, images, mean)
        for _ in range(rounds):
            filled = jnp.where(known, images, self.reconstruct(filled, label))
        return filled

    @functools.cached_property
    def _encode(self):
        def encode(network: Network, small: Array, label: Array | None) -> Array:
            return self.latents.encode(network, latents_of(network, small), label)

        return jax.jit(encode)

    @functools.cached_property
    def _decode(self):
        def decode(network: Network, z: Array, label: Array | None) -> Array:
            told = Conditioning(label=label)
            return self.generator.sampling.run(network, told, key=None, z_init=z)

        return jax.jit(decode)


def slerp(first: Array, last: Array, fractions: Array) -> Array:
    """Spherical interpolation of two arrays of one shape: [N, ...] for fractions [N] in [0, 1]."""
    cosine = jnp.vdot(first, last) / (jnp.linalg.norm(first) * jnp.linalg.norm(last))
    turn = jnp.arccos(jnp.clip(cosine, -1, 1))
    f = fractions.reshape(-1, *(1,) * first.ndim)
    along = jnp.sin(turn)
    straight = (1 - f) * first[None] + f * last[None]
    around = (jnp.sin((1 - f) * turn) * first[None] + jnp.sin(f * turn) * last[None]) / along
    return jnp.where(along > 1e-6, around, straight)
