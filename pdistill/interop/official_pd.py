"""Checkpoints of the official progressive distillation release (Salimans & Ho 2022).

A file is a train state in Flax's msgpack; `ema_params` has the names of `networks.UNet`, whose
arguments follow from them, but for the size of the image and the meaning of three channels.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from pdistill.diffusion import CosineSchedule, output_channels
from pdistill.interop.conversion import Conversion, build, converter, count, teacher_card
from pdistill.interop.weights import ConversionError, check_size, from_flat
from pdistill.runtime.files import map_file, one_line


@converter
def convert_official_pd(
    source: str | Path, *, image_size: int, head: str | None = None, num_steps: int | None = None
) -> Conversion:
    """Reads a checkpoint.

    Args:
      source: path of the checkpoint.
      image_size: height of its images, from which it follows where attention is.
      head: its prediction, one of `diffusion.HEADS`; by default "both" for six channels and "x" for
        three, as released.
      num_steps: sampling steps, instead of the checkpoint's own (a student has them).

    Raises:
      ConversionError: the file is damaged or another one, or does not fit the arguments.
    """
    try:
        state = serialization.msgpack_restore(map_file(source))
        params = state["ema_params"]
        tensors = {
            "/".join(path): np.asarray(a) for path, a in traverse_util.flatten_dict(params).items()
        }
    except Exception as error:  # a damaged file can raise anything
        raise ConversionError(
            f"cannot read {source} as a checkpoint with ema_params: {one_line(error)}"
        ) from error
    own = state.get("num_sample_steps")
    del state, params  # so that each array goes once it is converted
    arguments = _arguments(tensors, image_size, source)
    channels = tensors["conv_in/kernel"].shape[2]
    head = head or ("both" if arguments["out_channels"] == 2 * channels else "x")
    shape = (image_size, image_size, channels)
    blank = build("unet", arguments, head, CosineSchedule(), shape)
    if head == "eps_variance" or arguments["out_channels"] != output_channels(head, channels):
        raise ConversionError(
            f"{source} has {arguments['out_channels']} channels out, which is not head={head!r}; "
            "give another head"
        )
    check_size(blank, tensors, source)
    for name, leaf in traverse_util.flatten_dict(blank.shapes.params, sep="/").items():
        # An older Flax kept the heads of attention flat.
        if ".attn_" in name and name in tensors and tensors[name].size == leaf.size:
            tensors[name] = tensors[name].reshape(leaf.shape)
    card = teacher_card(
        blank,
        method="official_pd",
        source=source,
        num_steps=num_steps or (None if own is None else count(int(own), "num_sample_steps")),
    )
    if own is not None and not num_steps:
        card["made_for"] = [count(int(own), "num_sample_steps")]
    return Conversion(from_flat(blank, tensors, source), card)


def _arguments(tensors: dict[str, Any], image_size: int, source: str | Path) -> dict[str, Any]:
    """Finds the arguments of `networks.UNet` by the names and shapes of its parameters."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ConversionError(f"{source} has no tensor {name!r}")
        found = tensors[name].shape
        if len(found) != rank:
            raise ConversionError(f"{source}: {name!r} has shape {list(found)}, not {rank} axes")
        return found

    channels = shape("conv_in/kernel", 4)[-1]
    scales = 1 + max((int(m[1]) for m in _matches(r"down_(\d+)\.", tensors)), default=0)
    blocks = 1 + max((int(m[1]) for m in _matches(r"down_0\.block_(\d+)/", tensors)), default=0)
    widths = [shape(f"down_{i}.block_0/conv1/kernel", 4)[-1] for i in range(scales)]
    attended = sorted({int(m[1]) for m in _matches(r"down_(\d+)\.attn_0/", tensors)})
    return {
        "out_channels": shape("conv_out/kernel", 4)[-1],
        "channels": channels,
        "embedding_channels": shape("dense0/kernel", 2)[-1],
        "multipliers": [width // channels for width in widths],
        "blocks": blocks,
        "attention_sizes": [image_size >> i for i in attended],
        "head_channels": _head_channels(tensors, image_size),
        "num_labels": shape("class_emb/kernel", 2)[0] if "class_emb/kernel" in tensors else 0,
    }


def _head_channels(tensors: dict[str, Any], image_size: int) -> int | None:
    """Finds the channels of a head, from a parameter that is not stored flat.

    If all are flat, they are as released: one head on 32x32 images, 64 channels on larger ones.
    """
    for name, axes in (("q/kernel", (1, 2)), ("q/bias", (0, 1)), ("proj_out/kernel", (0, 1))):
        found = np.shape(tensors.get(f"mid.attn_1/{name}"))
        if len(found) == axes[1] + 1 + (name == "proj_out/kernel"):
            heads, channels = (found[axis] for axis in axes)
            return None if heads == 1 else channels
    return None if image_size <= 32 else 64


def _matches(pattern: str, tensors: dict[str, Any]) -> list[re.Match]:
    """Matches a pattern with the beginnings of names."""
    return [m for name in tensors if (m := re.match(pattern, name))]
