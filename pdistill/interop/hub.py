"""Folders for model hubs, with model.safetensors, config.json and a model card.

They are written from models and read back. config.json is model.json. A codec is in codec/ and a
guide in guide/, in the same form, the scale of prompts in text/. A parameter's name in
model.safetensors is its path, joined by "/": names of layers have dots in them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from pdistill.interop.conversion import (
    CODEC,
    GUIDE,
    TEXT,
    Conversion,
    converter,
    guide_card,
    read_json,
)
from pdistill.model import FORMAT, Model, build_blank, check_card, describe
from pdistill.model.card import codec_identity, is_ours
from pdistill.model.codecs import describe_codec
from pdistill.model.store import read_codec, read_guide, read_params
from pdistill.model.text import read_prompt_encoder
from pdistill.runtime.arrays import checksum
from pdistill.runtime.temporary import replacing
from pdistill.runtime.terminal import format_count
from pdistill.samplers import format_steps

README = """\
---
library_name: pdistill
pipeline_tag: {task}
tags:
- pdistill
- jax
- diffusion
- distillation
---

# {title}

A diffusion model that generates {shape} images in {steps}: `{network}`, method `{method}`.

```python
import jax, pdistill

images = pdistill.load("."{own_code}).sample(jax.random.key(0), num=16{label})
```

| | |
|---|---|
{rows}
"""

# What a model's folder has, with the rows that `benchmarks.zoo` puts there.
WRITTEN = {"model.safetensors", "config.json", "README.md", "rows.json", CODEC, GUIDE, TEXT}
# Ends of names of fixed frequencies: by 2^-9 of them angles of hundreds of radians turn.
EXACT = ("freqs", "phases")
METHODS = {  # for people
    "ctm": "consistency trajectory model",
    "direct": "direct distillation",
    "dmd": "distribution matching",
    "flow_map": "flow map",
    "gan": "fine-tuned as a GAN",
    "guided": "guided distillation",
    "lowdiff": "LowDiff",
    "multi_student": "several students",
    "pagoda": "PaGoDA",
    "progressive": "progressive distillation",
    "teacher": "teacher",
}


def write_folder(directory: str | Path, model: Model, dtype: str = "float32") -> None:
    """Writes a model's folder whole or not at all, in the place of another one if there is one.

    Args:
      dtype: number format of the file, "float32" or "bfloat16"; the latter rounds the parameters,
        but for the fixed frequencies of an embedding of noise levels.

    Raises:
      ValueError: there is a folder with something else in it, which would be lost.
    """
    directory, card = Path(directory), model.card
    codec, guide = model.network.codec, model.network.guide
    if other := sorted(_others(directory)):
        raise ValueError(
            f"{directory} has {', '.join(other[:3])}{' ...' * (len(other) > 3)} in it, which a "
            "model's folder would replace; give a new folder"
        )
    with replacing(directory) as temporary:
        if codec:
            about = {"format": FORMAT, "stage": card["stage"], "method": "codec"}
            about |= describe_codec(codec)
            _write_tensors(temporary / CODEC, codec.params, about, dtype)
            card = card | {"codec": {"path": CODEC} | codec_identity(temporary / CODEC)}
        if guide:
            about = {"format": FORMAT} | guide_card(card, guide) | describe(guide)
            rounded = _write_tensors(temporary / GUIDE, guide.params, about, dtype)
            card = card | {"guide": {"path": GUIDE, "checksum": rounded}}
        if model.prompts:
            card = card | {"text": card["text"] | {"path": TEXT}}
        _write_tensors(temporary, model.network.params, card, dtype)
        if model.prompts:
            model.prompts.save(temporary / TEXT)
        (temporary / "README.md").write_text(_readme(model, temporary), "utf-8")


def _others(directory: Path) -> set[str]:
    """Names in a folder of what `write_folder` did not write."""
    if not directory.exists():
        return set()
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a new folder")
    found = {path.name for path in directory.iterdir()}
    return found - WRITTEN if is_ours(directory / "config.json") else found


def _write_tensors(folder: Path, params: Any, card: dict[str, Any], dtype: str) -> int:
    """Writes model.safetensors and config.json; returns the checksum of what is read back."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {
        name: np.asarray(a, a.dtype if name.endswith(EXACT) else dtype, order="C")
        for name, a in flat.items()
    }
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "flax"})
    wide = {name: tensors[name].astype(array.dtype) for name, array in flat.items()}
    card = card | {"checksum": checksum(traverse_util.unflatten_dict(wide, sep="/"))}
    (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n")
    shutil.copymode(folder / "config.json", path)  # safetensors writes for its owner's eyes only
    return card["checksum"]


def title(model: Model) -> str:
    """Says what a model is: "digits, 4 evaluations, progressive distillation"."""
    about = model.card["data"].get("name", "").partition(":")[0] or model.card["stage"]
    nfe = model.sampling.nfe
    method = METHODS.get(model.card["method"], model.card["method"])
    return f"{about}, {format_count(nfe, 'evaluation')}, {method}"


def _names_own_code(folder: Path) -> bool:
    """Whether a card in a folder names a network, a codec or a schedule as module:Class."""
    cards = map(read_json, folder.rglob("config.json"))
    parts = [card.get(part) or {} for card in cards for part in ("network", "codec", "schedule")]
    while parts:
        part = parts.pop()
        if ":" in part.get("name", ""):
            return True
        inner = part.get("arguments", {}).get("network")
        parts += [inner] * isinstance(inner, dict)
    return False


def _readme(model: Model, folder: Path) -> str:
    """Fills in the model card of what is written to a folder."""
    card, steps = model.card, format_steps(model.sampling.num_steps)
    keys = ("stage", "solver", "num_steps", "head", "schedule", "data", "guidance", "parent")
    known = list(model.prompts.known) if model.prompts else []
    prompt = f", prompt={json.dumps(known[0] if known else 'a prompt')}"
    rows = [f"| {key} | `{json.dumps(card.get(key))}` |" for key in (*keys, "versions")]
    return README.format(
        title=title(model),
        shape=" x ".join(map(str, model.image_shape)),
        steps=format_count(steps, "step"),
        network=card["network"]["name"],
        method=card["method"],
        task="text-to-image" if model.prompts else "unconditional-image-generation",
        label=", label=0" if model.network.num_labels else prompt if model.prompts else "",
        rows="\n".join(rows),
        own_code=", own_code=True" if _names_own_code(folder) else "",
    )


@converter
def read_folder(source: str | Path) -> Conversion:
    """Reads a folder that `write_folder` wrote; its codec, guide and text may lie elsewhere.

    Raises:
      ConversionError: a file is missing, damaged or not of the card's network.
    """
    source = Path(source)
    card = read_json(source / "config.json")
    check_card(card, source / "config.json")
    network = read_params(source, build_blank(card), card)
    if card.get("guide"):
        network = network.guided_by(read_guide(source, card, read_params))
    if card.get("codec"):
        network = network.replace(codec=read_codec(source, card))
    prompts = read_prompt_encoder(source, card)
    _ = Model(network, card).sampling  # raises if it cannot be sampled
    return Conversion(network, card, prompts)
