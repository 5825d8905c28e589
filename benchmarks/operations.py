"""Counts of floating-point operations in an update of a run."""

import collections
from collections.abc import Mapping

import jax

from pdistill.experiment.config import ExperimentConfig
from pdistill.experiment.plan import Planned
from pdistill.experiment.trace import trace_update
from pdistill.runtime.costs import flops
from pdistill.runtime.mesh import make_mesh

UPDATES = 1000  # that the mean is over


def mean_flops(
    planned: Planned,
    runs: Mapping[str, Planned],
    experiment: ExperimentConfig,
    data_shape: tuple[int, ...],
) -> float:
    """Operations of products and convolutions, in the mean over many updates.

    A loss that not all updates have, such as R1 or the generator's of distribution matching, counts
    as often as it comes.
    """
    mesh = make_mesh(1, 1, jax.devices()[:1])
    parts = [planned.run.method.parts(step) for step in range(UPDATES)]

    def of(step: int) -> int:
        update = trace_update(planned, runs, experiment, mesh, data_shape, step)
        return flops(update.traced.jaxpr.jaxpr)

    counts = collections.Counter(parts)
    return sum(n * of(parts.index(kind)) for kind, n in counts.items()) / UPDATES
