"""Folders of diffusers: UNet2DModel or DiTTransformer2DModel with a scheduler, or a codec."""

from pathlib import Path
from typing import Any

from pdistill.interop.codecs import convert_codec
from pdistill.interop.conversion import Conversion, build, converter, count, read_json, teacher_card
from pdistill.interop.diffusers_scheduler import CODECS, check, read_index, read_scheduler
from pdistill.interop.diffusers_weights import read_diffusers
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.networks.published.conventions import describe_convention

# These networks have fixed values here, their configs' defaults; other values are refused.
UNET_IS = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "class_embed_type": None,
}
DIT_IS = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


@converter
def convert_diffusers(source: str | Path, *, num_steps: int | None = None) -> Conversion:
    """Reads the folder of a pipeline, of its unet or transformer, or of its vae, a codec.

    A model makes latents if the pipeline has a codec beside it, or its channels are not one or
    three. Its card says to clip where the scheduler does, whose steps are others: diffusers keeps
    the noise that was predicted for the x_hat before it was clipped, here it is that of the clipped
    one, as in its `use_clipped_model_output`.

    Args:
      source: path of the folder.
      num_steps: sampling steps for the card of a model.

    Raises:
      ConversionError: something is missing, damaged, unknown or not supported.
    """
    source = Path(source)
    folder = _first([source, source / "unet", source / "transformer"], "config.json", source)
    path = folder / "config.json"
    config = read_json(path)
    name = config.get("_class_name")
    if name == "Transformer2DModel" and config.get("patch_size"):  # of DiT before it had a class
        name = "DiTTransformer2DModel" if config.get("norm_type") == "ada_norm_zero" else name
    if name in ("AutoencoderKL", "AutoencoderTiny"):
        if num_steps is not None:
            raise ConversionError("a codec has no sampling steps; leave num_steps out")
        return convert_codec(folder, config)
    if name not in ("UNet2DModel", "DiTTransformer2DModel"):
        raise ConversionError(
            f"{path} is of {name}, not UNet2DModel, DiTTransformer2DModel, AutoencoderKL or "
            "AutoencoderTiny"
        )
    places = [folder / "scheduler", folder, folder.parent / "scheduler"]  # its own ones first
    scheduler = _first(places, "scheduler_config.json", source)
    root = folder.parent if folder.name in ("unet", "transformer") else folder
    index = read_index(root)
    convention, largest = read_scheduler(scheduler / "scheduler_config.json", index)
    is_unet = name == "UNet2DModel"
    network = "diffusers_unet" if is_unet else "diffusers_dit"
    arguments = _unet(config, path) if is_unet else _dit(config, path)
    size = config["sample_size"]
    channels = count(config.get("in_channels", 3 if is_unet else 4), f"{path}: in_channels")
    shape = (*(size if isinstance(size, list) else (size, size)), channels)
    arguments |= {"out_channels": shape[-1], "convention": describe_convention(convention)}
    blank = build(network, arguments, convention.head, convention.schedule, shape)
    tensors, weights = read_diffusers(folder)
    if not is_unet:
        tensors = _without_variance(tensors, config, arguments["patch"], channels)
    card = teacher_card(
        blank,
        method="diffusers",
        source=source,
        num_steps=num_steps,
        guided=not is_unet,
        pixels=channels in (1, 3) and not any(c in index or (root / c).is_dir() for c in CODECS),
        clip=None if largest is None else (-largest, largest),
    )
    return Conversion(from_torch(blank, tensors, weights), card)


def _first(folders: list[Path], file: str, source: Path) -> Path:
    """Finds the first folder that has the file."""
    for folder in folders:
        if (folder / file).is_file():
            return folder
    raise ConversionError(f"there is no {file} in {source}, nor where diffusers keeps it")


def _unet(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Makes the arguments of `DiffusersUNet`; a config's missing values are diffusers' defaults."""
    config = {k: "silu" if v == "swish" else v for k, v in config.items()}
    check(config, UNET_IS, path)
    if config.get("out_channels", 3) != config.get("in_channels", 3):
        raise ConversionError(f"{path}: out_channels must be in_channels")
    channels, down, up = (
        config[key] for key in ("block_out_channels", "down_block_types", "up_block_types")
    )
    known = {"DownBlock2D": "", "AttnDownBlock2D": "", "ResnetDownsampleBlock2D": "resnet"}
    known |= {"UpBlock2D": "", "AttnUpBlock2D": "", "ResnetUpsampleBlock2D": "resnet"}
    for block in (*down, *up):
        if block not in known:
            raise ConversionError(
                f"{path}: blocks of type {block} are not supported; {', '.join(known)} are"
            )
    attention = [block.startswith("Attn") for block in down]
    if attention != [block.startswith("Attn") for block in reversed(up)]:
        raise ConversionError(f"{path}: attention must be at the same scales, down and up")
    # Only blocks with attention heed downsample_type and upsample_type.
    ways = [
        [
            known[block] or (config.get(key) or "conv" if "Attn" in block else "conv")
            for block in types
        ]
        for key, types in (("downsample_type", down), ("upsample_type", up))
    ]
    groups = config.get("norm_num_groups", 32)
    scale_shift = config.get("resnet_time_scale_shift", "default") == "scale_shift"
    return {
        "channels": channels,
        "blocks": config.get("layers_per_block", 2),
        "attention": tuple(i for i, has in enumerate(attention) if has),
        "middle_attention": config.get("add_attention", True),
        "middle_groups": config.get("attn_norm_num_groups") or (0 if scale_shift else groups),
        "head_channels": config.get("attention_head_dim", 8) or 0,
        "groups": groups,
        "epsilon": config.get("norm_eps", 1e-5),
        "resample_down": ways[0][:-1],
        "resample_up": ways[1][:-1],
        "down_padding": config.get("downsample_padding", 1),
        "scale_shift": scale_shift,
        "wave_channels": channels[0],
        "embedding_channels": config.get("time_embedding_dim") or 4 * channels[0],
        "wave_shift": config.get("freq_shift", 0),
        "cosines_first": config.get("flip_sin_to_cos", True),
        "num_labels": config.get("num_class_embeds") or 0,
        "dropout": config.get("dropout", 0.0),
    }


def _dit(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Makes the arguments of `DiffusersDiT`; missing values are diffusers' defaults."""
    check(config, DIT_IS, path)
    return {
        "patch": config.get("patch_size", 2),
        "depth": config.get("num_layers", 28),
        "heads": config.get("num_attention_heads", 16),
        "head_channels": config.get("attention_head_dim", 72),
        "num_labels": config.get("num_embeds_ada_norm", 1000),
        "dropout": config.get("dropout", 0.0),
        "epsilon": config.get("norm_eps", 1e-5),
    }


def _without_variance(
    tensors: dict[str, Any], config: dict[str, Any], patch: int, channels: int
) -> dict[str, Any]:
    """Drops the variance's channels, which come after the mean's for each pixel of a patch."""
    total = config.get("out_channels") or channels
    last = {name: a for name, a in tensors.items() if name.startswith("proj_out_2.")}
    if all(len(a) == patch**2 * total for a in last.values()):
        last = {
            name: a.reshape(patch**2, total, *a.shape[1:])[:, :channels].reshape(-1, *a.shape[1:])
            for name, a in last.items()
        }
    return tensors | last
