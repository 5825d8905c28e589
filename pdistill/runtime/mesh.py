"""Sharding as data, a mesh and a rule from a parameter's shape to its PartitionSpec.

`jax.jit` reads the shardings and inserts the communication. Batches are cut over all devices;
parameters and optimizer state over the fsdp axis.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MIN_SHARDED_SIZE = 4096  # smaller leaves cost more to gather than to keep
_mesh = jax.make_user_context(None)  # part of what jit keeps its programs by


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of data x fsdp devices, by default all; one of the two may be -1, "the rest".

    Raises:
      ValueError: data x fsdp is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and fsdp > 0:
        data = count // fsdp
    elif fsdp == -1 and data > 0:
        fsdp = count // data
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise ValueError(
            f"a mesh of data={data} x fsdp={fsdp} does not fit {count} devices: their product must "
            "be that number"
        )
    axes = (data, fsdp), ("data", "fsdp")
    return jax.make_mesh(*axes, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of the batch axis, after `leading` other axes, over all devices."""
    return NamedSharding(mesh, P(*[None] * leading, ("data", "fsdp")))


def batches_over(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Makes a context in which networks cut their batches over all devices of a mesh.

    Without it `jax.jit` cuts what is made of nothing that is cut, such as noise, by the parameters:
    each device would hold all rows of its fsdp group.
    """
    return _mesh(mesh if mesh.size > 1 else None)


def cut_batch(tree: Any) -> Any:
    """Cuts arrays [B, ...] over the mesh of `batches_over`, if it is there and divides B."""
    mesh = _mesh.value
    if mesh is None or any(not a.ndim or len(a) % mesh.size for a in jax.tree.leaves(tree)):
        return tree
    return jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))


def devices_of_batch() -> int:
    """Counts the devices that `batches_over` cuts batches over; 1 without."""
    return 1 if _mesh.value is None else _mesh.value.size


def in_turns(first: Any, second: Any) -> Any:
    """Rows of two trees of arrays [B, ...] in turns, [2 B, ...]: on a mesh none has to move."""
    return jax.tree.map(
        lambda *pair: jnp.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]), first, second
    )


def out_of_turns(rows: Array) -> tuple[Array, Array]:
    """Takes rows [2 B, ...] apart again, into [B, ...] twice."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def local_columns(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Numbers the examples of a batch that this process's devices hold: int [local batch], rising.

    A mesh may have a process's devices anywhere, so these need not follow each other.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[i] for i in indices.values()]))


def param_sharding(tree: Any, mesh: Mesh) -> Any:
    """Chooses a NamedSharding for each leaf (array or ShapeDtypeStruct) of `tree`.

    The largest axis that the fsdp axis divides is cut; leaves below MIN_SHARDED_SIZE and leaves
    with no such axis are replicated.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(leaf):
        axes = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or leaf.size < MIN_SHARDED_SIZE or not axes:
            return replicated(mesh)
        cut = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*[None] * cut, "fsdp"))

    return jax.tree.map(rule, tree)


def to_device(tree: Any, sharding: NamedSharding) -> Any:
    """Places host arrays, of which each process holds its part, as global arrays of `sharding`."""
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree
    )


def place_rows(read: Callable[[np.ndarray], Any], rows: np.ndarray, mesh: Mesh) -> Any:
    """Places rows [B] of host arrays as a batch over the mesh; a process reads its devices' alone.

    Args:
      read: (numbers of rows [n]) -> a tree of arrays [n, ...].
    """
    return to_device(read(rows[local_columns(mesh, len(rows))]), batch_sharding(mesh))


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh of several devices, as of `make_mesh`, that arrays are on; None for none."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            mesh = getattr(leaf.sharding, "mesh", None)
            if isinstance(mesh, Mesh) and mesh.size > 1 and {"data", "fsdp"} <= {*mesh.axis_names}:
                return mesh
    return None
