"""Embeddings: the way of noise level, label, prompt and guidance weight into a network."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.diffusion import angle
from pdistill.networks.conditioning import Text

TIME_SCALE = 1000.0  # of the progressive distillation release


def waves(time: Array, features: int, *, shift: float = 0.0, cosines_first: bool = True) -> Array:
    """Sines and cosines of a time: [B] -> [B, features].

    Frequencies exp(-j log(10000) / (half - shift)), j < half = features // 2; a zero pads odd
    `features`.
    """
    half = features // 2
    exponents = jnp.arange(half, dtype=time.dtype)
    frequencies = jnp.exp(-math.log(10_000) / max(half - shift, 1) * exponents)
    angles = time[:, None] * frequencies[None]
    parts = [jnp.cos(angles), jnp.sin(angles)]
    joined = jnp.concatenate(parts if cosines_first else parts[::-1], axis=-1)
    return jnp.pad(joined, ((0, 0), (0, features % 2)))


def sinusoidal(u: Array, features: int, scale: float = TIME_SCALE) -> Array:
    """Sines and cosines of `scale` u, u in [0, 1]: [B] -> [B, features].

    Sines first and shift = 1 (Ho et al. 2020, in the form of the progressive distillation release).
    """
    return waves(scale * u, features, shift=1.0, cosines_first=False)


def logsnr_waves(logsnr: Array, features: int, scale: float = TIME_SCALE) -> Array:
    """Sinusoids of u = 2 phi / pi in [0, 1], the angle of the noise level, clipped to +-20.

    Args:
      scale: fastest frequency, in radians over all of u: about 16 for a network that is
        differentiated in time, such as a flow map, whose derivative is mostly noise with 1000.
    """
    return sinusoidal(angle(jnp.clip(logsnr, -20.0, 20.0)) * (2 / math.pi), features, scale)


def one_hot(label: Array | None, num_labels: int, batch: int) -> Array:
    """[B, num_labels] float32; zeros for label = num_labels, and for None throughout."""
    if label is None:
        return jnp.zeros((batch, num_labels))
    return jax.nn.one_hot(label, num_labels)


class LabelEmbedding(nn.Module):
    """Labels 0 .. num_labels - 1, and num_labels for "no label": [B] int -> [B, features].

    A label of None asks for "no label" throughout the batch.
    """

    num_labels: int
    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, label: Array | None, batch: int) -> Array:
        if label is None:
            label = jnp.full((batch,), self.num_labels)
        init = nn.initializers.normal(0.02)
        return nn.Embed(self.num_labels + 1, self.features, embedding_init=init, dtype=self.dtype)(
            label
        )


class TextEmbedding(nn.Module):
    """Pooled embeddings of prompts -> [B, features]; a learnt vector for "no prompt".

    Prompts of None ask for "no prompt" throughout the batch.

    Attributes:
      width: P of the pooled embeddings.
    """

    width: int
    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, text: Text | None, batch: int) -> Array:
        none = self.param("none", nn.initializers.normal(0.02), (self.features,), jnp.float32)
        if text is None:
            return jnp.broadcast_to(none, (batch, self.features))
        if text.pooled is None or text.pooled.shape[-1] != self.width:
            found = None if text.pooled is None else text.pooled.shape[-1]
            raise ValueError(
                f"the network takes pooled embeddings of {self.width} numbers; got {found}: give "
                "prompts by the text encoder that it was trained with"
            )
        h = nn.Dense(2 * self.features, dtype=self.dtype, name="in")(text.pooled)
        h = nn.Dense(self.features, dtype=self.dtype, name="out")(nn.swish(h))
        return jnp.where(text.mask.any(-1)[:, None], h, none.astype(h.dtype))


class TargetEmbedding(nn.Module):
    """Log-SNRs to jump to, [B] -> [B, features], beside the embedding of the one to jump from.

    The same sinusoids, `waves` of them, through layers of their own (Kim et al. 2023). Zero at
    first, so that the network of a teacher is the jump of its denoiser. A target of None is the
    level to jump from. Also for another log-SNR: that of a condition's noise.
    """

    waves: int
    features: int
    dtype: jnp.dtype | None = None
    time_scale: float = TIME_SCALE
    zero: bool = True  # not where zeros are in the layers behind it

    @nn.compact
    def __call__(self, target: Array | None, logsnr: Array) -> Array:
        level = logsnr if target is None else target
        waves = logsnr_waves(level, self.waves, self.time_scale)
        dense = functools.partial(nn.Dense, self.features, dtype=self.dtype)
        init = {"kernel_init": nn.initializers.zeros} if self.zero else {}
        return dense(name="out", **init)(nn.swish(dense(name="in")(waves)))


class GuidanceEmbedding(nn.Module):
    """Guidance weights w [B] -> [B, features], for a student of guided teachers; zero at first.

    Sinusoids of w / 100 and a linear layer, added to the noise level's sinusoids. Meng et al. 2023
    say Fourier features and leave the frequencies open: what the student learns is affine in w, so
    these are slow, 10 rad a unit of w and below. A weight of None is 0 throughout.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, weight: Array | None, batch: int) -> Array:
        if weight is None:
            weight = jnp.zeros((batch,))
        waves = sinusoidal(weight / 100, self.features)
        return nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="linear",
        )(waves)


class LevelsEmbedding(nn.Module):
    """The levels at which guidance acts, log-SNRs [B, 2] -> [B, features]; zero at first.

    The sinusoids of both and a linear layer (Geng et al. 2025b). Levels of None are all there are.
    """

    features: int
    dtype: jnp.dtype | None = None
    time_scale: float = TIME_SCALE

    @nn.compact
    def __call__(self, levels: Array | None, batch: int) -> Array:
        if levels is None:
            levels = jnp.broadcast_to(jnp.array([-jnp.inf, jnp.inf]), (batch, 2))
        waves = [logsnr_waves(level, self.features, self.time_scale) for level in levels.T]
        init = nn.initializers.zeros
        dense = nn.Dense(self.features, use_bias=False, kernel_init=init, dtype=self.dtype)
        return dense(jnp.concatenate(waves, axis=-1))
