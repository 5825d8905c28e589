"""State dicts of guided-diffusion (Dhariwal & Nichol 2021), with their learnt variance or without.

A state dict does not say how its network is built: its command line does, "MODEL_FLAGS" in the
README. Names of layers become the names in `networks.published.diffusers_unet`.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.diffusion import output_channels
from pdistill.interop.conversion import Conversion, build, converter, teacher_card
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.networks import Network
from pdistill.networks.published.conventions import Ddpm, describe_convention
from pdistill.runtime.torch_files import read_torch

DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
STEPS = 250  # of the published samples, "--timestep_respacing 250"
MULTIPLIERS = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@converter
def convert_adm(
    source: str | Path, *, flags: str, num_steps: int | None = None, variance: bool = False
) -> Conversion:
    """Reads a state dict (.pt).

    Args:
      source: path of the file.
      flags: guided-diffusion's flags, such as "--image_size 64 --class_cond True"; flags that are
        left out have its defaults.
      num_steps: sampling steps for the card.
      variance: keep the learnt variance, and sample with it as the authors do.

    Raises:
      ConversionError: flags are unknown, or weights damaged or not what the flags say.
    """
    options = parse_flags(flags)
    state = read_torch(source)
    labels = state.get("label_emb.weight")
    num_labels = 1000 if labels is None else len(labels)
    blank = describe(options, num_labels, variance=variance)
    tensors = _tensors(state, blank.module, options, source)
    card = teacher_card(blank, method="adm", source=source, num_steps=num_steps)
    if variance:
        card |= {"solver": "iddpm", "num_steps": num_steps or STEPS}
    return Conversion(from_torch(blank, tensors, source), card)


def parse_flags(flags: str) -> dict[str, Any]:
    """Parses guided-diffusion's command line into its options by name, with its defaults.

    Raises:
      ConversionError: a flag is unknown, or a value has another type.
    """
    words = shlex.split(flags.replace("=", " "))
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise ConversionError(f"--flags must be like '--image_size 64'; they are {flags!r}")
    options = dict(DEFAULTS)
    for name, word in zip((w[2:] for w in words[::2]), words[1::2], strict=True):
        if name not in DEFAULTS:
            raise ConversionError(f"--flags: {name!r} is not one of {', '.join(DEFAULTS)}")
        wanted = type(DEFAULTS[name])
        try:
            if wanted is bool:
                options[name] = {"true": True, "1": True, "false": False, "0": False}[word.lower()]
            else:
                options[name] = wanted(word)
        except (KeyError, ValueError) as error:
            raise ConversionError(
                f"--flags: {name} must be {wanted.__name__}; it is {word!r}"
            ) from error
    if options["num_heads_upsample"] not in (-1, options["num_heads"]):
        raise ConversionError("--flags: num_heads_upsample must be num_heads")
    return options


def describe(options: dict[str, Any], num_labels: int = 1000, *, variance: bool = False) -> Network:
    """Builds the network of `parse_flags`' options, on their noise levels.

    Args:
      num_labels: number of labels, for a network that takes them.
      variance: it keeps the variance that it has learnt.

    Raises:
      ConversionError: options cannot work together.
    """
    size, width = options["image_size"], options["num_channels"]
    try:
        multipliers = options["channel_mult"] or MULTIPLIERS[size]
        channels = [int(float(m) * width) for m in multipliers.split(",")]
        attended = {size // int(s) for s in options["attention_resolutions"].split(",")}
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ConversionError(
            f"--flags: image_size={size} needs channel_mult, and that and attention_resolutions "
            "must be numbers with commas"
        ) from error
    scales = len(channels)
    if options["rescale_timesteps"] and options["diffusion_steps"] != 1000:
        raise ConversionError("--flags: rescale_timesteps is supported for 1000 steps only")
    if variance and (options["predict_xstart"] or not options["learn_sigma"]):
        raise ConversionError(
            "--variance is for a network of eps that has learnt one, whose flags have "
            "--learn_sigma True and not --predict_xstart True; leave it out"
        )
    scale = 1000 / options["diffusion_steps"]
    head = "eps_variance" if variance else "eps"
    convention = Ddpm(
        "x" if options["predict_xstart"] else head,
        options["noise_schedule"],
        scale * 1e-4,
        scale * 0.02,
        options["diffusion_steps"],
    )
    head_channels = options["num_head_channels"]
    ways = ("resnet" if options["resblock_updown"] else "conv",) * (scales - 1)
    arguments = {
        "out_channels": output_channels(convention.head, 3),
        "convention": describe_convention(convention),
        "channels": channels,
        "blocks": options["num_res_blocks"],
        "attention": tuple(i for i in range(scales) if 2**i in attended),
        "heads": options["num_heads"] if head_channels == -1 else 0,
        "head_channels": max(head_channels, 0),
        "resample_down": ways,
        "resample_up": ways,
        "scale_shift": options["use_scale_shift_norm"],
        "wave_channels": width,
        "embedding_channels": 4 * width,
        "num_labels": num_labels if options["class_cond"] else 0,
        "dropout": options["dropout"],
    }
    return build("diffusers_unet", arguments, convention.head, convention.schedule, (size, size, 3))


def _places(network: Any) -> Iterator[tuple[str, str]]:
    """Yields each module's place in guided-diffusion and its name here, in order."""
    scales, ways = len(network.channels), (network.resample_down, network.resample_up)
    yield "input_blocks.0.0", "conv_in"
    index = 0
    for i in range(scales):
        for j in range(network.blocks):
            index += 1
            yield f"input_blocks.{index}.0", f"down_blocks.{i}.resnets.{j}"
            if i in network.attention:
                yield f"input_blocks.{index}.1", f"down_blocks.{i}.attentions.{j}"
        if i < scales - 1:
            index += 1
            inner = ".op" if ways[0][i] == "conv" else ""
            name = f"down_blocks.{i}.downsamplers.0" + (".conv" if inner else "")
            yield f"input_blocks.{index}.0{inner}", name
    for j, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{j}", f"mid_block.{name}"
    index = 0
    for i in range(scales):
        attended = scales - 1 - i in network.attention
        for j in range(network.blocks + 1):
            yield f"output_blocks.{index}.0", f"up_blocks.{i}.resnets.{j}"
            if attended:
                yield f"output_blocks.{index}.1", f"up_blocks.{i}.attentions.{j}"
            if j == network.blocks and i < scales - 1:
                inner = ".conv" if ways[1][i] == "conv" else ""
                place = f"output_blocks.{index}.{1 + attended}{inner}"
                yield place, f"up_blocks.{i}.upsamplers.0{inner}"
            index += 1


def _tensors(
    state: dict[str, np.ndarray], network: Any, options: dict[str, Any], source: str | Path
) -> dict[str, np.ndarray]:
    """Gives the state dict diffusers' names; a tensor without a place keeps its name."""
    places = dict(_places(network)) | OUTSIDE
    tensors = {}
    for name, array in state.items():
        parts = name.split(".")
        starts = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        place = next((start for start in starts if start in places), None)
        if place is None:
            tensors[name] = array
            continue
        ours = places[place]
        layer, _, leaf = name[len(place) + 1 :].rpartition(".")
        if ours == "conv_out" and options["learn_sigma"] and len(array) == 6:
            array = array[: network.out_channels]
        if ".attentions." in ours and layer == "qkv":
            heads = network.heads or len(array) // 3 // network.head_channels
            if not heads or len(array) % (3 * heads):
                raise ConversionError(
                    f"{source}: {name!r} has shape {list(array.shape)}, not {heads} heads"
                )
            split = _split(array, heads, options["use_new_attention_order"])
            tensors |= {f"{ours}.to_{part}.{leaf}": a for part, a in split.items()}
            continue
        layers = ATTENTION if ".attentions." in ours else RESNET
        tensors[".".join(filter(None, (ours, layers.get(layer, layer), leaf)))] = array
    return tensors


def _split(array: np.ndarray, heads: int, one_after_another: bool) -> dict[str, np.ndarray]:
    """Splits qkv [3 C, ...] into q, k and v [C, ...], one after another in all or in each head."""
    if one_after_another:
        return dict(zip("qkv", np.split(array, 3), strict=True))
    split = array.reshape(heads, 3, -1, *array.shape[1:])
    return {part: split[:, i].reshape(-1, *array.shape[1:]) for i, part in enumerate("qkv")}
