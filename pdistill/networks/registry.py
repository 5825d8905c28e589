"""Networks by name: from plain data, as in configs and model.json, and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from pdistill.networks.codecs import AutoencoderKL, AutoencoderResidual, AutoencoderTiny
from pdistill.networks.dit import DiT
from pdistill.networks.published.diffusers_dit import DiffusersDiT
from pdistill.networks.published.diffusers_unet import DiffusersUNet
from pdistill.networks.published.edm2_unet import Edm2UNet
from pdistill.networks.published.edm_unet import DhariwalUNet, SongUNet
from pdistill.networks.published.sit import SiT
from pdistill.networks.routed import Routed
from pdistill.networks.text import Bert, ClipText
from pdistill.networks.unet import UNet
from pdistill.networks.vision import ClipImage, Dinov2
from pdistill.runtime.own_code import class_named, is_own, name_of

NETWORKS = {
    "dit": DiT,
    "unet": UNet,
    "routed": Routed,
    "dhariwal_unet": DhariwalUNet,
    "diffusers_dit": DiffusersDiT,
    "diffusers_unet": DiffusersUNet,
    "edm2_unet": Edm2UNet,
    "sit": SiT,
    "song_unet": SongUNet,
}

CODECS = {
    "autoencoder_kl": AutoencoderKL,
    "autoencoder_residual": AutoencoderResidual,
    "autoencoder_tiny": AutoencoderTiny,
}

ENCODERS = {"bert": Bert, "clip_text": ClipText}

TOWERS = {"clip_image": ClipImage, "dinov2": Dinov2}  # whose sizes are the published ones

LARGEST = 10**6  # of the numbers among a network's arguments
MOST_BLOCKS = 1_000  # more are never built: tracing them alone takes minutes


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network from plain data: its name in NETWORKS and its fields, as in model.json.

    Args:
      name: or "module:Class" of a Flax module of the user's own, which must be imported.

    Raises:
      ValueError: an unknown name or field, with the known ones; a number that cannot be meant.
    """
    return _build(NETWORKS, "network", name, arguments)


def build_codec(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """An autoencoder from plain data: its name in CODECS and its fields; as `build_network`."""
    return _build(CODECS, "codec", name, arguments)


def build_encoder(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A text encoder's network from plain data: its name in ENCODERS and its fields.

    Raises as `build_network`.
    """
    return _build(ENCODERS, "text encoder", name, arguments)


def _build(
    known: Mapping[str, type[nn.Module]], what: str, name: str, arguments: Mapping[str, Any]
) -> nn.Module:
    cls = known.get(name) or (class_named(name, nn.Module) if ":" in name else None)
    if cls is None:
        raise ValueError(
            f"{what} must be one of {', '.join(known)}, or a Flax module of your own as "
            f"module:Class; got {name!r}"
        )
    return cls(**_fields(cls, f"{what} {name!r}", arguments))


def _fields(cls: type[nn.Module], what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `what` from plain data; raises as `build_network`."""
    known = _own_fields(cls)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"{what} has no {unknown[0]!r}; it has {', '.join(known)}")
    declared, ours = {f.name: f for f in dataclasses.fields(cls)}, not is_own(cls)
    for key, value in arguments.items():
        field = declared[key]
        if not ours and value is field.default:  # such as None
            continue
        if problem := _problem(key, field.type, value, ours):
            got = f"{value:,}" if type(value) is int else repr(value)
            raise ValueError(f"{what}: {key} must be {problem}; got {got}")
    if ours and (blocks := num_blocks(arguments)) > MOST_BLOCKS:
        raise ValueError(f"{what} has {blocks:,} blocks; it can have {MOST_BLOCKS:,}")
    fields = {key: hashable(value) for key, value in arguments.items()}
    if fields.get("dtype") is not None:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    if isinstance(inner := fields.get("network"), Mapping) and {*inner} == {"name", "arguments"}:
        fields["network"] = build_network(**inner)
    return fields


def hashable(value: Any) -> Any:
    """Plain data with tuples for its lists and frozen dictionaries for its dictionaries."""
    if isinstance(value, Mapping):
        return FrozenDict({key: hashable(item) for key, item in value.items()})
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def unfrozen(value: Any) -> Any:
    """A value of a field with plain dictionaries in it, as JSON needs them."""
    if isinstance(value, Mapping):
        return {key: unfrozen(item) for key, item in value.items()}
    return type(value)(map(unfrozen, value)) if type(value) in (list, tuple) else value


def _problem(key: str, kind: Any, value: Any, ours: bool) -> str:
    """Says what a number or a flag should be and is not; "" if it is right.

    Args:
      ours: False for a class of the user's own, whose numbers may mean something else.
    """
    if kind is bool and type(value) is not bool:
        return "true or false"
    if kind is int and type(value) is not int:
        return "a whole number"
    if kind is float and type(value) not in (int, float):
        return "a finite number" if ours else "a number"
    if kind is int and ours and value > LARGEST:
        return f"at most {LARGEST:,}"
    if kind is float and ours:
        if not math.isfinite(value):
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
    listed = sum(sum(arguments.get(key, ())) for key in ("encoder_blocks", "decoder_blocks"))
    return listed or arguments.get("depth", 1) * arguments.get("blocks", 1) * math.prod(levels)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """The inverse of `build_network`, `build_codec` or `build_encoder`, ready for JSON.

    {"name", "arguments"}. ValueError for a class that could not be found by its name.
    """
    known = NETWORKS | CODECS | ENCODERS | TOWERS
    cls = type(network)
    names = [name for name in known if cls is known[name]]
    arguments = {f: unfrozen(getattr(network, f)) for f in _own_fields(cls)}
    if is_own(cls):  # whose defaults, such as functions, need not be plain
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        code = [f for f, a in arguments.items() if callable(a) and a is defaults[f]]
        arguments = {f: a for f, a in arguments.items() if f not in code}
    if arguments.get("dtype") is not None:
        arguments["dtype"] = jnp.dtype(arguments["dtype"]).name
    if isinstance(arguments.get("network"), nn.Module):
        arguments["network"] = describe_network(arguments["network"])
    return {"name": names[0] if names else name_of(cls), "arguments": arguments}


def change_network(network: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The same network, of any class, with other arguments; raises as `build_network`."""
    cls = type(network)
    names = {known: name for name, known in NETWORKS.items()}
    what = f"network {names.get(cls, cls.__name__)!r}"
    return network.clone(**_fields(cls, what, arguments))


def brief(module: nn.Module) -> str:
    """Says a module in a line, with those of its arguments that are not the default ones."""
    arguments = (
        (field.name, getattr(module, field.name))
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name") and getattr(module, field.name) != field.default
    )
    said = (f"{k}={brief(v) if isinstance(v, nn.Module) else repr(v)}" for k, v in arguments)
    return f"{type(module).__name__}({', '.join(said)})"


def _own_fields(cls: type[nn.Module]) -> list[str]:
    """Names of a module's fields but Flax's."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
