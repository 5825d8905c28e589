"""Samplers for any denoiser. They need no network's code: jax, and `pdistill.diffusion`."""

from pdistill.samplers.adaptive import integrate
from pdistill.samplers.cascade import Level, LowRes, sample_cascade, with_noise
from pdistill.samplers.counts import check_steps, num_evaluations
from pdistill.samplers.edm import Edm
from pdistill.samplers.improved_ddpm import ImprovedDdpm
from pdistill.samplers.likelihood import bits_per_dim, log_likelihood
from pdistill.samplers.maruyama import EulerMaruyama
from pdistill.samplers.names import SOLVERS, format_steps, parse_solver, parse_steps
from pdistill.samplers.sampling import encode, sample
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

__all__ = [
    "SOLVERS",
    "Ancestral",
    "Cascade",
    "Ddim",
    "DpmSolverPP2M",
    "Edm",
    "EulerMaruyama",
    "Gamma",
    "Heun",
    "ImprovedDdpm",
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
    "integrate",
    "log_likelihood",
    "num_evaluations",
    "parse_solver",
    "parse_steps",
    "sample",
    "sample_cascade",
    "with_noise",
]
