"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.sampling import check_steps, encode, num_evaluations, sample
from pdistill.samplers.solvers import (
    Ancestral,
    Ddim,
    DpmSolverPP2M,
    Heun,
    OneStep,
    Solver,
    Stochastic,
    ddim_step,
)

SOLVERS = {cls.name: cls for cls in (Ddim, Ancestral, Heun, DpmSolverPP2M, Stochastic, OneStep)}


def parse_solver(text: str) -> Solver:
    """A solver by its name in SOLVERS, such as "ddim"; "ancestral:medium:0.5" has a variance.

    Raises:
      ValueError: an unknown name or variance.
    """
    name, _, variance = text.partition(":")
    if name not in SOLVERS or (variance and name != "ancestral"):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {text!r}")
    return Ancestral(variance) if variance else SOLVERS[name]()


__all__ = [
    "SOLVERS",
    "Ancestral",
    "Ddim",
    "DpmSolverPP2M",
    "Heun",
    "OneStep",
    "Solver",
    "Stochastic",
    "check_steps",
    "ddim_step",
    "encode",
    "num_evaluations",
    "parse_solver",
    "sample",
]
