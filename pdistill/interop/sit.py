"""State dicts of SiT, of the original DiT and of LightningDiT, networks of latents.

A file does not say how many heads its network has, nor its noise levels, nor how its authors sample
it: that is here. Their code guides the first three channels only, of 4 or 32.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.diffusion import RectifiedFlow, Schedule, output_channels
from pdistill.interop.conversion import Conversion, build, converter, teacher_card
from pdistill.interop.weights import ConversionError, from_torch, read_safetensors
from pdistill.networks.published.conventions import Convention, Ddpm, Flow, describe_convention
from pdistill.networks.published.diffusers_dit import positions
from pdistill.networks.transformer import rotary_angles
from pdistill.runtime.torch_files import read_torch

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}  # of the published widths
CHANNELS = 3  # that are guided
WRAPPERS = r"^(module\.|_orig_mod\.)+"  # in names of a network that was trained within these
ROPE = "feat_rope.freqs_"
# Buffers agree to this: in half precision, or after an average of them that rounds each update.
TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks of one kind, and how their authors sample them.

    Attributes:
      convention, schedule: noise levels of the network and of its sampler's steps.
      num_steps: steps of the solver.
      weight: guidance's, their scale less one, which the card keeps as "published".
      guided_from: time, 0 at noise and 1 at data, from which on it is guided.
      solver: DDIM, whose steps are Euler's of a rectified flow, or another one of `SOLVERS`.
    """

    convention: Convention
    schedule: Schedule
    num_steps: int
    weight: float
    guided_from: float = 0.0
    solver: str = "ddim"

    @property
    def guidance_levels(self) -> tuple[float, float] | None:
        """Log-SNRs between which it is guided; None for all."""
        t = self.guided_from
        return (2 * math.log(t / (1 - t)), 100.0) if t else None


# 249 steps are those between 250 times; a shift of 0.3 is from noise to data.
SIT = Family(Flow(), RectifiedFlow(), 250, 0.5, solver="euler_maruyama:0.04")
DIT = Family(Ddpm(), Ddpm().schedule, 250, 0.5)
DIT_WITH_VARIANCE = dataclasses.replace(DIT, convention=Ddpm("eps_variance"), solver="iddpm")
LIGHTNINGDIT = Family(Flow(), RectifiedFlow(1 / 0.3), 249, 5.7, guided_from=0.125)


@converter
def convert_sit(
    source: str | Path, *, heads: int | None = None, num_steps: int | None = None
) -> Conversion:
    """Reads a state dict (.pt, .safetensors) of SiT, on the linear path, that predicts velocity.

    Args:
      source: path of the file; of a checkpoint the average, "ema", is taken.
      heads: attention's heads, for a width that is not among the published ones.
      num_steps: sampling steps for the card.

    Raises:
      ConversionError: the file is damaged, or of another network.
    """
    return _convert(source, "sit", SIT, heads, num_steps)


@converter
def convert_dit(
    source: str | Path,
    *,
    heads: int | None = None,
    num_steps: int | None = None,
    variance: bool = False,
) -> Conversion:
    """Reads a state dict of DiT in its authors' form; as `convert_sit`.

    Args:
      variance: keep the learnt variance, and sample with it as the authors do. Otherwise it is
        dropped: students of a network learn none.
    """
    return _convert(source, "dit", DIT_WITH_VARIANCE if variance else DIT, heads, num_steps)


@converter
def convert_lightningdit(
    source: str | Path, *, heads: int | None = None, num_steps: int | None = None
) -> Conversion:
    """Reads a state dict of LightningDiT, whatever its options; as `convert_sit`."""
    return _convert(source, "lightningdit", LIGHTNINGDIT, heads, num_steps)


def _convert(
    source: str | Path, name: str, family: Family, heads: int | None, num_steps: int | None
) -> Conversion:
    read = read_safetensors if Path(source).suffix == ".safetensors" else read_torch
    tensors = {re.sub(WRAPPERS, "", key): a for key, a in read(source).items()}
    arguments = _arguments(tensors, heads, source)
    patch, features = arguments["patch"], arguments["features"]
    channels = tensors["x_embedder.proj.weight"].shape[1]
    table = tensors.pop("pos_embed")
    side = math.isqrt(table.shape[-2])
    _check_buffer(table, positions(side, features), "pos_embed", source)
    if arguments["rope"]:
        angles = np.repeat(rotary_angles((side, side), features // arguments["heads"]), 2, axis=1)
        for wave, f in (("cos", np.cos), ("sin", np.sin)):
            _check_buffer(tensors.pop(ROPE + wave), f(angles), ROPE + wave, source)
    convention = family.convention
    outputs = output_channels(convention.head, channels)
    if outputs == channels:
        _drop_variance(tensors, patch, channels)
    elif len(tensors["final_layer.linear.weight"]) != patch**2 * outputs:
        raise ConversionError(f"{source} has no learnt variance; leave --variance out")
    arguments |= {"out_channels": outputs, "convention": describe_convention(convention)}
    shape = (patch * side, patch * side, channels)
    blank = build("sit", arguments, convention.head, family.schedule, shape)
    blank = blank.replace(
        guidance_levels=family.guidance_levels, guidance_channels=min(CHANNELS, channels)
    )
    card = teacher_card(
        blank, method=name, source=source, num_steps=num_steps or family.num_steps, guided=True,
        pixels=False, clip=None,
    )  # fmt: skip
    card |= {"solver": family.solver, "published": {"guidance": family.weight}}
    return Conversion(from_torch(blank, tensors, source), card)


def _arguments(
    tensors: Mapping[str, np.ndarray], heads: int | None, source: str | Path
) -> dict[str, Any]:
    """Reads the arguments of `SiT` off the tensors' names and shapes."""
    features, _, patch, _ = tensors["x_embedder.proj.weight"].shape
    blocks = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d{1,6})\.", name))]
    first = "blocks.0."
    if (norm := tensors.get(f"{first}attn.q_norm.weight")) is not None:
        heads = features // len(norm)
    heads = heads or HEADS.get(features)
    if heads is None:
        raise ConversionError(
            f"{source} does not say how many heads of attention it has, and none of the published "
            f"networks is {features} wide; give --heads"
        )
    if features % heads:
        raise ConversionError(f"{source} is {features} wide, which {heads} heads do not divide")
    return {
        "patch": patch,
        "features": features,
        "depth": max(blocks, default=-1) + 1,
        "heads": heads,
        "num_labels": len(tensors["y_embedder.embedding_table.weight"]) - 1,
        "rms_norm": f"{first}norm1.weight" in tensors,
        "qk_norm": norm is not None,
        "rope": f"{ROPE}cos" in tensors,
        "swiglu": f"{first}mlp.w12.weight" in tensors,
        "shifts": len(tensors[f"{first}adaLN_modulation.1.weight"]) == 6 * features,
    }


def _check_buffer(found: np.ndarray, expected: np.ndarray, name: str, source: str | Path) -> None:
    """Raises ConversionError for a buffer that is not what the network computes in its place."""
    rows = np.asarray(found, np.float32).reshape(-1, found.shape[-1])
    expected = np.asarray(expected)
    if rows.shape != expected.shape or not (abs(rows - expected) < TOLERANCE).all():
        raise ConversionError(
            f"{source}: {name!r}, of shape {list(found.shape)}, is not the table of positions of a "
            "square of patches, which is the one that can be converted"
        )


def _drop_variance(tensors: dict[str, np.ndarray], patch: int, channels: int) -> None:
    """Drops what comes after the mean's channels, for each pixel of a patch, in the last layer."""
    for leaf in ("weight", "bias"):
        name = f"final_layer.linear.{leaf}"
        a = tensors[name]
        if len(a) == 2 * patch**2 * channels:
            a = a.reshape(patch**2, 2 * channels, *a.shape[1:])[:, :channels]
            tensors[name] = a.reshape(-1, *a.shape[2:])
