"""Networks by name: from plain data, as in configs and model.json, and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from pdistill.networks.dit import DiT
from pdistill.networks.published.diffusers_dit import DiffusersDiT
from pdistill.networks.published.diffusers_unet import DiffusersUNet
from pdistill.networks.published.edm_unet import DhariwalUNet, SongUNet
from pdistill.networks.routed import Routed
from pdistill.networks.unet import UNet

NETWORKS = {
    "dit": DiT,
    "unet": UNet,
    "routed": Routed,
    "dhariwal_unet": DhariwalUNet,
    "diffusers_dit": DiffusersDiT,
    "diffusers_unet": DiffusersUNet,
    "song_unet": SongUNet,
}

LARGEST = 10**6  # of the numbers among a network's arguments
MOST_BLOCKS = 1_000  # more are never built: tracing them alone takes minutes


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network from plain data: its name in NETWORKS and its fields, as in model.json.

    Raises:
      ValueError: an unknown name or field, with the known ones; a number that cannot be meant.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {name!r}")
    return NETWORKS[name](**_fields(NETWORKS[name], name, arguments))


def _fields(cls: type[nn.Module], name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a network from plain data; raises as `build_network`."""
    known = [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"network {name!r} has no {unknown[0]!r}; it has {', '.join(known)}")
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    for key, value in arguments.items():
        if problem := _problem(key, kinds[key], value):
            got = f"{value:,}" if type(value) is int else repr(value)
            raise ValueError(f"network {name!r}: {key} must be {problem}; got {got}")
    if (blocks := num_blocks(arguments)) > MOST_BLOCKS:
        raise ValueError(f"network {name!r} has {blocks:,} blocks; it can have {MOST_BLOCKS:,}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if fields.get("dtype") is not None:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    if isinstance(fields.get("network"), Mapping):
        fields["network"] = build_network(**fields["network"])
    return fields


def _problem(key: str, kind: Any, value: Any) -> str:
    """Says what a number or a flag should be and is not; "" if it is right."""
    if kind is bool and type(value) is not bool:
        return "true or false"
    if kind is int and type(value) is not int:
        return "a whole number"
    if kind is int and value > LARGEST:
        return f"at most {LARGEST:,}"
    if kind is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            return "a finite number"
        if key == "epsilon" and value < 0:
            return "at least 0"
        if key == "dropout" and not 0 <= value < 1:
            return "in [0, 1)"
    return ""


def num_blocks(arguments: Mapping[str, Any]) -> int:
    """Counts the blocks that a network with these arguments has at least, over all its levels."""
    levels = [
        len(value)
        for key in ("channels", "multipliers")
        if isinstance(value := arguments.get(key), Sequence)
    ]
    return arguments.get("depth", 1) * arguments.get("blocks", 1) * math.prod(levels)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """The inverse of `build_network`: {"name": ..., "arguments": ...}, ready for JSON."""
    names = [name for name, cls in NETWORKS.items() if type(network) is cls]
    if not names:
        raise ValueError(f"{type(network).__name__} is not one of {', '.join(NETWORKS)}")
    fields = [f.name for f in dataclasses.fields(network) if f.name not in ("parent", "name")]
    arguments = {f: getattr(network, f) for f in fields}
    if arguments.get("dtype") is not None:
        arguments["dtype"] = jnp.dtype(arguments["dtype"]).name
    if "network" in arguments:
        arguments["network"] = describe_network(arguments["network"])
    return {"name": names[0], "arguments": arguments}


def change_network(network: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The same network, of any class, with other arguments; raises as `build_network`."""
    cls = type(network)
    names = {known: name for name, known in NETWORKS.items()}
    return network.clone(**_fields(cls, names.get(cls, cls.__name__), arguments))
