"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.sampling import check_steps, encode, num_evaluations, sample
from pdistill.samplers.solvers import (
    Ancestral,
    Ddim,
    DpmSolverPP2M,
    Heun,
    Multistep,
    OneStep,
    Solver,
    Stochastic,
    ddim_step,
)

SOLVERS = {
    cls.name: cls for cls in (Ddim, Ancestral, Heun, DpmSolverPP2M, Stochastic, OneStep, Multistep)
}


def parse_solver(text: str) -> Solver:
    """A solver by its name in SOLVERS, such as "ddim", with its argument if it takes one.

    "ancestral:medium:0.5" has a variance, "multistep:-20,-3,0" levels of log-SNR.

    Raises:
      ValueError: an unknown name, variance or level.
    """
    name, _, argument = text.partition(":")
    if name == Multistep.name:
        try:
            return Multistep(tuple(float(level) for level in argument.split(",")))
        except ValueError as error:
            raise ValueError(
                f"multistep needs rising log-SNRs, as in -20,-3,0; got {text!r}"
            ) from error
    if name not in SOLVERS or (argument and name != Ancestral.name):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {text!r}")
    return Ancestral(argument) if argument else SOLVERS[name]()


__all__ = [
    "SOLVERS",
    "Ancestral",
    "Ddim",
    "DpmSolverPP2M",
    "Heun",
    "Multistep",
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
