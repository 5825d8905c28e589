"""Translates tensors by name, from files that execute nothing, into our networks' parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from pdistill.networks import (
    Codec,
    ImageEncoder,
    Network,
    TextEncoder,
    describe_network,
    num_blocks,
)
from pdistill.runtime.files import one_line, regular

# PyTorch's names of our parameters.
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

Filled = TypeVar("Filled", Network, Codec, TextEncoder, ImageEncoder)


class ConversionError(ValueError):
    """An error of files that cannot be converted; its message names file and first mismatch."""


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by name.

    Raises:
      ConversionError: the file is missing or damaged.
    """
    try:
        return safetensors.numpy.load_file(regular(path))
    except Exception as error:  # whatever the reader raises for damage
        raise ConversionError(f"cannot read {path}: {one_line(error)}") from error


def match(
    wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], source: str | Path
) -> None:
    """Checks that tensors have exactly the names and shapes of `wanted`.

    Raises:
      ConversionError: a name is missing, has another shape or is unknown; it names the first one.
    """
    unknown = next((name for name in tensors if name not in wanted), None)
    for name, shape in wanted.items():
        if name not in tensors:
            hint = f"; it has {unknown!r}, which this network lacks" if unknown else ""
            raise ConversionError(f"{source} has no tensor {name!r}{hint}")
        found = tensors[name].shape
        if found != shape:
            raise ConversionError(f"{source}: {name!r} has shape {list(found)}, not {list(shape)}")
    if unknown:
        raise ConversionError(f"{source} has a tensor {unknown!r}, which this network lacks")


def from_flat(blank: Filled, tensors: dict[str, np.ndarray], source: str | Path) -> Filled:
    """Fills a network or a codec with tensors, see `params_of`, on the default device."""
    return blank.replace(params=jax.tree.map(jnp.asarray, params_of(blank, tensors, source)))


def params_of(blank: Any, tensors: dict[str, np.ndarray], source: str | Path) -> dict[str, Any]:
    """A network's or a codec's parameters, NumPy's, of tensors named by their paths, with "/".

    The tensors are taken out of their dictionary, so that they are not held twice.

    Raises:
      ConversionError: see `match`, `check_size` and `numbers`.
    """
    check_size(blank, tensors, source)
    flat = traverse_util.flatten_dict(blank.shapes.params, sep="/")
    match({name: leaf.shape for name, leaf in flat.items()}, tensors, source)
    arrays = {
        name: numbers(tensors.pop(name), leaf.dtype, name, source) for name, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(arrays, sep="/")


def from_torch(blank: Filled, tensors: dict[str, np.ndarray], source: str | Path) -> Filled:
    """Fills a network, a codec or an encoder with tensors whose layers are named as in PyTorch.

    A layer's name is its path joined with "."; its kernel is "weight" there, outputs first. A 1x1
    convolution in PyTorch may be a dense layer here. The tensors are taken out of their dictionary,
    so that they are not held twice.

    Raises:
      ConversionError: see `match`, `check_size` and `numbers`; names and shapes are PyTorch's.
    """
    check_size(blank, tensors, source)
    flat = traverse_util.flatten_dict(blank.shapes.params)
    names = {path: ".".join((*path[:-1], TORCH_NAMES.get(path[-1], path[-1]))) for path in flat}
    ranks = {names[path]: leaf.ndim for path, leaf in flat.items() if path[-1] == "kernel"}
    for name, a in tensors.items():
        if ranks.get(name) == 2 and set(a.shape[2:]) == {1}:
            tensors[name] = a.reshape(a.shape[:2])
    match({names[path]: _torch_shape(path, leaf) for path, leaf in flat.items()}, tensors, source)
    arrays = {}
    for path, leaf in flat.items():
        array = tensors.pop(names[path])
        if path[-1] == "kernel":  # [out, in, height, width] -> [height, width, in, out]
            array = np.moveaxis(array, (0, 1), (-1, -2))
        arrays[path] = jnp.asarray(numbers(array, leaf.dtype, names[path], source))
    return blank.replace(params=traverse_util.unflatten_dict(arrays))


def check_size(blank: Filled, tensors: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Raises ConversionError for more blocks than tensors, before anything is traced."""
    blocks = num_blocks(describe_network(blank.module)["arguments"])
    if blocks > len(tensors):
        raise ConversionError(
            f"{source} has {len(tensors)} tensors, not enough for a network of {blocks} blocks"
        )


def numbers(array: np.ndarray, dtype: Any, name: str, source: str | Path) -> np.ndarray:
    """Copies an array as `dtype`.

    Raises:
      ConversionError: it is not floating point, or a number is not finite, or not as `dtype`.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ConversionError(f"{source}: {name!r} is {array.dtype}, not floating point")
    with np.errstate(over="ignore"):
        numbers = np.array(array, dtype, order="C")
    if not np.isfinite(numbers).all():
        what = f"overflows {numbers.dtype}" if np.isfinite(array).all() else "is not finite"
        raise ConversionError(f"{source}: a number of {name!r} {what}; get the weights again")
    return numbers


def _torch_shape(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape that PyTorch gives our parameter."""
    return leaf.shape if path[-1] != "kernel" else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
