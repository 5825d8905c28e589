"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.cascade import Level, LowRes, sample_cascade, with_noise
from pdistill.samplers.likelihood import bits_per_dim, log_likelihood
from pdistill.samplers.sampling import check_steps, encode, num_evaluations, sample
from pdistill.samplers.solvers import (
    Ancestral,
    Cascade,
    Ddim,
    DpmSolverPP2M,
    Gamma,
    Heun,
    Multistep,
    OneStep,
    Solver,
    Steps,
    Stochastic,
    ddim_step,
    heun_step,
)

SOLVERS = {
    cls.name: cls
    for cls in (
        *(Ddim, Ancestral, Heun, DpmSolverPP2M, Stochastic),
        *(OneStep, Multistep, Gamma, Cascade),
    )
}

SETTINGS = {
    Ancestral.name: Ancestral,
    Gamma.name: lambda text: Gamma(float(text)),
    Multistep.name: lambda text: Multistep(tuple(map(float, text.split(",")))),
    Cascade.name: lambda text: _parse_cascade(*text.partition(":")),
}


def parse_solver(text: str) -> Solver | Cascade:
    """Builds a solver from its name in SOLVERS, such as "ddim", and its setting if it takes one.

    "ancestral:medium:0.5" sets the variance, "gamma:0.5" gamma, "multistep:-20,-3,0" the log-SNRs,
    "cascade:heun:0.1" the solver of each resolution and the noise on its condition.

    Raises:
      ValueError: the name or the setting is unknown.
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


def _parse_cascade(solver: str, _: str, noise: str) -> Cascade:
    return Cascade(parse_solver(solver), float(noise or 0))


def parse_steps(text: str) -> Steps:
    """Reads a count of steps, 8 from "8", or a cascade's, (8, 4, 2) from "8+4+2".

    Raises:
      ValueError: the text is neither.
    """
    counts = tuple(map(int, text.split("+")))
    return counts if len(counts) > 1 else counts[0]


def format_steps(num_steps: Steps) -> int | str:
    """Writes steps as `parse_steps` reads them: a count as it is, (8, 4, 2) as "8+4+2"."""
    return num_steps if isinstance(num_steps, int) else "+".join(map(str, num_steps))


__all__ = [
    "SOLVERS",
    "Ancestral",
    "Cascade",
    "Ddim",
    "DpmSolverPP2M",
    "Gamma",
    "Heun",
    "Level",
    "LowRes",
    "Multistep",
    "OneStep",
    "Solver",
    "Steps",
    "Stochastic",
    "bits_per_dim",
    "check_steps",
    "ddim_step",
    "encode",
    "format_steps",
    "heun_step",
    "log_likelihood",
    "num_evaluations",
    "parse_solver",
    "parse_steps",
    "sample",
    "sample_cascade",
    "with_noise",
]
