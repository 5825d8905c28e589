"""A small text encoder with random parameters, in a folder as Hugging Face has them."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy

FOLDER = Path(__file__).parent / "fixtures/interop/text"
WEIGHTS = "model.safetensors"
make = runpy.run_path(str(FOLDER / "make.py"))
PROMPTS_WIDTH = make["CONFIGS"]["bert"]["hidden_size"]


def tensors_of(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of one of the configs of the fixtures, by their published names."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        shapes = [tuple(map(int, shape.split())) for shape in arrays["shapes"]]
        names = arrays["names"].tolist()
    other = f"{seed}" if seed else ""
    return {
        key: make["draw"](key.removeprefix("text_model.") + other, shape)
        for key, shape in zip(names, shapes, strict=True)
    }


def save_encoder(folder: Path, name: str, seed: int = 0) -> Path:
    """A folder as transformers saves it, or sentence-transformers."""
    kind = "bert" if name == "bert" else "clip"
    shutil.copytree(FOLDER / kind, folder)
    (folder / "config.json").write_text(json.dumps(make["CONFIGS"][name]))
    safetensors.numpy.save_file(tensors_of(name, seed), folder / WEIGHTS)
    if kind == "bert":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder
