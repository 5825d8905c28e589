"""Pickles of Karras et al. 2024 (EDM2), magnitude-preserving networks, and their latents' codec.

They are read as EDM's, see `edm`: nothing in them is executed.
"""

import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.diffusion import KarrasSchedule
from pdistill.interop.codecs import convert_codec
from pdistill.interop.conversion import Conversion, build, converter, read_json, teacher_card
from pdistill.interop.edm import Module, read_snapshot
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.model import build_blank, find, guided_card, read_card
from pdistill.networks.published.conventions import Edm, describe_convention

# Names of arguments: the published network's and ours.
NAMES = {
    "model_channels": "channels",
    "channel_mult": "multipliers",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_sizes",
    "channels_per_head": "head_channels",
    "dropout": "dropout",
}
WIDTHS = ("channel_mult_noise", "channel_mult_emb")
# Arguments that have one value here, theirs.
FIXED = {
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "resample_filter": [1, 1],
}
IGNORED = ("img_resolution", "img_channels", "label_dim")

NUM_STEPS = 32  # of their sampler
# Scale of the latents of sd-vae-ft-mse, on pixels in [0, 1]: (z - MEAN) / STD / 2.
MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
# Published weights, 1 + w, by the names of a network's and its guide's files, those for the FID.
WEIGHTS = {
    ("img512-xs-2147483-0.045", "img512-xs-uncond-2147483-0.045"): 1.4,
    ("img512-s-2147483-0.025", "img512-xs-uncond-2147483-0.025"): 1.4,
    ("img512-m-2147483-0.030", "img512-xs-uncond-2147483-0.030"): 1.2,
    ("img512-l-1879048-0.015", "img512-xs-uncond-2147483-0.015"): 1.2,
    ("img512-xl-1342177-0.020", "img512-xs-uncond-2147483-0.020"): 1.2,
    ("img512-xxl-0939524-0.015", "img512-xs-uncond-2147483-0.015"): 1.2,
    ("img512-s-2147483-0.070", "img512-xs-0134217-0.125"): 2.1,
    ("img512-xxl-0939524-0.075", "img512-m-0268435-0.155"): 2.05,
    ("img512-s-uncond-2147483-0.070", "img512-xs-uncond-0134217-0.110"): 2.85,
    ("img64-s-1073741-0.045", "img64-xs-0134217-0.110"): 1.7,
}


@converter
def convert_edm2(
    source: str | Path, *, guide: str | Path | None = None, num_steps: int | None = None
) -> Conversion:
    """Reads a network's pickle, or the folder of sd-vae-ft-mse, the codec of its latents.

    The card says to sample as they do: by EDM's solver, in 32 steps, without clipping; and the
    guidance weight that was published for this pair of networks, if one was.

    Args:
      guide: directory of a converted model that guides it.

    Raises:
      ConversionError: the file is damaged, has something in it that is not inert data, or is of
        another network or codec; or the guide does not fit.
    """
    if Path(source).is_dir():
        if guide is not None or num_steps is not None:
            raise ConversionError("a codec has no guide and no sampling steps; leave them out")
        return _codec(Path(source))
    snapshot = read_snapshot(source)
    precond = snapshot["ema"]
    if precond.name != "Precond":
        raise ValueError(f"it has {precond.name}, not EDM2's Precond; EDM's is for --from=edm")
    unet, state = precond.parts["unet"], precond.state
    if unet.name != "UNet":
        raise ValueError(f"it has {unet.name}, not UNet")
    size, channels = int(state["img_resolution"]), int(state["img_channels"])
    convention = Edm(float(state["sigma_data"]))
    arguments = _arguments(unet) | {
        "out_channels": channels,
        "num_labels": int(state["label_dim"]),
        "convention": describe_convention(convention),
    }
    blank = build("edm2_unet", arguments, convention.head, KarrasSchedule(), (size, size, channels))
    card = teacher_card(
        blank,
        method="edm2",
        source=source,
        num_steps=num_steps or NUM_STEPS,
        pixels=not _of_latents(snapshot.get("encoder"), channels),
        clip=None,
    )
    card["solver"] = "edm"
    if guide is not None:
        card |= _guided(blank, card["stage"], guide)
    tensors = unet.tensors()  # those of the loss's weights, logvar, are beside it
    del snapshot, precond, unet, state  # so that each array goes once it is converted
    return Conversion(from_torch(blank, tensors, source), card)


def _arguments(unet: Module) -> dict[str, Any]:
    """Translates the network's arguments into ours."""
    given = unet.arguments
    for key, value in given.items():
        if value != FIXED.get(key, value) or key not in (*NAMES, *WIDTHS, *FIXED, *IGNORED):
            raise ValueError(f"UNet with {key}={reprlib.repr(value)} is not supported")
    arguments = {ours: given[theirs] for theirs, ours in NAMES.items() if theirs in given}
    multipliers = given.get("channel_mult", (1, 2, 3, 4))
    noise, embedding = (given.get(key) for key in WIDTHS)
    return arguments | {
        "wave_multiplier": noise or multipliers[0],
        "embedding_multiplier": embedding or max(multipliers),
    }


def _of_latents(encoder: Any, channels: int) -> bool:
    """Whether a network is of latents, by the encoder that is pickled with it."""
    if encoder is None:
        return channels not in (1, 3)
    name = encoder.name if isinstance(encoder, Module) else type(encoder).__name__
    if name == "StandardRGBEncoder":
        return False
    if name != "StabilityVAEEncoder":
        raise ValueError(f"its encoder is {name}, not StabilityVAEEncoder or StandardRGBEncoder")
    scale, bias = (encoder.state[key].array() for key in ("scale", "bias"))
    wanted = 0.5 / np.array(STD), -0.5 * np.array(MEAN) / np.array(STD)
    if not all(np.allclose(a, b, rtol=1e-5) for a, b in zip((scale, bias), wanted, strict=True)):
        raise ValueError(
            f"its encoder scales latents by {scale} and adds {bias}, which is not what EDM2's does"
        )
    return True


def _guided(blank: Any, name: str, guide: str | Path) -> dict[str, Any]:
    """Entries of the card of a network called `name` that a model guides."""
    card = read_card(find(guide))
    blank.guided_by(build_blank(card))  # raises for one that does not fit
    pair = tuple(n.removeprefix("edm2-").removesuffix(".pkl") for n in (name, card["stage"]))
    entries = guided_card(guide)
    if pair in WEIGHTS:
        entries["published"] = {"guidance": round(WEIGHTS[pair] - 1, 6)}
    return entries


def _codec(folder: Path) -> Conversion:
    """Reads the autoencoder, and gives it EDM2's pixels and statistics."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise ConversionError(
            f"{folder / 'config.json'} is of {config.get('_class_name')}, not AutoencoderKL; give "
            "the folder of sd-vae-ft-mse, or a network's pickle"
        )
    conversion = convert_codec(folder, config)
    codec = conversion.network.replace(mean=MEAN, std=tuple(2 * std for std in STD))
    codec = codec.replace(module=codec.module.clone(unit_pixels=True)).checked()
    return Conversion(codec, conversion.card | {"method": "edm2"})
