"""Parameters on disk, by Orbax, and their checksum."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from pdistill.runtime.files import one_line

CUT_FROM = 2**20  # bytes of a part


class CheckpointError(RuntimeError):
    """An error of checkpoints that cannot be read or written; its message says what to do."""


@jax.jit
def _checksum(tree: Any) -> Array:
    def bits(leaf):
        if leaf.dtype.itemsize == 8:
            return jax.lax.bitcast_convert_type(leaf, jnp.uint32)  # its halves
        if leaf.dtype == jnp.bool:
            return leaf.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")

    return sum(
        jnp.sum(bits(leaf).astype(jnp.uint32), dtype=jnp.uint32) for leaf in jax.tree.leaves(tree)
    )


def checksum(tree: Any) -> int:
    """Sums all arrays' bits as integers, modulo 2^32; the sum is the same on every mesh.

    Storage notices a file that is cut short, but not every file that is altered.
    """
    tree = without_keys(tree)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return _checksum_of_host(tree)  # a program for each tree would take a second to compile
    return int(_checksum(tree))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_keys(tree: Any) -> Any:
    """A tree with the numbers of its random keys, which storage keeps, instead of the keys."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """Inverts `without_keys`; `like` has arrays or shapes with the keys' kinds."""

    def key(leaf: Any, like: Any) -> Any:
        if not _is_key(like):
            return leaf
        kinds: list[Any] = []  # which only an array tells
        jax.eval_shape(lambda array: kinds.append(jax.random.key_impl(array)), like)
        return jax.random.wrap_key_data(leaf, impl=kinds[0])

    return jax.tree.map(key, tree, like)


def _checksum_of_host(tree: Any) -> int:
    def total(leaf):
        unsigned = f"uint{8 * min(leaf.dtype.itemsize, 4)}"
        return int(np.asarray(leaf).reshape(-1).view(unsigned).sum(dtype=np.uint32))

    return sum(map(total, jax.tree.leaves(tree))) % 2**32


@contextlib.contextmanager
def writing(directory: Any, quiet: bool = False) -> Iterator[None]:
    """Turns errors of Orbax and its storage into `CheckpointError`; drops them if `quiet`."""
    try:
        yield
    except Exception as error:
        if quiet:
            return
        raise CheckpointError(
            f"cannot write {directory}: {one_line(error)}. What was saved before is whole; once "
            "the cause is gone the same command goes on"
        ) from error


def tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes trees of arrays; an array of which all devices have a copy is cut among them if large.

    Orbax cuts all of them, and each cut is a program that is compiled at the first save.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=CUT_FROM)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def save_params(directory: str | Path, params: Any) -> None:
    """Writes a parameter tree to a new directory.

    Raises:
      CheckpointError: it cannot be written.
    """
    with writing(directory), ocp.AsyncCheckpointer(tree_handler()) as checkpointer:
        checkpointer.save(Path(directory).absolute(), ocp.args.PyTreeSave(params))


def load_params(directory: str | Path, shapes: Any, shardings: Any | None) -> Any:
    """Reads what `save_params` wrote.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` to expect.
      shardings: tree of shardings to place by; None for NumPy arrays.

    Raises:
      ValueError: the files are damaged, or the tree or its shapes are not those expected.
    """
    if shardings is None:
        target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes)
    else:
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
        )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(Path(directory).absolute(), target)
    except Exception as error:  # whatever Orbax and its storage raise
        raise ValueError(one_line(error)) from error
    for array, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        if array.shape != wanted.shape:  # which Orbax does not compare for NumPy arrays
            raise ValueError(f"an array has the shape {array.shape}, not {wanted.shape}")
    return found
