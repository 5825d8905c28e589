"""Small image towers with random parameters, in folders as Hugging Face has them."""

import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pdistill.features import vision
from pdistill.networks import ClipImage, Dinov2

FOLDER = Path(__file__).parent / "fixtures/interop/vision"
make = runpy.run_path(str(FOLDER / "make.py"))
DINOV2 = Dinov2(features=24, depth=3, heads=3, grid=5)
CLIP = ClipImage(features=24, hidden=40, depth=3, heads=3, grid=3, projection=20)


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """Tensors of one of the fixtures, by their published names."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        shapes = json.loads(str(arrays["shapes"]))
    return {key: make["draw"](key, tuple(shape)) for key, shape in shapes.items()}


def save_tower(folder: Path, name: str) -> Path:
    """A folder with the weights of one of the fixtures."""
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors_of(name), folder / "model.safetensors")
    return folder


def save_clip(folder: Path) -> Path:
    """A folder of a whole CLIP, with its tokenizer."""
    shutil.copytree(FOLDER.parent / "text/clip", folder)
    config = {"model_type": "clip"} | make["CLIP"]
    (folder / "config.json").write_text(json.dumps(config))
    return save_tower(folder, "clip")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes towers of a few layers, for small images, of those that are published."""
    for name, module in (("dinov2_b", DINOV2), ("clip_l336", CLIP)):
        tower = dataclasses.replace(vision.TOWERS[name], module=module, size=42)
        monkeypatch.setitem(vision.TOWERS, name, tower)
