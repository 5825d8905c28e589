"""The dry run: what a run would take, of memory above all, on a mesh that need not be there.

The update of the first run of each method is compiled for virtual CPU devices, with the shardings
of the run; nothing is computed and no data are read. The compiler's figures are those of a CPU:
another one fuses and orders otherwise, and on CPUs bfloat16 takes the memory of float32.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from pdistill.data import Dataset, load_dataset
from pdistill.experiment.config import ConfigError, ExperimentConfig, as_plain, parse
from pdistill.experiment.directory import check_seed
from pdistill.experiment.plan import Planned, first_of_each_method, plan
from pdistill.experiment.text import plan_text
from pdistill.experiment.trace import HOST, TracedUpdate, check_update, trace_update
from pdistill.runtime.costs import collective_bytes
from pdistill.runtime.mesh import make_mesh
from pdistill.training import count

MEMORIES = (16, 24, 32, 40, 80, 95, 141, 192)  # GB of devices there are, from TPU v5e up


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of one run's update on a mesh; bytes are of one device.

    Attributes:
      parameters: number in the model. state: parameters, averages and moments. frozen: networks
        that do not learn. data: the data set, if it is kept there, and the batch. activations: the
        most that is alive besides, as the compiler lays it out.
      flops: sum over all devices. communicated: bytes, see `collective_bytes`.
    """

    name: str
    parameters: int
    state: int
    frozen: int
    data: int
    activations: int
    flops: int
    communicated: int

    @property
    def total(self) -> int:
        return self.state + self.frozen + self.data + self.activations

    @property
    def fits(self) -> int | None:
        """Smallest of MEMORIES that holds it, or None."""
        return next((size for size in MEMORIES if self.total <= size * 10**9), None)


def dry_run(
    config: Any, devices: Sequence[int], data_shape: tuple[int, ...] | None = None
) -> dict[int, list[Cost]]:
    """Prints the costs of a run, for each number of devices.

    Args:
      config: a ConfigDict, as in configs/; its mesh must fit all of `devices`.
      data_shape: [N, H, W, C] of the data set, which is elsewhere, as the text encoder is; None to
        look at both.

    Raises:
      ConfigError: as `experiment.run`, or there are not enough (virtual) devices; before anything
        compiles.
    """
    experiment = parse(as_plain(config))
    check_seed(experiment.seed)
    data = None if data_shape else _data(experiment.data.name)
    data_shape = data_shape or data.images.shape
    try:
        meshes = {n: _mesh(experiment, n) for n in devices}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    runs = plan(experiment, tuple(data_shape[1:]))
    plan_text(experiment, runs, data)
    costs = {}
    for mesh in meshes.values():
        for planned in runs.values():
            check_update(planned, runs, experiment, mesh, tuple(data_shape))
    for n, mesh in meshes.items():
        costs[n] = [
            cost(planned, runs, experiment, mesh, data_shape)
            for planned in first_of_each_method(runs)
        ]
        print(table(mesh, costs[n]), flush=True)
    return costs


def _data(name: str) -> Dataset:
    try:
        return load_dataset(name, in_memory=False)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{error}; --data_shape=N,H,W,C does without the data") from error


def _mesh(experiment: ExperimentConfig, n: int) -> Mesh:
    if n > len(jax.devices()):
        raise ValueError(f"{n} devices, of which JAX has made {len(jax.devices())}")
    return make_mesh(experiment.mesh.data, experiment.mesh.fsdp, jax.devices()[:n])


def cost(
    planned: Planned,
    runs: Mapping[str, Planned],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
) -> Cost:
    """Costs of the first update of a run, which has all its parts but for lazy ones."""
    update = trace_update(planned, runs, experiment, mesh, data_shape)
    # Quick machine code: it is never run.
    return cost_of(planned, update, {"xla_backend_optimization_level": 0})


def cost_of(planned: Planned, update: TracedUpdate, options: dict[str, Any] | None = None) -> Cost:
    """Compiles updates, with XLA's `options` or as training does, for the costs of one of them."""
    compiled = update.traced.lower().compile(compiler_options=options)
    memory = compiled.memory_analysis()
    return Cost(
        name=planned.name,
        parameters=count(planned.network.params),
        state=device_bytes(update.state.method),
        frozen=device_bytes(update.frozen),
        data=device_bytes(update.data),
        activations=memory.temp_size_in_bytes
        + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        flops=update.flops,
        communicated=collective_bytes(compiled.as_text()) // update.substeps,
    )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )


def table(mesh: Mesh, costs: Sequence[Cost]) -> str:
    """Costs as lines of text."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [f"\n{mesh.size} devices ({axes}); GB a device, and an update of all devices"]
    heads = ("state", "frozen", "data", "activations", "total", "fits", "TFLOP", "communicated")
    lines.append(f"{'':<16} {'parameters':>13} " + " ".join(f"{head:>12}" for head in heads))
    for p in costs:
        sizes = (p.state, p.frozen, p.data, p.activations, p.total)
        cells = [f"{size / 1e9:.3f}" for size in sizes]
        cells += [f"in {p.fits} GB" if p.fits else "nowhere"]
        cells += [f"{p.flops / 1e12:.3f}", f"{p.communicated / 1e9:.3f} GB"]
        lines.append(
            f"{p.name:<16} {p.parameters:>13,} " + " ".join(f"{cell:>12}" for cell in cells)
        )
    return "\n".join(lines)
