"""Reads a pipeline's and a scheduler's config in a folder of diffusers.

Most of diffusers' schedulers are solvers for networks on DDPM's noise levels, and differ in their
defaults and in whether they clip. Others mean another network: a consistency model's, EDM's, VE's
or a flow's output at another kind of time.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdistill.interop.conversion import count, read_json
from pdistill.interop.weights import ConversionError
from pdistill.networks.published.conventions import Ddpm

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "DiTPipeline", "LDMPipeline")
CODECS = ("vae", "vqvae")  # parts of a pipeline whose network makes latents
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
HEADS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
# The schedulers on DDPM's noise levels, with their defaults; clip_sample is of those that clip.
DDPM = {"beta_start": 1e-4, "beta_end": 0.02}
KARRAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "DDIMParallelScheduler": DDPM | {"clip_sample": True},
    "DDIMScheduler": DDPM | {"clip_sample": True},
    "DDPMParallelScheduler": DDPM | {"clip_sample": True},
    "DDPMScheduler": DDPM | {"clip_sample": True},
    "DEISMultistepScheduler": DDPM,
    "DPMSolverMultistepScheduler": DDPM,
    "DPMSolverSDEScheduler": KARRAS,
    "DPMSolverSinglestepScheduler": DDPM,
    "EulerAncestralDiscreteScheduler": DDPM,
    "EulerDiscreteScheduler": DDPM,
    "HeunDiscreteScheduler": KARRAS | {"clip_sample": False},
    "KDPM2AncestralDiscreteScheduler": KARRAS,
    "KDPM2DiscreteScheduler": KARRAS,
    "LMSDiscreteScheduler": DDPM,
    "PNDMScheduler": DDPM,
    "SASolverScheduler": DDPM,
    "UniPCMultistepScheduler": DDPM,
}
# Other values change what the network is given, or each sample in a way that no solver here does.
SCHEDULER_IS = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "predict_epsilon": True,  # an old name of prediction_type
    "thresholding": False,
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
}


def read_scheduler(path: Path, index: Mapping[str, Any]) -> tuple[Ddpm, float | None]:
    """Reads a scheduler's config.

    Args:
      index: the pipeline's model_index.json, which may name the scheduler's class too.

    Returns:
      The network's convention, and the largest |x_hat|, None if it does not clip.

    Raises:
      ConversionError: the scheduler is unknown, or has a value that is not supported.
    """
    config = read_json(path)
    name = config.get("_class_name")
    _, named = index.get("scheduler", (None, name))
    if name != named:
        raise ConversionError(
            f"{path} is of {name}, and model_index.json names {named}; make them the same"
        )
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ConversionError(
            f"{path} is of {name or 'no class (_class_name)'}; a network for it cannot be "
            f"translated, only for {', '.join(SCHEDULERS)}"
        )
    check(config, SCHEDULER_IS, path)
    config = SCHEDULERS[name] | config
    betas = config.get("beta_schedule", "linear")
    head = config.get("prediction_type", "epsilon")
    if betas not in list(BETAS) or head not in list(HEADS):
        raise ConversionError(
            f"{path}: beta_schedule must be one of {', '.join(BETAS)} and prediction_type one of "
            f"{', '.join(HEADS)}; they are {betas!r} and {head!r}"
        )
    convention = Ddpm(
        HEADS[head],
        BETAS[betas],
        float(config["beta_start"]),
        float(config["beta_end"]),
        count(config.get("num_train_timesteps", 1000), f"{path}: num_train_timesteps"),
    )
    clips = "clip_sample" in SCHEDULERS[name] and config["clip_sample"]
    largest = float(config.get("clip_sample_range", 1.0))
    if clips and not 0 < largest < math.inf:
        raise ConversionError(f"{path}: clip_sample_range must be positive; it is {largest}")
    return convention, largest if clips else None


def read_index(folder: Path) -> dict[str, Any]:
    """Reads a pipeline's model_index.json; {} if the folder has none.

    Raises:
      ConversionError: the pipeline is not one of `PIPELINES`.
    """
    path = folder / "model_index.json"
    if not path.exists():
        return {}
    index = read_json(path)
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ConversionError(f"{path} is of {name}, not one of {', '.join(PIPELINES)}")
    return index


def check(config: Mapping[str, Any], supported: Mapping[str, Any], path: Path) -> None:
    """Raises ConversionError unless all values are the supported ones."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise ConversionError(f"{path}: {key}={config[key]!r} is not supported, {value!r} is")
