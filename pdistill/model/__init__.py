"""A model directory: parameters and model.json, and the sampler they make.

model = load("runs/digits/progressive/4")
images = model.sample(jax.random.key(0), num=64)
"""

from pdistill.model.averages import AVERAGES, posthoc_average
from pdistill.model.card import (
    CARD,
    FORMAT,
    SCHEDULES,
    ModelError,
    build_blank,
    build_schedule,
    check_card,
    check_kept,
    check_shape,
    describe,
    describe_sampling,
    find,
    noise_shape,
    num_steps,
    read_card,
    versions,
)
from pdistill.model.codecs import load_codec, save_codec, standardised
from pdistill.model.model import Model
from pdistill.model.sampling import Sampling, SamplingError
from pdistill.model.store import change_card, copy, guided_card, load, save

__all__ = [
    "AVERAGES",
    "CARD",
    "FORMAT",
    "SCHEDULES",
    "Model",
    "ModelError",
    "Sampling",
    "SamplingError",
    "build_blank",
    "build_schedule",
    "change_card",
    "check_card",
    "check_kept",
    "check_shape",
    "copy",
    "describe",
    "describe_sampling",
    "find",
    "guided_card",
    "load",
    "load_codec",
    "noise_shape",
    "num_steps",
    "posthoc_average",
    "read_card",
    "save",
    "save_codec",
    "standardised",
    "versions",
]
