"""Solvers and step counts as text, as in configs, model cards and command lines."""

from pdistill.samplers.edm import Edm
from pdistill.samplers.improved_ddpm import ImprovedDdpm
from pdistill.samplers.maruyama import EulerMaruyama
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
)

SOLVERS = {
    cls.name: cls
    for cls in (
        *(Ddim, Ancestral, Heun, Edm, DpmSolverPP2M, EulerMaruyama),
        *(ImprovedDdpm, Stochastic, OneStep, Multistep, Gamma, Cascade),
    )
}

SETTINGS = {
    Ancestral.name: Ancestral,
    Edm.name: lambda text: Edm(*map(float, text.split(",", 3))),
    EulerMaruyama.name: lambda text: EulerMaruyama(float(text)),
    Gamma.name: lambda text: Gamma(float(text)),
    Multistep.name: lambda text: Multistep(tuple(map(float, text.split(",")))),
    Cascade.name: lambda text: _parse_cascade(*text.partition(":")),
}


def parse_solver(text: str | Solver | Cascade) -> Solver | Cascade:
    """Builds a solver from its name in SOLVERS, such as "ddim", and its setting if it takes one.

    "ancestral:medium:0.5" sets the variance, "edm:40,0.05,50,1.003" the churn, its range of sigma
    and its noise (the last may be left out), "euler_maruyama:0.04" the length of the last step,
    "gamma:0.5" gamma, "multistep:-20,-3,0" the log-SNRs, "cascade:heun:0.1" the solver of each
    resolution and the noise on its condition. A solver stays what it is.

    Raises:
      ValueError: the name or the setting is unknown.
    """
    if isinstance(text, Solver | Cascade):
        return text
    name, _, setting = str(text).partition(":")
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
    several = isinstance(num_steps, tuple | list)
    return "+".join(map(str, num_steps)) if several else int(num_steps)
