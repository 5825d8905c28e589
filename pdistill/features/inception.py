"""The Inception network of 2015-12-05, with pool3 features and logits for the inception score.

This is the frozen graph that Salimans et al. 2016 and Heusel et al. 2017 (FID) use, with the
weights that pytorch-fid converted. It is not quite the network of Szegedy et al. 2015: means over
3x3 pixels leave out what is outside the image, Mixed_7c has a maximum in place of that mean, and
there are 1008 logits. Images are resized as in the graph too, as TensorFlow 1 does it;
pytorch-fid resizes as PyTorch does, so its scores are a little different.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from pdistill.features.base import NetworkExtractor
from pdistill.runtime.download import download
from pdistill.runtime.files import cache_dir, can_write, in_home, scratch_dir, write_atomically
from pdistill.runtime.temporary import replacing
from pdistill.runtime.terminal import say
from pdistill.runtime.torch_files import WeightsError, read_torch, sha256

INCEPTION = "inception"  # key in `EXTRACTORS`
ADDRESS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256_START = "6726825d"
SIZE = 299
BATCH_NORM_EPSILON = 1e-3


# --- The network ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution, its batch normalisation and a ReLU, named as in the weight file."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


# A tuple is a chain; the outputs of a list are joined along the channels.
Layer = Conv | Callable[[Array], Array] | tuple["Layer", ...] | list["Layer"]

mean_pool = functools.partial(
    nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)
max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
halve = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


def mixed_5(block: str, pooled: int) -> Layer:
    """Block at 35x35 pixels; `pooled` counts the channels of the last branch."""
    return [
        Conv(f"{block}.branch1x1", 64),
        (Conv(f"{block}.branch5x5_1", 48), Conv(f"{block}.branch5x5_2", 64, (5, 5))),
        (
            Conv(f"{block}.branch3x3dbl_1", 64),
            Conv(f"{block}.branch3x3dbl_2", 96, (3, 3)),
            Conv(f"{block}.branch3x3dbl_3", 96, (3, 3)),
        ),
        (mean_pool, Conv(f"{block}.branch_pool", pooled)),
    ]


def mixed_6(block: str, inner: int) -> Layer:
    """Block at 17x17 pixels; `inner` counts channels between the 7x1 and 1x7 convolutions."""
    return [
        Conv(f"{block}.branch1x1", 192),
        (
            Conv(f"{block}.branch7x7_1", inner),
            Conv(f"{block}.branch7x7_2", inner, (1, 7)),
            Conv(f"{block}.branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv(f"{block}.branch7x7dbl_1", inner),
            Conv(f"{block}.branch7x7dbl_2", inner, (7, 1)),
            Conv(f"{block}.branch7x7dbl_3", inner, (1, 7)),
            Conv(f"{block}.branch7x7dbl_4", inner, (7, 1)),
            Conv(f"{block}.branch7x7dbl_5", 192, (1, 7)),
        ),
        (mean_pool, Conv(f"{block}.branch_pool", 192)),
    ]


def mixed_7(block: str, pool: Callable[[Array], Array]) -> Layer:
    """Block at 8x8 pixels; `pool` is the pooling of its last branch."""
    return [
        Conv(f"{block}.branch1x1", 320),
        (
            Conv(f"{block}.branch3x3_1", 384),
            [
                Conv(f"{block}.branch3x3_2a", 384, (1, 3)),
                Conv(f"{block}.branch3x3_2b", 384, (3, 1)),
            ],
        ),
        (
            Conv(f"{block}.branch3x3dbl_1", 448),
            Conv(f"{block}.branch3x3dbl_2", 384, (3, 3)),
            [
                Conv(f"{block}.branch3x3dbl_3a", 384, (1, 3)),
                Conv(f"{block}.branch3x3dbl_3b", 384, (3, 1)),
            ],
        ),
        (pool, Conv(f"{block}.branch_pool", 192)),
    ]


LAYERS: Layer = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    halve,
    mixed_5("Mixed_5b", pooled=32),
    mixed_5("Mixed_5c", pooled=64),
    mixed_5("Mixed_5d", pooled=64),
    [
        Conv("Mixed_6a.branch3x3", 384, (3, 3), stride=2, padded=False),
        (
            Conv("Mixed_6a.branch3x3dbl_1", 64),
            Conv("Mixed_6a.branch3x3dbl_2", 96, (3, 3)),
            Conv("Mixed_6a.branch3x3dbl_3", 96, (3, 3), stride=2, padded=False),
        ),
        halve,
    ],
    mixed_6("Mixed_6b", inner=128),
    mixed_6("Mixed_6c", inner=160),
    mixed_6("Mixed_6d", inner=160),
    mixed_6("Mixed_6e", inner=192),
    [
        (
            Conv("Mixed_7a.branch3x3_1", 192),
            Conv("Mixed_7a.branch3x3_2", 320, (3, 3), stride=2, padded=False),
        ),
        (
            Conv("Mixed_7a.branch7x7x3_1", 192),
            Conv("Mixed_7a.branch7x7x3_2", 192, (1, 7)),
            Conv("Mixed_7a.branch7x7x3_3", 192, (7, 1)),
            Conv("Mixed_7a.branch7x7x3_4", 192, (3, 3), stride=2, padded=False),
        ),
        halve,
    ],
    mixed_7("Mixed_7b", mean_pool),
    mixed_7("Mixed_7c", max_pool),
)


class Inception(nn.Module):
    """The network, x [B, 299, 299, 3] in [-1, 1] -> features [B, 2048] and logits [B, 1008].

    A parameter has the name of its layer in the weight file, dots included; batch normalisation is
    part of the kernels and biases. The logits are without bias, as the inception score has them.
    """

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        def run(layer: Layer, h: Array) -> Array:
            match layer:
                case tuple():
                    return functools.reduce(lambda h, one: run(one, h), layer, h)
                case list():
                    return jnp.concatenate([run(one, h) for one in layer], axis=-1)
                case Conv():
                    return self.convolve(layer, h)
            return layer(h)

        features = run(LAYERS, x).mean((1, 2))
        fc = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        return {"features": features, "logits": fc(features)}

    def convolve(self, layer: Conv, h: Array) -> Array:
        """Applies a convolution and its ReLU."""
        # One column of zeros, cut off after: XLA on CPUs is up to 3 times as slow without any.
        padding = "SAME" if layer.padded else ((0, 0), (0, 1))
        conv = nn.Conv(
            layer.features,
            layer.kernel,
            layer.stride,
            padding,
            precision=jax.lax.Precision.HIGHEST,
            name=layer.name,
        )
        width = h.shape[2] if layer.padded else (h.shape[2] - layer.kernel[1]) // layer.stride + 1
        return nn.relu(conv(h)[:, :, :width])


def resize(images: Array, size: int) -> Array:
    """Resizes [B, H, W, C] to [B, size, size, C], bilinearly as in TensorFlow 1.

    Pixel i of the output is at i H / size of the input: the first corners coincide, where newer
    conventions let the centres of the images coincide. Nothing is antialiased.
    """

    def weights(length: int) -> np.ndarray:
        at = np.arange(size, dtype=np.float32) * np.float32(length / size)
        distances = np.minimum(at, length - 1)[:, None] - np.arange(length)
        return np.float32(np.maximum(1 - np.abs(distances), 0))

    rows, columns = map(weights, images.shape[1:3])
    return jnp.einsum(
        "ph,qw,bhwc->bpqc", rows, columns, images, precision=jax.lax.Precision.HIGHEST
    )


def extract(params: Any, images: Array) -> dict[str, Array]:
    """Maps uint8 [B, H, W, 1 or 3] to {"features": [B, 2048], "logits": [B, 1008]}."""
    x = (resize(images.astype(jnp.float32), SIZE) - 128) / 128
    return Inception().apply({"params": params}, jnp.broadcast_to(x, (*x.shape[:3], 3)))


# --- Its weights ----------------------------------------------------------------------------------


def load(weights: str | Path | None = None) -> NetworkExtractor:
    """Loads the network with the published weights, from `weights`, the cache or the internet.

    Raises:
      WeightsError: the weights cannot be had, or the file is not the published one.
    """
    path, expected = (in_home(str(weights)), SHA256_START) if weights is not None else _cached()
    digest = _verified(path, expected)
    return from_state_dict(read_torch(path), digest[:16], path)


def from_state_dict(
    state: Mapping[str, np.ndarray], fingerprint: str, source: str | Path = "the state dict"
) -> NetworkExtractor:
    """Makes the network of the weights `state`, named as in the published file.

    Args:
      fingerprint: hash of the weights, for `Extractor`.
      source: origin of the weights, for error messages.

    Raises:
      WeightsError: a tensor is missing, misshapen or unknown.
    """
    return NetworkExtractor(
        name=INCEPTION,
        apply=extract,
        params=_folded(state, source),
        preprocessing=(
            "grey images repeated to three channels; resized to 299x299 bilinearly as in "
            "TensorFlow 1 (no antialiasing, first corners aligned); (x - 128) / 128"
        ),
        fingerprint=fingerprint,
        channels=(1, 3),
        batch_size=16,
    )


def _folded(state: Mapping[str, np.ndarray], source: str | Path) -> Any:
    """Makes `Inception`'s parameters, with batch normalisation folded into its convolutions."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    counters = ".num_batches_tracked"  # training counts batches, and some copies keep the counts
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(counters)}

    def error(cause: str) -> WeightsError:
        return WeightsError(f"{source} is not of the Inception network: {cause}; see {ADDRESS}")

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in rest:
            raise error(f"it has no {name}")
        tensor = rest.pop(name)
        if tensor.shape != shape:
            raise error(f"{name} is {tensor.shape}, not {shape}")
        if not np.isfinite(tensor).all():
            raise error(f"a number of {name} is not finite")
        return tensor.astype(np.float64)

    take("fc.bias", (1008,))  # unused, see `Inception`
    params = {"fc": {"kernel": np.float32(take("fc.weight", (1008, 2048)).T)}}
    for name in sorted(shapes.keys() - {"fc"}):
        height, width, inputs, outputs = shapes[name]["kernel"].shape
        kernel = take(f"{name}.conv.weight", (outputs, inputs, height, width))
        scale, offset, mean, variance = (
            take(f"{name}.bn.{part}", (outputs,))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale /= np.sqrt(variance + BATCH_NORM_EPSILON)
        params[name] = {
            "kernel": np.float32(kernel.transpose(2, 3, 1, 0) * scale),
            "bias": np.float32(offset - mean * scale),
        }
    if rest:
        raise error(f"it has {min(rest)}, which is unknown")
    return params


def _cached() -> tuple[Path, str]:
    """Finds or fetches the published file: its path in the cache, and the SHA-256 or its start."""
    path = cache_dir() / "inception" / ADDRESS.rpartition("/")[2]
    if not os.path.exists(path) and not can_write(path.parent):
        say(f"warning: {path.parent} cannot be written; PDISTILL_CACHE_DIR can name another folder")
        path = scratch_dir() / path.name
    record = path.with_name(path.name + ".sha256")
    if not os.path.exists(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as fetched:
                download(ADDRESS, fetched)
                write_atomically(record, _verified(fetched, SHA256_START))
        except OSError as error:
            raise WeightsError(
                f"cannot download {ADDRESS}: {error}; give a copy made elsewhere as "
                f"--inception_weights=PATH, or put it at {path}"
            ) from error
    return path, record.read_text() if record.exists() else SHA256_START


def _verified(path: Path, expected: str) -> str:
    """Returns the SHA-256 of the file, or raises WeightsError unless it begins as expected."""
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; it should be a copy of {ADDRESS}")
    found = sha256(path)
    if not found.startswith(expected):
        raise WeightsError(
            f"wrong hash: {path} is truncated or not a copy of {ADDRESS}; its SHA-256 is {found}, "
            f"and should begin with {expected}; get the file again"
        )
    return found
