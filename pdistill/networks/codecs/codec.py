"""A codec as a value: an autoencoder's parameters, and the scale of its latents."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from pdistill.networks.checks import check_floats
from pdistill.networks.codecs.tiles import in_tiles


class Posterior(NamedTuple):
    """Latents of images as their encoder sees them, each normal, before they are scaled.

    Attributes:
      mean: [B, h, w, c]. logvar: log-variance, [B, h, w, c], in [-30, 20].
    """

    mean: Array
    logvar: Array


class Codec(struct.PyTreeNode):
    """An autoencoder with its parameters: images in [-1, 1] to a network's latents, and back.

    Only `params` is traced, as of `Network`; a *blank* codec has None for them.

    Attributes:
      params: nested dictionary of arrays, or None.
      module: an `AutoencoderKL`, an `AutoencoderTiny`, or another with their `encode`, `decode`,
        `factor`, `latent_channels` and `image_channels`.
      mean, std: scale of each channel of the encoder's z: a network's latents are (z - mean) / std.
        A published scaling factor and shift are std = 1 / factor and mean = shift.
      tile: side in pixels of the tiles of `encode_tiled` and `decode_tiled`, a multiple of
        4 * factor; best as large as the images that it was trained with.
    """

    params: Any
    module: nn.Module = struct.field(pytree_node=False)
    mean: tuple[float, ...] = struct.field(pytree_node=False)
    std: tuple[float, ...] = struct.field(pytree_node=False)
    tile: int = struct.field(pytree_node=False, default=512)

    def __repr__(self) -> str:
        """Everything but the values of the parameters, of which the number is said."""
        count = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return (
            f"Codec({type(self.module).__name__}, f{self.factor}d{self.channels}, "
            f"{count:,} parameters)"
        )

    @property
    def factor(self) -> int:
        """Pixels a side of an image for each a side of its latents."""
        return self.module.factor

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.module.latent_channels

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape [h, w, c] of the latents of an image [H, W, C].

        Raises:
          ValueError: the codec does not take such images.
        """
        height, width, channels = image_shape
        if channels != self.module.image_channels:
            raise ValueError(
                f"this codec takes images of {self.module.image_channels} channels; got {channels}"
            )
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width of images must be multiples of {self.factor} for this codec; "
                f"got {height}x{width}: crop or resize them"
            )
        return height // self.factor, width // self.factor, self.channels

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape [H, W, C] of the image of latents [h, w, c]."""
        height, width, _ = latent_shape
        return height * self.factor, width * self.factor, self.module.image_channels

    def encode(self, images: Array) -> Posterior:
        """Images [B, H, W, C] in [-1, 1] -> means and log-variances, [B, H / f, W / f, c].

        Raises:
          ValueError: images of other channels, or whose sides are no multiples of f; or of uint8.
        """
        check_floats(images)
        self.latent_shape(images.shape[1:])
        return _encode(self, images)

    def latents(self, posterior: Posterior, key: Array | None = None) -> Array:
        """A network's latents [B, h, w, c]: drawn, to train with, or their means without a key."""
        z, logvar = posterior
        if key is not None:
            z = z + jnp.exp(logvar / 2) * jax.random.normal(key, z.shape, z.dtype)
        mean, std = self._statistics(z)
        return (z - mean) / std

    def decode(self, latents: Array) -> Array:
        """A network's latents [B, h, w, c] -> images [B, f h, f w, C].

        They are in [-1, 1] but for the decoder's error, which is for the caller to clip.

        Raises:
          ValueError: latents of other channels.
        """
        self._check_latents(latents)
        return _decode(self, latents)

    def encode_tiled(self, images: Array) -> Posterior:
        """`encode` in tiles, for images larger than one; raises as that."""
        check_floats(images)
        self.latent_shape(images.shape[1:])
        side = self.tile // self.factor
        kept, blended = side * 3 // 4, side // 4
        moments = in_tiles(
            lambda part: jnp.concatenate(_encode(self, part), axis=-1),
            images, tile=self.tile, kept=kept, blended=blended,
        )  # fmt: skip
        return Posterior(*jnp.split(moments, 2, axis=-1))

    def decode_tiled(self, latents: Array) -> Array:
        """`decode` in tiles, for images larger than one; raises as that."""
        self._check_latents(latents)
        return in_tiles(
            lambda part: _decode(self, part),
            latents,
            tile=self.tile // self.factor,
            kept=self.tile * 3 // 4,
            blended=self.tile // 4,
        )

    @property
    def blank(self) -> "Codec":
        """The same codec without parameters: hashable."""
        return self.replace(params=None)

    @property
    def shapes(self) -> "Codec":
        """The codec with the shapes of its parameters, `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda: self.blank.init(jax.random.key(0)))

    def init(self, key: Array) -> "Codec":
        """The codec with fresh parameters."""
        images = jnp.zeros((1, self.factor, self.factor, self.module.image_channels))
        return self.replace(params=self.module.init(key, images)["params"])

    def checked(self) -> "Codec":
        """Returns the codec if its scale and its tiles can be meant.

        Raises:
          ValueError: they cannot.
        """
        lengths = {len(self.mean), len(self.std)}
        if lengths != {self.channels} or not all(0 < std < math.inf for std in self.std):
            raise ValueError(
                f"mean and std must be {self.channels} numbers each, and every std positive; got "
                f"{self.mean} and {self.std}"
            )
        if not all(math.isfinite(mean) for mean in self.mean):
            raise ValueError(f"mean must be finite; got {self.mean}")
        if self.tile < 1 or self.tile % (4 * self.factor):
            raise ValueError(f"tile must be a multiple of {4 * self.factor}; got {self.tile}")
        return self

    def _statistics(self, z: Array) -> tuple[Array, Array]:
        return tuple(jnp.asarray(a, z.dtype)[None, None, None] for a in (self.mean, self.std))

    def _check_latents(self, latents: Array) -> None:
        if latents.shape[-1] != self.channels:
            raise ValueError(
                f"this codec's latents have {self.channels} channels; got {latents.shape[-1]}: "
                "they are of another codec"
            )


@jax.jit
def _encode(codec: Codec, images: Array) -> Posterior:
    return Posterior(*codec.module.apply({"params": codec.params}, images, method="encode"))


@jax.jit
def _decode(codec: Codec, latents: Array) -> Array:
    mean, std = codec._statistics(latents)
    z = latents * std + mean
    return codec.module.apply({"params": codec.params}, z, method="decode")
