"""What a run would take, of memory above all, on a mesh that need not be there.

The update of the first round of each method is compiled for virtual CPU devices, with the shardings
of the run; nothing is computed and no data are read. The compiler's figures are those of a CPU:
another one fuses and orders otherwise, and on CPUs bfloat16 takes the memory of float32.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from pdistill.data import load_dataset
from pdistill.experiment.config import ConfigError, ExperimentConfig, as_plain, parse
from pdistill.methods import Round
from pdistill.runtime.costs import collective_bytes, flops
from pdistill.runtime.mesh import batch_sharding, make_mesh, param_sharding, replicated
from pdistill.training import TrainState, compile_update, count

HOST = "pinned_host"  # JAX's name of the host's memory that a device reads from
MEMORIES = (16, 24, 32, 40, 80, 95, 141, 192)  # GB of devices there are, from TPU v5e up


@dataclasses.dataclass(frozen=True)
class Plan:
    """One round's update on a mesh; bytes are of one device.

    Attributes:
      parameters: of the model. state: parameters, averages and moments. frozen: what does not
        learn. data: the data set, if it is kept there, and the batch. activations: the most that
        is alive besides, as the compiler lays it out.
      flops: of all devices. communicated: bytes, see `collective_bytes`.
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
        """The smallest of MEMORIES that holds it."""
        return next((size for size in MEMORIES if self.total <= size * 10**9), None)


def dry_run(
    config: Any, devices: Sequence[int], data_shape: tuple[int, ...] | None = None
) -> dict[int, list[Plan]]:
    """Plans and prints a run, for each number of devices.

    Args:
      config: a ConfigDict, as in configs/; its mesh must fit all of `devices`.
      data_shape: [N, H, W, C] of the data set; None to look at it.

    Raises:
      ConfigError: as `experiment.run`, or there are not enough (virtual) devices.
    """
    experiment = parse(as_plain(config))
    try:
        data_shape = data_shape or load_dataset(experiment.data.name, "train").images.shape
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{error}; --data_shape=N,H,W,C does without the data") from error
    try:
        meshes = {n: _mesh(experiment, n) for n in devices}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rounds = experiment.rounds(tuple(data_shape[1:]))
    firsts = {r.method_name: r for r in reversed(rounds) if r.loop}
    plans = {}
    for n, mesh in meshes.items():
        chosen = [r for r in rounds if r in firsts.values()]
        plans[n] = [plan(r, rounds, experiment, mesh, data_shape) for r in chosen]
        print(table(mesh, plans[n]), flush=True)
    return plans


def _mesh(experiment: ExperimentConfig, n: int) -> Mesh:
    if n > len(jax.devices()):
        raise ValueError(f"{n} devices, of which JAX has made {len(jax.devices())}")
    return make_mesh(experiment.mesh.data, experiment.mesh.fsdp, jax.devices()[:n])


def plan(
    r: Round,
    rounds: Sequence[Round],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
) -> Plan:
    """Compiles one update of a round of the experiment."""
    traced, state, inputs = trace(r, rounds, experiment, mesh, data_shape)
    # Quick machine code: it is never run.
    compiled = traced.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
    memory = compiled.memory_analysis()
    return Plan(
        name=r.name,
        parameters=count(r.method.diffuser.param_shapes(r.noise_shape)),
        state=device_bytes(state.learners),
        frozen=device_bytes(state.frozen),
        data=device_bytes(inputs),
        activations=memory.temp_size_in_bytes
        + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        flops=flops(traced.jaxpr.jaxpr),
        communicated=collective_bytes(compiled.as_text()),
    )


def trace(
    r: Round,
    rounds: Sequence[Round],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
    due: bool = True,
) -> tuple[jax.stages.Traced, TrainState, Any]:
    """One update of a round, traced, and the shapes of its state and of what the data give.

    With `due`, one that has what not all updates have, see `training.Steppable`.
    """
    if r.loop.batch_size % mesh.size:
        raise ConfigError(f"{r.name}: batch_size {r.loop.batch_size} for {mesh.size} devices")
    key = jax.eval_shape(lambda: jax.random.key(0))
    by_name = {other.name: other for other in rounds}
    parents = [name and by_name[name] for name in r.parents]
    params = [p and p.method.diffuser.param_shapes(p.noise_shape) for p in parents]
    shapes = jax.eval_shape(r.init, key, *params)
    state = _placed(shapes, param_sharding(shapes, mesh))
    if r.pairs:
        pairs = _placed(r.pairs.shapes(r.image_shape), replicated(mesh))
        state = state.replace(frozen=state.frozen | {"pairs": pairs})
    if r.loop.offload:
        host = jax.tree.map(lambda a: a.sharding.with_memory_kind(HOST), state.frozen)
        state = state.replace(frozen=_placed(state.frozen, host))
    resident, raw = _inputs(r, experiment, mesh, data_shape)
    flags = {"due": due} if r.loop.substeps == 1 and hasattr(r.method, "due") else {}

    update = compile_update(
        r.method, mesh, experiment.data.flip, data_shape[1] // r.image_shape[0],
        r.loop.max_grad_norm, r.loop.offload,
    )  # fmt: skip
    traced = update.trace(state.replace(frozen={}), state.frozen, resident, raw, key, **flags)
    return traced, state, (resident, raw)


def _inputs(r: Round, experiment: ExperimentConfig, mesh: Mesh, data_shape: tuple[int, ...]):
    """Shapes of what the data pipeline gives: the resident data set, and one raw batch."""
    arrays = {"image": (data_shape[1:], jnp.uint8), "label": ((), jnp.int32)}
    if r.latents:
        pair = (1 + experiment.data.flip, *r.noise_shape)
        arrays["latent"] = (pair, jnp.float16)

    def of(leading: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((*leading, *shape), dtype)
            for name, (shape, dtype) in arrays.items()
        }

    batch = (1, r.loop.batch_size)
    if experiment.data.resident:
        resident, raw = of((data_shape[0],)), {"index": jax.ShapeDtypeStruct(batch, jnp.int32)}
    else:
        resident, raw = {}, of(batch)
    return _placed(resident, replicated(mesh)), _placed(raw, batch_sharding(mesh, leading=1))


def _placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with a sharding for each, or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )


def device_bytes(tree: Any) -> int:
    """Of the part of a tree of placed shapes that one device holds."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )


def table(mesh: Mesh, plans: Sequence[Plan]) -> str:
    """Plans as lines of text."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [f"\n{mesh.size} devices ({axes}); GB a device, and an update of all devices"]
    heads = ("state", "frozen", "data", "activations", "total", "fits", "TFLOP", "communicated")
    lines.append(f"{'':<16} {'parameters':>13} " + " ".join(f"{head:>12}" for head in heads))
    for p in plans:
        sizes = (p.state, p.frozen, p.data, p.activations, p.total)
        cells = [f"{size / 1e9:.3f}" for size in sizes]
        cells += [f"in {p.fits} GB" if p.fits else "nowhere"]
        cells += [f"{p.flops / 1e12:.3f}", f"{p.communicated / 1e9:.3f} GB"]
        lines.append(
            f"{p.name:<16} {p.parameters:>13,} " + " ".join(f"{cell:>12}" for cell in cells)
        )
    return "\n".join(lines)
