"""The projected discriminator (Sauer et al. 2021; as in D2O, Zheng & Yang 2025).

Frozen features of an image, mixed by fixed random layers, are judged by small heads, one a map.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.networks.norms import GroupNorm

FROZEN = (r"mixing/",)  # paths of this module's parameters that stay as they are drawn
SMALL = 8  # side of maps whose convolution is a matrix product: on CPUs its gradients are fast
SPECTRAL = "spectral"  # collection of the vectors that power iteration carries on


class ProjectedDiscriminator(nn.Module):
    """Feature maps, finest first, [B, h, w, C] each -> logits [B, n], all heads' side by side.

    Apply it with mutable=[SPECTRAL]: every call does one power iteration of spectral norm.

    Attributes:
      halvings: strided convolutions of the head of each map; the paper has (4, 3, 2, 1).
      width: channels after the last of them; half as many one before, and so on.
      mixing: channels of the first mixed map, the next have twice as many and so on; 0 leaves the
        maps as they are.
      num_labels: 0 for a discriminator that is not told labels.
      batch_norm: normalise by the statistics of the batch, on all devices; there are no others.
    """

    halvings: tuple[int, ...]
    width: int = 512
    mixing: int = 64
    num_labels: int = 0
    batch_norm: bool = True

    @nn.compact
    def __call__(self, maps: Sequence[Array], label: Array | None = None) -> Array:
        if not maps or len(maps) != len(self.halvings):
            raise ValueError(f"halvings {self.halvings} are for {len(self.halvings)} maps; "
                             f"there are {len(maps)}")  # fmt: skip
        if self.mixing:
            maps = Mixing(self.mixing, name="mixing")(maps)
        logits = [
            Head(halvings, self.width, self.num_labels, self.batch_norm, name=f"head_{i}")(h, label)
            for i, (h, halvings) in enumerate(zip(maps, self.halvings, strict=True))
        ]
        return jnp.concatenate(logits, axis=-1)


class Mixing(nn.Module):
    """Cross-channel, then cross-scale mixing by 1x1 convolutions, coarse maps into finer ones.

    With width 64 the maps' channels become 64, 128, 256, 512, and those of the results, each of
    the next finer map's size and the first of twice its own, 64, 64, 128, 256.
    """

    width: int

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        results, mixed = [], 0.0
        for i in reversed(range(len(maps))):
            h = torch_dense(self.width * 2**i, f"channels_{i}", maps[i]) + mixed
            height, width = maps[i - 1].shape[1:3] if i else np.multiply(h.shape[1:3], 2)
            h = upsample(h, height, width)
            mixed = torch_dense(self.width * 2 ** max(i - 1, 0), f"scales_{i}", h)
            results.append(mixed)
        return results[::-1]


class Head(nn.Module):
    """A map [B, h, w, C] -> logits [B, n], one for each place of the last convolution."""

    halvings: int
    width: int
    num_labels: int
    batch_norm: bool

    @nn.compact
    def __call__(self, h: Array, label: Array | None) -> Array:
        height, width = h.shape[1:3]
        if min(height, width) < 2**self.halvings:
            raise ValueError(
                f"a map of {height} x {width} places cannot be halved {self.halvings} times: lower "
                "halvings, or let the judge see larger images by its resolution"
            )
        for i in range(self.halvings):
            features = max(self.width >> (self.halvings - 1 - i), 1)
            h = SpectralConv(features, 4, stride=2, padding=1, name=f"halve_{i}")(h)
            if self.batch_norm:  # a layer norm over the batch: nothing is remembered
                h = nn.LayerNorm(1e-5, reduction_axes=(0, 1, 2), name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        kernel = min(4, *h.shape[1:3])
        last = functools.partial(SpectralConv, kernel=kernel, use_bias=False, name="logits")
        if not self.num_labels:
            return last(1)(h).reshape(len(h), -1)
        h = last(LabelMap.features)(h)
        return LabelMap(self.num_labels, name="label")(h, label).reshape(len(h), -1)


class BottleneckHead(nn.Module):
    """A map of an encoder, mostly its last, [B, h, w, C] -> a logit an image, [B].

    The classifier of DMD2 (Yin et al. 2024): convolutions down to 4 places, on the shorter side of
    a map that is not square, and then to one place, each with group norm, and a linear layer.
    Groups have at least 16 channels, theirs 24 and more.
    """

    @nn.compact
    def __call__(self, h: Array) -> Array:
        size, channels = min(h.shape[1:3]), h.shape[3]
        groups = math.gcd(channels, min(32, max(channels // 16, 1)))
        halvings = max(math.ceil(math.log2(size / 4)), 0)
        for i in range(halvings + 1):
            last = i == halvings
            kernel, padding = (h.shape[1:3], 0) if last else ((4, 4), 1)
            conv = best_conv(h)(channels, kernel, 1 if last else 2, padding, name=f"conv_{i}")
            h = nn.swish(GroupNorm(groups, name=f"norm_{i}")(conv(h)))
        return nn.Dense(1, name="logit")(h).reshape(len(h))


class LabelMap(nn.Module):
    """Channels [B, h, w, 64] and a label [B] -> logits [B, h, w]: the label's projection of them.

    An embedding of 320 numbers, drawn from N(0, 1), and a linear layer of equalised learning rate.
    """

    num_labels: int
    features = 64

    @nn.compact
    def __call__(self, h: Array, label: Array) -> Array:
        normal = nn.initializers.normal(1.0)
        embedding = nn.Embed(self.num_labels, 320, embedding_init=normal)(label)
        direction = nn.Dense(self.features, kernel_init=normal)(embedding / math.sqrt(320))
        direction = math.sqrt(2) * nn.leaky_relu(direction, 0.2)
        return jnp.einsum("bhwc,bc->bhw", h, direction) / math.sqrt(self.features)


class SpectralConv(nn.Module):
    """A convolution whose kernel, as a matrix [inputs, features], has the spectral norm 1.

    The norm is estimated by one power iteration a call (Miyato et al. 2018).
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, h: Array) -> Array:
        init = torch_init(self.kernel**2 * h.shape[-1])
        settings = {"use_bias": self.use_bias, "kernel_init": init, "bias_init": init}
        kernel = 2 * (self.kernel,)
        conv = best_conv(h)(
            self.features, kernel, self.stride, self.padding, **settings, name="conv"
        )
        norm = nn.SpectralNorm(conv, collection_name=SPECTRAL, name="norm")
        return norm(h, update_stats=self.is_mutable_collection(SPECTRAL))


def best_conv(h: Array) -> type[nn.Conv]:
    """The convolution that is fastest for a map [B, h, w, C]."""
    return PatchConv if h.shape[1] == h.shape[2] <= SMALL else nn.Conv


class PatchConv(nn.Conv):
    """`nn.Conv` of square maps as one matrix product, by the same arguments and parameters."""

    @nn.compact
    def __call__(self, h: Array) -> Array:
        (k, _), s, p = self.kernel_size, self.strides, self.padding
        channels, size = h.shape[-1], (h.shape[1] + 2 * p - k) // s + 1
        shape = (k, k, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        h = jnp.pad(h, ((0, 0), (p, p), (p, p), (0, 0)))
        end = s * (size - 1) + 1
        shifted = [h[:, i : i + end : s, j : j + end : s] for i, j in np.ndindex(k, k)]
        h = jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, self.features)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            h = h + bias[None, None, None]
        return h


def torch_dense(features: int, name: str, h: Array) -> Array:
    """A 1x1 convolution with bias, drawn as PyTorch draws it."""
    init = torch_init(h.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)(h)


def torch_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(fan_in), for kernels and for biases."""
    uniform = nn.initializers.uniform(2 / math.sqrt(fan_in))
    return lambda *args: uniform(*args) - 1 / math.sqrt(fan_in)


def upsample(h: Array, height: int, width: int) -> Array:
    """Bilinear, corners on corners: [B, h, w, C] -> [B, height, width, C]."""
    rows, columns = corner_weights(h.shape[1], height), corner_weights(h.shape[2], width)
    return jnp.einsum("Hh,Ww,bhwc->bHWc", rows.astype(h.dtype), columns.astype(h.dtype), h)


def corner_weights(size: int, new_size: int) -> np.ndarray:
    """[new_size, size]: what each new place takes of the old ones; ends fall on ends."""
    places = np.linspace(0, size - 1, new_size)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))
