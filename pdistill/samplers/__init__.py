"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.likelihood import bits_per_dim, log_likelihood
from pdistill.samplers.sampling import check_steps, encode, num_evaluations, sample
from pdistill.samplers.solvers import (
    Ancestral,
    Ddim,
    DpmSolverPP2M,
    Gamma,
    Heun,
    OneStep,
    Solver,
    Stochastic,
    ddim_step,
    heun_step,
)

SOLVERS = {
    cls.name: cls for cls in (Ddim, Ancestral, Heun, DpmSolverPP2M, Stochastic, OneStep, Gamma)
}


def parse_solver(text: str) -> Solver:
    """A solver by its name in SOLVERS, such as "ddim".

    "ancestral:medium:0.5" has a variance, and "gamma:0.5" a gamma.

    Raises:
      ValueError: an unknown name, variance or gamma.
    """
    name, _, setting = text.partition(":")
    if name not in SOLVERS or (setting and name not in ("ancestral", "gamma")):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {text!r}")
    if not setting:
        return SOLVERS[name]()
    return Ancestral(setting) if name == "ancestral" else Gamma(float(setting))


__all__ = [
    "SOLVERS",
    "Ancestral",
    "Ddim",
    "DpmSolverPP2M",
    "Gamma",
    "Heun",
    "OneStep",
    "Solver",
    "Stochastic",
    "bits_per_dim",
    "check_steps",
    "ddim_step",
    "encode",
    "heun_step",
    "log_likelihood",
    "num_evaluations",
    "parse_solver",
    "sample",
]
