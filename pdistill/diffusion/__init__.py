"""Schedules, predictions, losses, guidance and closed-form denoisers. Imports only jax."""

from pdistill.diffusion.denoisers import Denoiser, Gaussian, GaussianMixture
from pdistill.diffusion.guidance import Pair, guide, pair_of
from pdistill.diffusion.losses import WEIGHTINGS, check_weighting, denoising_loss, v_weight
from pdistill.diffusion.predictions import (
    HEADS,
    alpha_sigma,
    angle,
    diffuse,
    eps_from_v,
    eps_from_x,
    expand,
    output_channels,
    v_from_eps,
    v_from_output,
    v_from_x,
    v_target,
    x_from_eps,
    x_from_output,
    x_from_v,
)
from pdistill.diffusion.schedules import (
    CosineSchedule,
    DdpmSchedule,
    EdmSchedule,
    LinearBetaSchedule,
    LinearLogsnrSchedule,
    Schedule,
)

__all__ = [
    "HEADS",
    "WEIGHTINGS",
    "CosineSchedule",
    "DdpmSchedule",
    "Denoiser",
    "EdmSchedule",
    "Gaussian",
    "GaussianMixture",
    "LinearBetaSchedule",
    "LinearLogsnrSchedule",
    "Pair",
    "Schedule",
    "alpha_sigma",
    "angle",
    "check_weighting",
    "denoising_loss",
    "diffuse",
    "eps_from_v",
    "eps_from_x",
    "expand",
    "guide",
    "output_channels",
    "pair_of",
    "v_from_eps",
    "v_from_output",
    "v_from_x",
    "v_target",
    "v_weight",
    "x_from_eps",
    "x_from_output",
    "x_from_v",
]
