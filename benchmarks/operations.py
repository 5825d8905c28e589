"""How many floating-point operations an update of a round takes."""

import dataclasses
from collections.abc import Sequence

import jax

from pdistill.experiment.config import ExperimentConfig
from pdistill.experiment.plan import trace
from pdistill.methods import Round
from pdistill.runtime.costs import flops
from pdistill.runtime.mesh import make_mesh


def mean_flops(
    r: Round, rounds: Sequence[Round], experiment: ExperimentConfig, data_shape: tuple[int, ...]
) -> float:
    """Of products and convolutions, in the mean over many updates.

    What not all updates have, R1 and the generator's updates of distribution matching, counts as
    often as it comes.
    """
    mesh = make_mesh(1, 1, jax.devices()[:1])

    def of(r: Round, due: bool = True) -> int:
        return flops(trace(r, rounds, experiment, mesh, data_shape, due)[0].jaxpr.jaxpr)

    method, whole = r.method, of(r)
    every = whole
    if hasattr(method, "due"):
        due, least = [method.due(step) for step in range(1000)], of(r, False)
        every = least + (whole - least) * sum(due) / len(due)
    adversary = getattr(method, "adversary", None)
    if adversary and adversary.r1:
        without = dataclasses.replace(method, adversary=dataclasses.replace(adversary, r1=0.0))
        r1 = whole - of(dataclasses.replace(r, method=without))
        every -= r1 * (1 - 1 / adversary.r1_interval)
    return every
