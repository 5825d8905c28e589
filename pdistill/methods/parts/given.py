"""Checks of the networks that a method is given."""

from pdistill.networks import Network
from pdistill.samplers import parse_solver


def check_given(
    network: Network,
    role: str,
    *,
    guided: bool = False,
    one_step: bool = False,
    cascade: bool = False,
) -> None:
    """Raises ValueError for a network that a method cannot start from.

    Args:
      role: its name in the config.
      guided: whether the method can start from a network that takes guidance weights.
      one_step: whether it can start from a generator that knows a few noise levels only.
      cascade: whether it can start from a network of several resolutions.
    """
    kind = parse_solver(network.sampler).model if network.sampler else "denoiser"
    if hasattr(network.module, "routes"):
        raise ValueError(f"{role} is the model of several students; start from one of them")
    if network.enlarged > 1:
        raise ValueError(f"{role} is a model with enlarged samples; start from the model itself")
    if network.takes_guidance and not guided:
        raise ValueError(f"{role} takes guidance weights as an input, which this method does not")
    if kind == "cascade" and not cascade:
        raise ValueError(f"{role} is a cascade, which this method cannot start from")
    if kind in ("one_step", "multistep") and not one_step:
        raise ValueError(
            f"{role} is a generator that knows a few noise levels only, but this method needs a "
            "denoiser at every noise level"
        )


def jumps(network: Network) -> bool:
    """Whether a network is sampled by jumps; what learns from a map may only keep its input."""
    return bool(network.sampler) and parse_solver(network.sampler).jumps


def check_guidable(network: Network, role: str) -> None:
    """Raises ValueError unless a network can be guided."""
    towards = network.num_labels or network.takes_text or network.guide
    if network.guidance is None or not towards:
        raise ValueError(
            f"{role} cannot be guided: train it with labels or prompts and label_dropout, import a "
            "teacher that was, or give it a guide"
        )
