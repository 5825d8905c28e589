"""Weights in a folder of diffusers or transformers.

One file, shards with an index, or a variant of either.
"""

import re
from pathlib import Path

import numpy as np

from pdistill.interop.conversion import read_json
from pdistill.interop.weights import ConversionError, read_safetensors
from pdistill.runtime.torch_files import read_torch

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Files before safetensors, of diffusers and transformers.
OLD_FILES = {WEIGHTS: "diffusion_pytorch_model.bin", "model.safetensors": "pytorch_model.bin"}
# A variant is called by what is in the place of ".fp16" in NAME.fp16.safetensors.
ANY = r"((\.\w+)?\.safetensors|\.safetensors\.index(\.\w+)?\.json)"
# Names of attention's layers in older files.
OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def read_diffusers(folder: Path) -> tuple[dict[str, np.ndarray], Path]:
    """Reads the tensors of a network of diffusers by their newer names; as `read_weights`."""
    tensors, path = read_weights(folder, WEIGHTS)
    for old, new in OLD_NAMES.items():
        tensors = {name.replace(old, new): a for name, a in tensors.items()}
    return tensors, path


def read_weights(folder: Path, weights: str) -> tuple[dict[str, np.ndarray], Path]:
    """Reads the tensors of a network's folder.

    A variant, in half precision for instance, is read only where there is nothing else, and then
    PyTorch's old file.

    Args:
      weights: name of the file, if it is one and no variant.

    Returns:
      Tensors by name, and the path of their file or of the shards' index.

    Raises:
      ConversionError: there are no weights or several variants, a file is missing or damaged, or
        shards are not as their index says.
    """
    any_of_them = re.compile(re.escape(weights.removesuffix(".safetensors")) + ANY)
    found = sorted(path for path in folder.iterdir() if any_of_them.fullmatch(path.name))
    old = folder / OLD_FILES.get(weights, weights)
    if not found and old.exists():
        return read_torch(old), old
    if not found:
        raise ConversionError(
            f"there is no {weights} in {folder}, nor shards with an index, nor a variant, nor "
            f"{old.name}: get it, or save the model again with safe_serialization=True"
        )
    plain = [path for path in found if path.name in (weights, f"{weights}.index.json")]
    if not plain and len(found) > 1:
        raise ConversionError(
            f"{folder} has several variants, {', '.join(path.name for path in found)}: take all "
            "but one away"
        )
    path = (plain or found)[0]
    return _read_shards(path) if path.suffix == ".json" else read_safetensors(path), path


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an index, {"weight_map": {tensor: file}}."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise ConversionError(f"{index} must have a weight_map, from tensors to files beside it")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        shard = read_safetensors(index.parent / file)
        listed = {name for name, place in places.items() if place == file}
        if odd := sorted(listed ^ set(shard)):
            raise ConversionError(
                f"{index.parent / file} {'lacks' if odd[0] in listed else 'has'} {odd[0]!r}, "
                f"unlike {index.name} says; get both again"
            )
        tensors |= shard
    return tensors
