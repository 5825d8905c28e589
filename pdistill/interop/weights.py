"""Translates tensors by name, from files that execute nothing, into our networks' parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from pdistill.runtime.files import one_line

# PyTorch's names of our parameters.
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class ConversionError(ValueError):
    """An error of files that cannot be converted; its message names file and first mismatch."""


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by name.

    Raises:
      ConversionError: the file is missing or damaged.
    """
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # whatever the reader raises for damage
        raise ConversionError(f"cannot read {path}: {one_line(error)}") from error


def match(
    wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], source: str | Path
) -> dict[str, np.ndarray]:
    """Sorts tensors in the order of `wanted`, whose names and shapes they must have exactly.

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
    return {name: tensors[name] for name in wanted}


def from_flat(shapes: Any, tensors: Mapping[str, np.ndarray], source: str | Path) -> Any:
    """Makes a tree like `shapes`, of arrays named by their paths, joined with "/".

    Raises:
      ConversionError: see `match`.
    """
    flat = traverse_util.flatten_dict(shapes, sep="/")
    found = match({name: leaf.shape for name, leaf in flat.items()}, tensors, source)
    arrays = {name: jnp.asarray(found[name], flat[name].dtype) for name in flat}
    return traverse_util.unflatten_dict(arrays, sep="/")


def from_torch(shapes: Any, tensors: Mapping[str, np.ndarray], source: str | Path) -> Any:
    """Makes a tree like `shapes`, of arrays whose layers are named as in PyTorch.

    A layer's name is its path joined with "."; its kernel is "weight" there, outputs first. A 1x1
    convolution in PyTorch may be a dense layer here.

    Raises:
      ConversionError: see `match`; names and shapes are PyTorch's.
    """
    flat = traverse_util.flatten_dict(shapes)
    names = {path: ".".join((*path[:-1], TORCH_NAMES.get(path[-1], path[-1]))) for path in flat}
    ranks = {names[path]: leaf.ndim for path, leaf in flat.items() if path[-1] == "kernel"}
    tensors = {
        name: a.reshape(a.shape[:2]) if ranks.get(name) == 2 and set(a.shape[2:]) == {1} else a
        for name, a in tensors.items()
    }
    wanted = {names[path]: _torch_shape(path, leaf) for path, leaf in flat.items()}
    found = match(wanted, tensors, source)
    arrays = {path: _ours(path, found[names[path]], leaf) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(arrays)


def _torch_shape(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape that PyTorch gives our parameter."""
    return leaf.shape if path[-1] != "kernel" else (*leaf.shape[:-3:-1], *leaf.shape[:-2])


def _ours(path: tuple[str, ...], array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Transposes PyTorch's array into our parameter."""
    if path[-1] == "kernel":  # [out, in, height, width] -> [height, width, in, out]
        array = np.moveaxis(array, (0, 1), (-1, -2))
    return jnp.asarray(array.astype(leaf.dtype))
