"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.likelihood import bits_per_dim, log_likelihood
from pdistill.samplers.sampling import check_steps, encode, num_evaluations, sample
from pdistill.samplers.solvers import (
    Ancestral,
    Ddim,
    DpmSolverPP2M,
    Gamma,
    Heun,
    Multistep,
    OneStep,
    Solver,
    Stochastic,
    ddim_step,
    heun_step,
)

SOLVERS = {
    cls.name: cls
    for cls in (Ddim, Ancestral, Heun, DpmSolverPP2M, Stochastic, OneStep, Multistep, Gamma)
}

SETTINGS = {
    Ancestral.name: Ancestral,
    Gamma.name: lambda text: Gamma(float(text)),
    Multistep.name: lambda text: Multistep(tuple(map(float, text.split(",")))),
}


def parse_solver(text: str) -> Solver:
    """A solver by its name in SOLVERS, such as "ddim", with its setting if it takes one.

    "ancestral:medium:0.5" has a variance, "gamma:0.5" a gamma, "multistep:-20,-3,0" log-SNRs.

    Raises:
      ValueError: an unknown name or setting.
    """
    name, _, setting = text.partition(":")
    if name not in SOLVERS or (setting and name not in SETTINGS):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {text!r}")
    if not setting:
        return SOLVERS[name]()
    try:
        return SETTINGS[name](setting)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


__all__ = [
    "SOLVERS",
    "Ancestral",
    "Ddim",
    "DpmSolverPP2M",
    "Gamma",
    "Heun",
    "Multistep",
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
