"""Checks that the parts of a network fit each other."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pdistill import diffusion
from pdistill.diffusion.schedules import SMALL, ends


def check_network(network: Any) -> None:
    """Raises ValueError for a head, shifts or a shape that the network's module cannot have."""
    diffusion.output_channels(network.head, 1)  # raises for an unknown head
    if network.shifts and len(network.shifts) != len(network.resolutions):
        raise ValueError(
            f"shifts must be one for each of the resolutions {network.resolutions}; got "
            f"{network.shifts}"
        )
    if any(network.shifts) and not hasattr(network.schedule, "shifted"):
        raise ValueError(
            "shifts need a schedule that has a shift: the cosine schedule or a rectified flow's"
        )
    if network.resolutions and tuple(network.shape[:2]) != (network.resolutions[-1],) * 2:
        raise ValueError(
            f"resolutions end at {network.resolutions[-1]}, but images are of {network.shape}"
        )


def check_floats(images: Any) -> None:
    """Raises ValueError for images of whole numbers where those in [-1, 1] are meant."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be numbers in [-1, 1], image / 127.5 - 1 of uint8; got {images.dtype}"
        )


def check_variance(network: Any, num_steps: int = 1) -> None:
    """Raises ValueError for a network without learnt variance, or of fewer time steps."""
    if network.head != "eps_variance":
        raise ValueError(
            "the solver iddpm is for networks that have learnt a variance, such as DiT converted "
            f"with --variance; this one predicts {network.head}: take another solver, such as ddim"
        )
    if num_steps > getattr(network.schedule, "num", num_steps):
        raise ValueError(
            f"the network knows {network.schedule.num} time steps; got num_steps={num_steps}"
        )


def check_known(levels: Sequence[float], schedule: diffusion.Schedule) -> None:
    """Raises ValueError for log-SNRs that a network of this schedule has not learnt."""
    low, high = ends(schedule)
    if wrong := [level for level in levels if not low - SMALL <= level <= high + SMALL]:
        raise ValueError(
            f"this model knows log-SNRs from {low:.3g} to {high:.3g}; got {wrong[0]:g}: give others"
        )


def check_late(module: Any) -> None:
    """Raises ValueError for a transformer of which no block would hear the noise level."""
    if module.target and 0 < module.depth <= module.target_blocks:
        raise ValueError(
            f"target_blocks must be fewer than the {module.depth} blocks, of which the others are "
            f"told the noise level; got {module.target_blocks}"
        )


def check_told(module: Any, told: Any) -> None:
    """Raises ValueError for labels or prompts that a network's module does not take."""
    if told.label is not None and not module.num_labels:
        raise ValueError("a label was given to a network without labels (num_labels=0)")
    if told.text is None:
        return
    if not (module.text_pooled or module.text_tokens):
        raise ValueError(
            "a prompt was given to a network without text (text_pooled=0, text_tokens=0)"
        )
    tokens = told.text.tokens
    found = 0 if tokens is None else tokens.shape[-1]
    if module.text_tokens and found != module.text_tokens:
        raise ValueError(
            f"the network takes tokens of {module.text_tokens} numbers; got {found}: give prompts "
            "by the text encoder that it was trained with"
        )


def check_guide(network: Any, guide: Any) -> None:
    """Raises ValueError for a guide of other images or labels, or networks that no guide fits."""
    for either in (network, guide):
        if either.takes_guidance or either.resolutions or hasattr(either.module, "routes"):
            raise ValueError(
                "a network that takes guidance weights as an input, a cascade and the model "
                "of several students neither have a guide nor are one"
            )
    if guide.shape != network.shape:
        raise ValueError(f"its guide makes images of {guide.shape}, it of {network.shape}")
    if guide.num_labels not in (0, network.num_labels):
        raise ValueError(f"its guide takes {guide.num_labels} labels, it {network.num_labels}")
