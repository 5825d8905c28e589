"""The time and the memory that a run will take, told before its first update."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from pdistill.experiment.config import ExperimentConfig
from pdistill.experiment.dry_run import cost_of
from pdistill.experiment.plan import Planned, first_of_each_method
from pdistill.experiment.trace import trace_update
from pdistill.networks import Network
from pdistill.runtime import compilations
from pdistill.runtime.terminal import conclude, update

TRIALS = 3


def tell_estimate(
    ahead: Sequence[Planned],
    runs: Mapping[str, Planned],
    experiment: ExperimentConfig,
    mesh: Mesh,
    data_shape: tuple[int, ...],
    rows: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Says how many minutes the runs `ahead` will train and sample, then in how much memory.

    Operations are counted, and the rate is measured: a network's own forward pass on one device;
    nothing is said where there are codecs only. Gradients run at other rates, and metrics and
    compilation are left out, so that the time may be wrong by a factor of two. Memory is the
    compiler's, as in the dry run, but of the programs that the runs will take from here.

    Args:
      ahead: runs that train, of all `runs`. data_shape: [N, H, W, C]. rows: as of `trace_update`.
    """
    sampled = next((p for p in ahead if not p.makes_codec), None)
    if sampled is None:
        return
    update(f"{'estimate':<16} counts operations and measures their rate")
    first = first_of_each_method({planned.name: planned for planned in ahead})
    updates = {
        type(p.run.method): trace_update(
            p, runs, experiment, mesh, data_shape, substeps=p.run.loop.on(mesh).substeps, rows=rows
        )
        for p in first
    }
    training = sum(updates[type(p.run.method)].flops * p.run.loop.num_updates for p in ahead)
    num = experiment.evaluation.num_samples or data_shape[0]
    sampling = sum(num * n * p.network.flops() for p in ahead for n in _evaluations(p))
    batch = max(sampled.run.loop.batch_size // mesh.size, 1)
    with compilations.named("estimate"):
        rate = mesh.size * _rate(sampled.network, batch)
    conclude(
        f"{'estimate':<16} {_about(training / rate)} to train and {_about(sampling / rate)} to "
        "sample, within a factor of two, and what compiles before"
    )
    memory = 0
    for planned in first:
        with compilations.named(planned.name):
            memory = max(memory, cost_of(planned, updates[type(planned.run.method)]).total)
    conclude(f"{'estimate':<16} {memory / 1e9:.2g} GB of a device's memory")


def _evaluations(planned: Planned) -> list[int]:
    """Evaluations of its network for a sample, at each count of steps that it is measured at."""
    return [sum(n) if isinstance(n, tuple) else n for n in planned.measured_at]


def _rate(network: Network, batch: int) -> float:
    """Operations a second that one device makes in forward passes of a batch."""
    shape = network.sizes[0]
    # Zeros, whose products take as long as others: to draw parameters is a program of its own.
    network = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), network.shapes)
    z, logsnr = jnp.zeros((batch, *shape)), jnp.zeros(batch)

    @jax.jit
    def forward(network: Network, z: Array, logsnr: Array) -> Array:
        return network.v(z, logsnr)

    seconds = []
    for _ in range(1 + TRIALS):  # the first compiles
        before = time.monotonic()
        jax.block_until_ready(forward(network, z, logsnr))
        seconds.append(time.monotonic() - before)
    return batch * network.flops(shape) / min(seconds)


def _about(seconds: float) -> str:
    """A duration in words: "about 150 seconds", "about 14 minutes", "about 5 hours"."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 3 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} seconds"
