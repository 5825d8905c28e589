"""model.json: what a model is, where it comes from, and how to sample it."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdistill import diffusion, samplers
from pdistill.networks import Codec, Network, build_codec, build_network, describe_network
from pdistill.networks.registry import brief
from pdistill.runtime.files import in_home, one_line, read_json
from pdistill.runtime.own_code import class_named, name_of

SCHEDULES = {
    "cosine": diffusion.CosineSchedule,
    "ddpm": diffusion.DdpmSchedule,
    "karras": diffusion.KarrasSchedule,
    "linear_beta": diffusion.LinearBetaSchedule,
    "linear_logsnr": diffusion.LinearLogsnrSchedule,
    "rectified_flow": diffusion.RectifiedFlow,
}
FORMAT = 1
WEIGHTS = "model.safetensors"  # of a folder for hubs
LATENTS = "latents"  # scale of the data of a model from elsewhere that makes no images
LARGEST_SIDE = 2**14  # of an image, in pixels
# What a card must say besides the network: how to sample it, and what results.jsonl repeats.
CARD = (
    *("data", "num_steps", "solver", "clip", "guidance", "checksum"),
    *("stage", "method", "train_steps", "images_seen"),
)
# What it may say besides, of the network's fields.
MORE = ("shifts", "guidance_levels", "guidance_channels")
CODEC_CARD = ("codec", "mean", "std", "tile", "checksum", "stage", "method")


class ModelError(ValueError):
    """A model directory that cannot be used; the message names it and says why."""


def noise_shape(card: dict[str, Any]) -> tuple[int, ...]:
    """Shape of the noise that an image is made from; cards that do not say it have the image's."""
    data = card["data"]
    return check_shape(data.get("noise_shape", data["shape"]))


def works_on_latents(card: dict[str, Any]) -> bool:
    """Whether a model's network makes latents, of a codec that the card names or of none."""
    return bool(card.get("codec")) or card["data"].get("scale") == LATENTS


def check_shape(shape: Sequence[Any]) -> tuple[int, ...]:
    """Returns the shape [H, W, C] as a tuple.

    Raises:
      ValueError: it is not of three whole numbers in 1 .. `LARGEST_SIDE`.
    """
    if len(shape) != 3 or not all(type(n) is int and 1 <= n <= LARGEST_SIDE for n in shape):
        raise ValueError(
            f"a shape must be [height, width, channels], each in 1 .. {LARGEST_SIDE:,}; got "
            f"{list(shape)}"
        )
    return tuple(shape)


def num_steps(card: dict[str, Any]) -> samplers.Steps:
    """Sampling steps in the card, a tuple for a cascade."""
    steps = card["num_steps"]
    return tuple(steps) if isinstance(steps, list) else steps


def made_for(card: dict[str, Any]) -> tuple[samplers.Steps, ...]:
    """The only step counts that a model takes; () for any."""
    return tuple(tuple(n) if isinstance(n, list) else n for n in card.get("made_for") or ())


def reference(directory: str | Path, *, codec: bool = False) -> dict[str, Any]:
    """The entry of a card that names another model or, if it says so, a codec; ModelError if none.

    Its checksum tells whether the directory still holds the same parameters; a codec's entry has
    its `codec_identity`.
    """
    path = find(directory)
    known = codec_identity(path) if codec else {"checksum": read_card(path)["checksum"]}
    return {"path": str(path.resolve())} | known


def codec_identity(directory: str | Path) -> dict[str, int]:
    """The numbers that tell a codec from others; ModelError if there is none in the directory.

    "checksum" is of its parameters, "fingerprint" also of its arguments and of its scale: two
    codecs of the same parameters may read pixels, and scale latents, in different ways.
    """
    path = find(directory)
    card = read_card(path, codec=True)
    codec = build_blank_codec(path, card)
    # Arguments that are left as they are by default may be new in this version.
    about = json.dumps([brief(codec.module), codec.mean, codec.std])
    return {
        "checksum": card["checksum"],
        "fingerprint": zlib.crc32(about.encode(), card["checksum"]),
    }


def same_codec(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two `codec_identity`, or None for images, are of one codec.

    Cards of earlier versions have no fingerprint: the checksum decides then.
    """
    if not (one and other):
        return not one and not other
    names = ("checksum", "fingerprint")
    return all(one[name] == other[name] for name in names if name in one and name in other)


def guidance_range(card: dict[str, Any]) -> tuple[float, float] | None:
    """Lowest and highest guidance weight in the card; None for a model that takes none."""
    if card["guidance"] is None:
        return None
    low, high = card["guidance"]
    return low, math.inf if high is None else high


def describe(network: Network) -> dict[str, Any]:
    """The part of model.json that, with `describe_sampling`, rebuilds a blank network.

    Raises:
      ValueError: a module or a schedule that could not be found by its name.
    """
    more = {name: getattr(network, name) for name in MORE}
    more["upsampled"] = network.enlarged if network.enlarged != 1 else None
    more["sampler"] = network.sampler if not _is_told_by(network.sampler or "ddim") else ""
    return {
        "network": describe_network(network.module),
        "head": network.head,
        "schedule": _describe_schedule(network.schedule),
        **{name: value for name, value in more.items() if value},
    }


def describe_sampling(network: Network) -> dict[str, Any]:
    """The part of model.json about a network's solver and its guidance weights."""
    guidance = network.guidance
    return {
        "solver": network.sampler or "ddim",
        "guidance": guidance and [w if math.isfinite(w) else None for w in guidance],
    }


def _is_told_by(solver: str) -> bool:
    """Whether a card's solver tells by itself that the network must be sampled with it."""
    found = samplers.parse_solver(solver)
    return found.model not in ("denoiser", "variance") or isinstance(found, samplers.Stochastic)


def _describe_schedule(schedule: diffusion.Schedule) -> dict[str, Any]:
    if not dataclasses.is_dataclass(schedule):
        raise ValueError(
            f"the schedule {schedule!r} cannot be written down in a card; make it a frozen "
            "dataclass with a function __call__"
        )
    names = [name for name, cls in SCHEDULES.items() if type(schedule) is cls]
    name = names[0] if names else name_of(type(schedule))
    return {"name": name, "arguments": dataclasses.asdict(schedule)}


def build_schedule(name: str, arguments: dict[str, Any]) -> diffusion.Schedule:
    """A schedule from plain data, as in configs and model.json.

    Args:
      name: or "module:Class" of a dataclass of the user's own; its file is imported.

    Raises:
      ValueError: an unknown name or argument, with the known ones.
    """
    cls = SCHEDULES.get(name) or (class_named(name) if ":" in name else None)
    if cls is None or not dataclasses.is_dataclass(cls):
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, or a frozen dataclass of your own as "
            f"module:Class; got {name!r}"
        )
    known = [f.name for f in dataclasses.fields(cls)]
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"schedule {name!r} has no {argument!r}; it has {', '.join(known)}")
    return cls(**arguments)


def build_blank(card: dict[str, Any]) -> Network:
    """The network of a card, without parameters: the inverse of `describe`.

    Raises:
      KeyError, ValueError: something is missing, or unknown here.
    """
    return Network(
        None,
        module=build_network(card["network"]["name"], card["network"]["arguments"]),
        head=card["head"],
        schedule=build_schedule(card["schedule"]["name"], card["schedule"]["arguments"]),
        shape=noise_shape(card),
        shifts=tuple(card.get("shifts", ())),
        guidance=guidance_range(card),
        guidance_levels=tuple(levels) if (levels := card.get("guidance_levels")) else None,
        guidance_channels=card.get("guidance_channels"),
        sampler=card["solver"] if _is_told_by(card["solver"]) else card.get("sampler", ""),
        enlarged=card.get("upsampled", 1),
    )


def check_kept(network: Network) -> None:
    """Raises ValueError unless a card brings a network back as it is, but for its parameters."""
    card = describe(network) | describe_sampling(network) | {"data": {"shape": network.shape}}
    try:
        kept = build_blank(json.loads(json.dumps(card)))
    except Exception as error:  # whatever a class of the user's own raises
        raise ValueError(f"its model could not be loaded again: {one_line(error)}") from error
    for field in dataclasses.fields(kept):
        was, found = (getattr(each, field.name) for each in (network.blank, kept))
        if was != found:
            was, found = (brief(a) if field.name == "module" else repr(a) for a in (was, found))
            raise ValueError(
                f"its model would be loaded with another {field.name} than it has: {found}, not "
                f"{was}; give it plain values"
            )


def build_blank_codec(directory: Path, card: dict[str, Any]) -> Codec:
    """The codec of a card, in a directory, without parameters; raises ModelError for a bad card."""
    try:
        module = build_codec(card["codec"]["name"], card["codec"]["arguments"])
        mean, std = (tuple(map(float, card[name])) for name in ("mean", "std"))
        return Codec(None, module, mean, std, card["tile"]).checked()
    except Exception as error:  # a card may hold anything
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error


def read_card(directory: Path, *, codec: bool = False) -> dict[str, Any]:
    """model.json of a model directory, or of a codec's; of a folder for hubs, config.json.

    Raises:
      ModelError: it is not there, or not of a format that this version reads.
    """
    path = directory / "model.json"
    try:
        if not path.is_file() and is_ours(directory / "config.json"):
            path = directory / "config.json"
        card = read_json(path)
    except FileNotFoundError as error:
        what = "codec" if codec else "model"
        raise ModelError(f"no {what} in {directory}: {_advice(directory, codec)}") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(card, dict):
        raise ModelError(f"{path} must hold an object; it holds {card!r}")
    check_card(card, path, codec=codec)
    return card


def is_ours(path: Path) -> bool:
    """Whether this config.json is of a folder that `interop.write_folder` wrote."""
    try:
        return "format" in read_json(path) and (path.parent / WEIGHTS).is_file()
    except (OSError, ValueError, TypeError):
        return False


def _advice(directory: Path, codec: bool) -> str:
    """Says what to give instead of a folder without a model, or without a codec."""
    stages = _below(directory, codec)
    if not directory.exists():  # as of a stage that the run has not reached
        run = next((path for path in directory.parents[:2] if path.name and path.is_dir()), None)
        stages = _below(run, codec) if run else []
    if stages:
        return f"there are {', '.join(map(str, stages))}; give one of them"
    convert = "python -m pdistill.convert --from=diffusers --source=FOLDER --out=MODEL"
    if any((directory / name).exists() for name in ("model_index.json", "config.json")):
        return f"it is a folder of another library; convert it first, as by {convert}"
    advice = (
        "give a folder with model.json, such as runs/digits/progressive/4, or with config.json and "
        f"{WEIGHTS}, such as zoo/emoji/4"
    )
    if not directory.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(directory)):
        return f"{advice}; a model of a hub is to be downloaded, and converted by {convert}"
    return advice


def _below(directory: Path, codec: bool) -> list[Path]:
    """The stages of a run, or the models of a folder, in order; those of codecs, or the others."""
    depths = ("*", "*/*", "*/*/*")  # stages, their rounds or students
    cards = [path for d in depths for path in directory.glob(f"{d}/model.json")]
    cards += [p for d in depths for p in directory.glob(f"{d}/config.json") if is_ours(p)]
    models = {find(path.parent) for path in cards if _is_of_codec(path) == codec}
    stages = {path.parent if path.name == "model" else path for path in models}
    return sorted(stages, key=lambda path: re.sub(r"\d+", lambda m: m[0].zfill(9), str(path)))


def _is_of_codec(path: Path) -> bool:
    try:
        return read_json(path).get("kind") == "codec"
    except (OSError, ValueError, AttributeError):
        return False


def check_card(card: dict[str, Any], path: Path, *, codec: bool = False) -> None:
    """Raises ModelError for a card of another format or kind, or without what every one has."""
    if card.get("format") != FORMAT:
        raise ModelError(f"{path} has format {card.get('format')}; this reads {FORMAT}")
    if (card.get("kind") == "codec") != codec:
        raise ModelError(
            f"{path.parent} holds a model, not a codec; load it with pdistill.load"
            if codec
            else f"{path.parent} holds a codec, which makes no samples of its own; load it with "
            "pdistill.load_codec"
        )
    for key in CODEC_CARD if codec else CARD:
        if key not in card:
            raise ModelError(f"{path} lacks the key {key!r}")


def find(directory: str | Path) -> Path:
    """The model directory that this is, or that is in this stage's directory."""
    directory = in_home(str(directory))
    return directory / "model" if (directory / "model").is_dir() else directory


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("pdistill", "jax", "flax", "optax", "orbax-checkpoint")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
