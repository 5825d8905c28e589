"""Parts of transformers, and the attention of U-Nets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from pdistill.networks.attention import attend
from pdistill.networks.conditioning import Text
from pdistill.networks.linear import Dense, DenseGeneral, matrix_product
from pdistill.samplers.sampling import at_least_float32


def separate(qkv: Array, axis: int) -> list[Array]:
    """Queries, keys and values of an array that has three of them along an axis.

    Their gradients are put side by side; those of `qkv[0]` and so on would be padded and summed.
    """
    return [a.squeeze(axis) for a in jnp.split(qkv, 3, axis)]


def attend_by_layers(
    tokens: Array,
    heads: int,
    layers: tuple[str, str, str],
    out: str,
    mask: Array | None = None,
) -> Array:
    """Attention among tokens [B, T, C] by linear layers of these names, in a module's compact call.

    Args:
      layers: names of those of queries, keys and values. out: name of the last one. mask: as of
        `attend`.
    """
    features = tokens.shape[-1]
    kernels, biases = zip(*(_Layer(features, name=name)() for name in layers), strict=True)
    joined = jnp.concatenate(kernels, axis=1), jnp.concatenate(biases)
    tokens, kernel, bias = promote_dtype(tokens, *joined)
    qkv = matrix_product(tokens, kernel, (((2,), (0,)), ((), ()))) + bias[None, None]
    q, k, v = separate(qkv.reshape(*tokens.shape[:2], 3, heads, features // heads), 2)
    return Dense(features, name=out)(attend(q, k, v, mask).reshape(tokens.shape))


class _Layer(nn.Module):
    """Kernel and bias of a linear layer of as many inputs as outputs, for a product with others."""

    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape = self.features, self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, shape[:1], jnp.float32)


class TextAttention(nn.Module):
    """Attention of tokens [B, T, C] to those of prompts, normed both; zero at first.

    Pads are left out. Beside a prompt's tokens there is a learnt one, all that "no prompt" has.

    Attributes:
      width: D of the prompts' tokens. heads: attention heads. dtype: number format inside.
    """

    width: int
    heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, tokens: Array, text: Text | None) -> Array:
        batch, _, features = tokens.shape
        project = functools.partial(
            DenseGeneral, (self.heads, features // self.heads), dtype=self.dtype
        )
        none = self.param("none", nn.initializers.normal(1.0), (self.width,), jnp.float32)
        keys = jnp.broadcast_to(none.astype(tokens.dtype), (batch, 1, self.width))
        mask = None
        if text is not None:
            keys = jnp.concatenate([keys, text.tokens.astype(tokens.dtype)], axis=1)
            mask = jnp.pad(text.mask, ((0, 0), (1, 0)), constant_values=True)[:, None, None]
        q, keys = project(name="q")(normalize(tokens)), normalize(keys)
        k, v = (project(name=name)(keys) for name in "kv")
        out = DenseGeneral(
            features, (-2, -1), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out"
        )
        return out(attend(q, k, v, mask))


def normalize(tokens: Array, epsilon: float = 1e-6) -> Array:
    """Layer norm without scale and bias; at least float32 inside, as the input outside."""
    return _standardized(at_least_float32(tokens), epsilon).astype(tokens.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardized(tokens: Array, epsilon: float) -> Array:
    """Tokens less their mean, over their deviation."""
    return _standardize(tokens, epsilon)[0]


def _standardize(tokens: Array, epsilon: float) -> tuple[Array, Array]:
    mean = tokens.mean(-1, keepdims=True)
    variance = jnp.maximum((tokens * tokens).mean(-1, keepdims=True) - mean * mean, 0.0)
    factor = jax.lax.rsqrt(variance + epsilon)
    return (tokens - mean) * factor, factor


@_standardized.defjvp
def _(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """By the result instead of the mean and the variance: half of the passes over memory."""
    normed, factor = _standardize(*primals, epsilon)
    change = factor * tangents[0]
    along = (normed * change).mean(-1, keepdims=True)
    return normed, change - change.mean(-1, keepdims=True) - normed * along


def rms_normalize(a: Array, name: str, epsilon: float = 1e-6) -> Array:
    """RMS norm over the last axis with a learnt scale, `name`, in a module's compact call.

    At least float32 inside, as the input outside.
    """
    norm = nn.RMSNorm(epsilon=epsilon, name=name)
    return norm(at_least_float32(a)).astype(a.dtype)


def rotary_angles(grid: tuple[int, int], channels: int, registers: int = 0) -> np.ndarray:
    """Angles [registers + H W, channels / 2] of rotary positions on a grid of H x W tokens.

    Rows come first, then as many angles of columns, with frequencies 10000^(-4 j / channels); zeros
    for registers, which come first.

    Raises:
      ValueError: channels, of one head, are not a multiple of four.
    """
    if channels % 4:
        raise ValueError(
            f"rotary positions need a multiple of 4 channels in each head; got {channels}: change "
            "features or heads"
        )
    quarter = channels // 4
    frequencies = 10_000 ** -(np.arange(quarter) / quarter)
    places = np.indices(grid).reshape(2, -1, 1) * frequencies  # [2, H W, quarter]
    return np.pad(np.concatenate(places, axis=1), ((registers, 0), (0, 0)))


def rotate(a: Array, angles: Array) -> Array:
    """Turns neighbouring pairs of channels of a [B, T, heads, C] by angles [T, C / 2]."""
    wide = at_least_float32(a)
    turn = jnp.asarray(angles, wide.dtype)[None, :, None]
    first, second = wide[..., 0::2], wide[..., 1::2]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    pairs = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return pairs.reshape(a.shape).astype(a.dtype)


def swiglu(tokens: Array, dtype: jnp.dtype | None, name: str = "mlp_in") -> Array:
    """silu(a) b of linear layers a, b of int(2/3 4 C) channels: as many parameters as 4 C of one.

    In a module's compact call, both as the layer `name` (Shazeer 2020). [B, T, C] ->
    [B, T, int(2/3 4 C)].
    """
    hidden = int(2 / 3 * 4 * tokens.shape[-1])
    a, b = jnp.split(Dense(2 * hidden, dtype=dtype, name=name)(tokens), 2, axis=-1)
    return nn.silu(a) * b


def modulate(tokens: Array, shift: Array, scale: Array) -> Array:
    """Tokens [B, T, C] times 1 + scale, plus shift, [B, 1, C] each."""
    return tokens * (1 + scale) + shift
