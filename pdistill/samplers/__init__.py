"""Samplers for any denoiser. Imports only jax and `pdistill.diffusion`."""

from pdistill.samplers.sampling import encode, num_evaluations, sample
from pdistill.samplers.solvers import Ancestral, Ddim, DpmSolverPP2M, Heun, Solver, ddim_step

SOLVERS = {cls.name: cls for cls in (Ddim, Ancestral, Heun, DpmSolverPP2M)}

__all__ = [
    "SOLVERS",
    "Ancestral",
    "Ddim",
    "DpmSolverPP2M",
    "Heun",
    "Solver",
    "ddim_step",
    "encode",
    "num_evaluations",
    "sample",
]
