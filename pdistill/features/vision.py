"""DINOv2 and CLIP's image tower as extractors, with weights from folders of Hugging Face.

Images are resized as by the published code, of FD-DINOv2 (Stein et al. 2023, dgm-eval) and of CMMD
(Jayasumana et al. 2024).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.features.base import NetworkExtractor, fingerprint
from pdistill.features.resizing import resize
from pdistill.networks import ClipImage, Dinov2, ImageEncoder, TextEncoder
from pdistill.runtime.files import cache_dir, in_home
from pdistill.runtime.torch_files import WeightsError

CLIP = "clip_l336"


@dataclasses.dataclass(frozen=True)
class Tower:
    """A published image tower, and the images that it takes.

    Attributes:
      repository: its name on huggingface.co. files: names of those that are needed.
      module: the network.
      size: pixels a side of its images.
      square: the central square of an image is cut out; else all of it is squeezed into a square.
      mean, std: mean and deviation of its training's pixels in [0, 1], by channel.
      unit: features have unit length.
    """

    repository: str
    files: str
    module: nn.Module
    size: int
    square: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    unit: bool


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
DINOV2 = {"files": "model.safetensors", "size": 224, "square": False, "unit": False} | IMAGENET
TOWERS = {
    "dinov2_b": Tower("facebook/dinov2-base", module=Dinov2(), **DINOV2),
    "dinov2_l": Tower(
        "facebook/dinov2-large", module=Dinov2(features=1024, depth=24, heads=16), **DINOV2
    ),
    CLIP: Tower(
        "openai/clip-vit-large-patch14-336",
        "model.safetensors or pytorch_model.bin, and config.json and tokenizer.json for clip_score",
        ClipImage(),
        size=336,
        square=True,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        unit=True,
    ),
}


def load(name: str, weights: str | Path | None = None) -> NetworkExtractor:
    """Loads the extractor of a tower in TOWERS, from its `find_folder`.

    Raises:
      WeightsError: the weights are not there, damaged, or another network's.
    """
    # What reads weights of others is above this package.
    from pdistill.interop.vision import image_encoder

    folder = find_folder(name, weights)
    try:
        return extractor(name, image_encoder(folder, module=TOWERS[name].module))
    except ValueError as error:
        raise WeightsError(f"{error}; {_remedy(name)}") from error


def load_text_tower(weights: str | Path | None = None) -> TextEncoder:
    """Loads CLIP's text tower, from the folder of its image tower.

    Raises:
      WeightsError: a file is not there, damaged, or another network's.
    """
    from pdistill.interop.text import text_encoder

    folder = find_folder(CLIP, weights)
    try:
        return text_encoder(folder)
    except ValueError as error:
        raise WeightsError(f"{error}; {_remedy(CLIP)}") from error


def find_folder(name: str, weights: str | Path | None = None) -> Path:
    """Finds a tower's folder: `weights`, or PDISTILL_<NAME> of the environment, or in the cache.

    Raises:
      WeightsError: it is not there.
    """
    named = weights or os.environ.get(_variable(name))
    folder = in_home(str(named)) if named else cache_dir() / name
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder} with the weights; {_remedy(name)}")
    return folder


def extractor(name: str, encoder: ImageEncoder) -> NetworkExtractor:
    """Makes the extractor of a tower in TOWERS, with any parameters."""
    tower, blank = TOWERS[name], encoder.replace(params=None)

    def apply(params: Any, images: Array) -> dict[str, Array]:
        features = blank.replace(params=params)(preprocess(images, tower))
        if tower.unit:
            features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
        return {"features": features}

    shape = "central square" if tower.square else "whole image"
    return NetworkExtractor(
        name=name,
        apply=apply,
        params=encoder.params,
        preprocessing=(
            f"{shape} to {tower.size}x{tower.size} by Pillow's BICUBIC; {tower.repository}'s mean "
            "and deviation; grey as three equal channels"
        ),
        fingerprint=fingerprint(encoder.params),
        channels=(1, 3),
        batch_size=32,
    )


def preprocess(images: Array, tower: Tower) -> Array:
    """Makes uint8 [B, H, W, 1 or 3] what a tower takes, float32 [B, size, size, 3].

    Floats in [0, 255] too, which are not rounded.
    """
    height, width = images.shape[1:3]
    if tower.square:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, top : top + side, left : left + side]
    x = resize(images, tower.size).astype(jnp.float32) / 255
    x = (x - jnp.float32(tower.mean)[None, None, None]) / jnp.float32(tower.std)[None, None, None]
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def _variable(name: str) -> str:
    return f"PDISTILL_{name.upper()}"


def _remedy(name: str) -> str:
    """Says how the weights can be had."""
    tower = TOWERS[name]
    return (
        f"get {tower.files} of https://huggingface.co/{tower.repository} and put them into "
        f"{cache_dir() / name}, or say where they are in {_variable(name)}"
    )
