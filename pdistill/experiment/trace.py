"""A run's update traced on shapes, as training would do it, before there are data."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from pdistill.data.columns import Column
from pdistill.data.moments import FORMAT
from pdistill.data.text import text_shapes
from pdistill.experiment.codecs import moments_shape
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.plan import Planned, check_devices
from pdistill.runtime import costs
from pdistill.runtime.mesh import batch_sharding, param_sharding, replicated
from pdistill.runtime.own_code import is_own, said
from pdistill.training import TrainState, compile_update, kinds_of, take_frozen

HOST = "pinned_host"  # JAX's name of the host's memory that a device reads from


@dataclasses.dataclass(frozen=True)
class TracedUpdate:
    """Updates of a run, traced, and the shapes of their inputs, each with its sharding.

    Attributes:
      data: the resident data set and raw batches. substeps: number of updates.
    """

    traced: jax.stages.Traced
    state: TrainState
    frozen: dict[str, Any]
    data: tuple[dict[str, Any], dict[str, Any]]
    substeps: int

    @property
    def flops(self) -> int:
        """Operations of one update."""
        return costs.flops(self.traced.jaxpr.jaxpr) // self.substeps


def trace_update(
    planned: Planned,
    runs: Mapping[str, Planned],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
    step: int = 0,
    substeps: int = 1,
    rows: Mapping[str, Any] = MappingProxyType({}),
) -> TracedUpdate:
    """Traces the dispatch of `substeps` updates from number `step` on, as training would do it.

    Args:
      data_shape: [N, H, W, C] of the data set.
      rows: `Dataset.column_arrays` of it; without, text is as `text_shapes`.

    Raises:
      ConfigError: a batch that the devices do not divide; whatever a step of the user's own raises.
    """
    run = planned.run
    check_devices(run, mesh.size)
    state, frozen = shapes_in_training(planned.state, mesh)
    if run.loop.offload:
        host = jax.tree.map(lambda a: a.sharding.with_memory_kind(HOST), frozen)
        frozen = _placed(frozen, host)
    update = compile_update(
        run.method, mesh, experiment.data.flip, planned.factor(data_shape[1:]),
        run.loop.max_grad_norm, run.loop.offload, planned.codec and planned.codec.blank,
    )  # fmt: skip
    key = jax.eval_shape(lambda: jax.random.key(0))
    kinds = kinds_of(run.method, range(run.loop.num_updates), substeps)(step)
    try:
        resident, raw = _inputs(planned, runs, experiment, mesh, data_shape, substeps, rows)
        traced = update.trace(state, frozen, resident, raw, key, **kinds)
    except Exception as error:
        if not is_own(run.method):
            raise
        raise ConfigError(f"{run.name}: {said(error)}") from error
    return TracedUpdate(traced, state, frozen, (resident, raw), substeps)


def check_update(
    planned: Planned,
    runs: Mapping[str, Planned],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
) -> None:
    """Raises as `trace_update` for updates that a run cannot do.

    One of each kind is traced for a method of the user's own; pdistill's have tests.
    """
    method, loop = planned.run.method, planned.run.loop
    if loop:
        check_devices(planned.run, mesh.size)
    if is_own(method) and planned.trains:
        first = {method.parts(step): step for step in reversed(range(loop.num_updates))}
        for step in sorted(first.values()):
            trace_update(planned, runs, experiment, mesh, data_shape, step)


def shapes_in_training(state: Any, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
    """The loop's state and the frozen fields of a method's state, as shapes with shardings."""
    learning, frozen = take_frozen(_placed(state, param_sharding(state, mesh)))
    scalar = jax.ShapeDtypeStruct((), "int32", sharding=replicated(mesh))
    return TrainState(scalar, scalar, learning), frozen


def _inputs(planned, runs, experiment, mesh, data_shape, substeps, rows):
    """Shapes that the data pipeline gives: the resident data set, and raw batches."""
    loop = planned.run.loop
    image = jax.ShapeDtypeStruct(data_shape, "uint8")
    if planned.codec:
        shape = moments_shape(planned.codec.blank, planned.image_shape, experiment.data.flip)
        image = jax.ShapeDtypeStruct((data_shape[0], *shape), FORMAT)
    arrays = {
        "image": image,
        "label": jax.ShapeDtypeStruct(data_shape[:1], "int32"),
    }
    if told := [r.network.text_widths for r in runs.values() if takes_text(r)]:  # also codecs' data
        arrays |= text_shapes(data_shape[0], *told[0])
    for name, a in rows.items():
        arrays[name] = jax.ShapeDtypeStruct((data_shape[0], *a.shape[1:]), a.dtype)
    orders = ["index"]
    for column in planned.run.method.columns:
        arrays |= column_shapes(column, planned, runs, data_shape[0], experiment.data.flip)
        orders += [] if column.aligned else [f"{column.name}/index"]
    leading = (substeps, loop.batch_size)
    if experiment.data.resident:
        raw = dict.fromkeys(orders, jax.ShapeDtypeStruct(leading, "int32"))
        resident = arrays
    else:
        resident, raw = (
            {},
            {
                name: jax.ShapeDtypeStruct((*leading, *a.shape[1:]), a.dtype)
                for name, a in arrays.items()
            },
        )
    return _placed(resident, replicated(mesh)), _placed(raw, batch_sharding(mesh, leading=1))


def takes_text(planned: Planned) -> bool:
    """Whether a run's network is told prompts."""
    return not planned.makes_codec and planned.network.takes_text


def column_shapes(
    column: Column, planned: Planned, runs: Mapping[str, Planned], num_images: int, flip: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a column's rows, by the names that `Dataset.arrays` has for them."""
    teacher = runs[planned.given["teacher"]].network
    shapes = column.shapes(teacher, num_images, flip)
    return {f"{column.name}/{leaf}": shape for leaf, shape in shapes.items()}


def _placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with a sharding for each, or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
