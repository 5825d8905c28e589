"""Autoencoders of diffusers' folders and of latent-diffusion's checkpoints, as codecs."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.interop.conversion import Conversion, converter, count
from pdistill.interop.diffusers_scheduler import check
from pdistill.interop.diffusers_weights import read_diffusers
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.networks import Codec, build_codec
from pdistill.runtime.torch_files import read_torch

# These autoencoders have fixed values here, their configs' defaults; other values are refused.
KL_IS = {"act_fn": "silu"}
TINY_IS = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
KL_BLOCKS = {
    "DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True,
    "UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True,
}  # fmt: skip
# Parts of latent-diffusion's names, and diffusers' for them.
LDM_NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def convert_codec(folder: Path, config: dict[str, Any]) -> Conversion:
    """Reads the folder of an AutoencoderKL or an AutoencoderTiny, whose config has been read."""
    path = folder / "config.json"
    is_kl = config["_class_name"] == "AutoencoderKL"
    name, arguments = ("kl", _kl(config, path)) if is_kl else ("tiny", _tiny(config, path))
    module = build_codec(f"autoencoder_{name}", arguments)
    mean, std = _statistics(config, module.latent_channels, 0.18215 if is_kl else 1.0)
    size = config.get("sample_size", 32 if is_kl else 512)
    tile = count(size[0] if isinstance(size, list) else size, f"{path}: sample_size")
    codec = _blank(module, mean, std, tile)
    return Conversion(from_torch(codec, *read_diffusers(folder)), _card(folder, "diffusers"))


@converter
def convert_ldm(source: str | Path, *, statistics: str | Path | None = None) -> Conversion:
    """Reads an autoencoder of latent-diffusion, such as VA-VAE, from a checkpoint (.ckpt, .pt).

    Args:
      source: path of the file, a state dict or one with it under "state_dict"; tensors of anything
        but the autoencoder, such as the loss's, are left out.
      statistics: path of a file with "mean" and "std" of each channel of its latents, as
        LightningDiT's latents_stats.pt; latents are not scaled without one.

    Raises:
      ConversionError: a file is damaged, or holds something else.
    """
    state = read_torch(source)
    tensors = {name: a for name, a in state.items() if name.startswith(PARTS)}
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    module = build_codec(
        "autoencoder_kl",
        {
            "channels": [
                len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)
            ],
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "image_channels": tensors["encoder.conv_in.weight"].shape[1],
            "blocks": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
            "attention": [
                i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in tensors
            ],
        },
    )
    channels = module.latent_channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if statistics is not None:
        found = read_torch(statistics)
        mean, std = (tuple(map(float, np.ravel(found[name]))) for name in ("mean", "std"))
    tensors = {_from_ldm(name, levels): a for name, a in tensors.items()}
    codec = from_torch(_blank(module, mean, std, 256), tensors, source)
    return Conversion(codec, _card(source, "ldm"))


def _kl(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Makes the arguments of `AutoencoderKL`; missing values are diffusers' defaults."""
    check(config, KL_IS | {"out_channels": config.get("in_channels", 3)}, path)
    down = config.get("down_block_types", ["DownEncoderBlock2D"])
    up = config.get("up_block_types", ["UpDecoderBlock2D"])
    for block in (*down, *up):
        if block not in KL_BLOCKS:
            raise ConversionError(
                f"{path}: blocks of type {block} are not supported; {', '.join(KL_BLOCKS)} are"
            )
    attention = [KL_BLOCKS[block] for block in down]
    if attention != [KL_BLOCKS[block] for block in reversed(up)]:
        raise ConversionError(f"{path}: attention must be at the same scales, down and up")
    return {
        "channels": config.get("block_out_channels", [64]),
        "latent_channels": count(config.get("latent_channels", 4), f"{path}: latent_channels"),
        "image_channels": count(config.get("in_channels", 3), f"{path}: in_channels"),
        "blocks": config.get("layers_per_block", 1),
        "attention": [i for i, has in enumerate(attention) if has],
        "middle_attention": config.get("mid_block_add_attention", True),
        "groups": config.get("norm_num_groups", 32),
        "quant": config.get("use_quant_conv", True),
        "post_quant": config.get("use_post_quant_conv", True),
    }


def _tiny(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Makes the arguments of `AutoencoderTiny`; missing values are diffusers' defaults."""
    check(config, TINY_IS | {"out_channels": config.get("in_channels", 3)}, path)
    widths = {
        width
        for part in ("encoder", "decoder")
        for width in config.get(f"{part}_block_out_channels", [64])
    }
    if len(widths) != 1:
        raise ConversionError(f"{path}: all blocks must have as many channels; they have {widths}")
    return {
        "channels": widths.pop(),
        "latent_channels": count(config.get("latent_channels", 4), f"{path}: latent_channels"),
        "image_channels": count(config.get("in_channels", 3), f"{path}: in_channels"),
        "encoder_blocks": config.get("num_encoder_blocks", [1, 3, 3, 3]),
        "decoder_blocks": config.get("num_decoder_blocks", [3, 3, 3, 1]),
    }


def _statistics(
    config: dict[str, Any], channels: int, scaling: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of a config's scaling and shift or its statistics."""
    scaling = float(config.get("scaling_factor", scaling))
    if not 0 < scaling < math.inf:
        raise ConversionError(f"scaling_factor must be positive; it is {scaling}")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (std is None):
        raise ConversionError("latents_mean and latents_std go together; one of them is missing")
    if mean is None:
        mean, std = [config.get("shift_factor") or 0.0] * channels, [1.0] * channels
    return tuple(map(float, mean)), tuple(float(s) / scaling for s in std)


def _blank(module: Any, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> Codec:
    """A codec without parameters, whose tiles are of the size of its training images or more."""
    least = 4 * module.factor
    return Codec(None, module, mean, std, math.ceil(size / least) * least).checked()


def _card(source: str | Path, method: str) -> dict[str, Any]:
    return {"stage": Path(source).absolute().name, "method": method}


def _count(tensors: dict[str, np.ndarray], pattern: str) -> int:
    """Counts the layers of which the pattern's group is the number, from 0."""
    found = {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
    if not found:
        raise ConversionError("it has no tensors of an autoencoder of latent-diffusion")
    return max(found) + 1


def _from_ldm(name: str, levels: int) -> str:
    """Gives a tensor of latent-diffusion diffusers' name, where 0 is the decoder's coarsest."""
    for pattern, replacement in LDM_NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
