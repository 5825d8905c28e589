"""A conversion: the network and the card that every kind of source becomes."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pdistill import model as models
from pdistill.diffusion import Schedule
from pdistill.interop.weights import ConversionError
from pdistill.model.card import CARD, LATENTS, reference, works_on_latents
from pdistill.model.codecs import blank_codec
from pdistill.model.text import PromptEncoder
from pdistill.networks import Codec, Network, build_network
from pdistill.runtime import files
from pdistill.runtime.files import one_line
from pdistill.runtime.temporary import replacing

PIXELS = "image / 127.5 - 1"  # what a network's arrays are, in its card; or LATENTS
CODEC = "codec"  # folder of a codec in that of the model that comes with it
GUIDE = "guide"  # of the network that guides it
TEXT = "text"  # of the scale of its prompts
NUM_STEPS = 64  # steps of an imported teacher, unless the source or the user says

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A converted model or codec, the arguments of `model.save` or `model.save_codec`."""

    network: Network | Codec
    card: dict[str, Any]
    prompts: PromptEncoder | None = None


def teacher_card(
    network: Network,
    *,
    method: str,
    source: str | Path,
    num_steps: int | None = None,
    guided: bool = False,
    pixels: bool = True,
    clip: tuple[float, float] | None = (-1.0, 1.0),
) -> dict[str, Any]:
    """The card of an imported teacher, which DDIM samples.

    Args:
      method: the source, a key of `interop.CONVERTERS`.
      source: path of the source, whose last part names the model.
      num_steps: sampling steps; NUM_STEPS by default.
      guided: it was trained with labels left out, so that it takes guidance weights.
      pixels: it makes images in [-1, 1]; else latents. clip: range that x_hat is clipped to.
    """
    return {
        "kind": "denoiser",
        "solver": "ddim",
        "num_steps": num_steps or NUM_STEPS,
        "clip": clip,
        "num_labels": network.num_labels,
        "data": {"shape": network.shape, "scale": PIXELS if pixels else LATENTS},
        "guidance": (0.0, None) if guided else None,
        "parent": None,
        "stage": Path(source).absolute().name,
        "method": method,
        "train_steps": None,
        "images_seen": None,
    }


def with_codec(conversion: Conversion, directory: str | Path) -> Conversion:
    """The conversion of a network of latents as a model that makes images by a codec.

    Args:
      directory: the codec's, as `convert` or a run writes it.

    Raises:
      ConversionError: it makes no latents, or not such latents.
      ModelError: there is no codec there.
    """
    network, card = conversion.network, conversion.card
    if isinstance(network, Codec) or card["data"]["scale"] != LATENTS:
        raise ConversionError("--codec is for networks of latents; leave it out")
    codec = blank_codec(directory)
    if codec.channels != network.shape[-1]:
        raise ConversionError(
            f"the codec in {directory} makes latents of {codec.channels} channels, and the network "
            f"takes {network.shape[-1]}; give the one that it was trained with"
        )
    shapes = {"shape": codec.image_shape(network.shape), "noise_shape": network.shape}
    changes = {"codec": reference(directory, codec=True), "data": shapes | {"scale": PIXELS}}
    return Conversion(network, card | changes)


def write_model(directory: str | Path, conversion: Conversion) -> None:
    """Writes the directory of a model or a codec, whole or not at all.

    A codec, a guide and prompts that come with a model are in codec/, guide/ and text/ there.
    """
    made, card = conversion.network, conversion.card
    if isinstance(made, Codec):
        return models.save_codec(directory, made, **card)
    inside = {CODEC: made.codec, GUIDE: made.guide, TEXT: conversion.prompts}
    card = card | {name: card[name] | {"path": name} for name, part in inside.items() if part}
    with replacing(Path(directory)) as temporary:
        models.save(temporary, made, **card)
        if made.codec:
            about = {"stage": card["stage"], "method": "codec"}
            models.save_codec(temporary / CODEC, made.codec, **about)
        if made.guide:
            models.save(temporary / GUIDE, made.guide, **guide_card(card, made.guide))
        if conversion.prompts:
            conversion.prompts.save(temporary / TEXT)


def guide_card(card: dict[str, Any], guide: Network) -> dict[str, Any]:
    """The card of the network that guides the model of a card, to be written beside it."""
    scale = LATENTS if works_on_latents(card) else card["data"].get("scale", PIXELS)
    own = {"solver": "ddim", "guidance": None, "data": {"shape": guide.shape, "scale": scale}}
    return {key: card[key] for key in CARD} | {"num_labels": guide.num_labels} | own


def converter(convert: Callable[..., Made]) -> Callable[..., Made]:
    """Wraps a converter, so that whatever error a damaged file leads to is a ConversionError."""

    @functools.wraps(convert)
    def guarded(source: str | Path, **options: Any) -> Made:
        try:
            return convert(source, **options)
        except ConversionError:
            raise
        except Exception as error:
            cause = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
            raise ConversionError(f"cannot convert {source}: {cause}") from error

    return guarded


def build(
    name: str, arguments: dict[str, Any], head: str, schedule: Schedule, shape: tuple[int, ...]
) -> Network:
    """A blank network from plain data, for images of `shape` [H, W, C].

    Raises:
      ValueError: a shape or arguments that no image or network has.
    """
    module = build_network(name, arguments)
    shape = models.check_shape(shape)
    return Network(None, module=module, head=head, schedule=schedule, shape=shape)


def count(value: Any, name: str) -> int:
    """Returns `value` if it is a whole number of at least 1.

    Raises:
      ConversionError: it is something else; the message has its `name`.
    """
    if type(value) is not int or value < 1:
        raise ConversionError(f"{name} must be a whole number of at least 1; it is {value!r}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
      ConversionError: the file is missing, damaged, or holds something else.
    """
    try:
        config = files.read_json(path)
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} must hold an object; it holds {config!r}"[:200])
    return config
