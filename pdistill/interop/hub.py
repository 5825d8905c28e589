"""Folders for model hubs, with model.safetensors, config.json and a model card.

They are written from models and read back. config.json is model.json. A parameter's name in
model.safetensors is its path, joined by "/": names of layers have dots in them.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import traverse_util

from pdistill.interop.conversion import Conversion, converter, read_json
from pdistill.interop.weights import ConversionError, from_flat, read_safetensors
from pdistill.model import Model, build_blank, check_card
from pdistill.runtime.arrays import checksum
from pdistill.runtime.temporary import replacing
from pdistill.samplers import format_steps

README = """\
---
library_name: pdistill
pipeline_tag: unconditional-image-generation
tags:
- pdistill
- jax
- diffusion
- distillation
---

# {stage}

A diffusion model that generates {shape} images in {steps}: `{network}`, method `{method}`.

```bash
python -m pdistill.convert --from=safetensors --source=. --out=model
```

```python
import jax, pdistill

images = pdistill.load("model").sample(jax.random.key(0), num=16{label})
```

| | |
|---|---|
{rows}
"""


def write_folder(directory: str | Path, model: Model) -> None:
    """Writes a model's folder whole or not at all, in the place of another one if there is one."""
    directory = Path(directory)
    flat = traverse_util.flatten_dict(model.network.params, sep="/")
    tensors = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    with replacing(directory) as temporary:
        temporary.mkdir(parents=True)
        safetensors.numpy.save_file(
            tensors, temporary / "model.safetensors", metadata={"format": "flax"}
        )
        (temporary / "config.json").write_text(json.dumps(model.card, indent=2) + "\n")
        (temporary / "README.md").write_text(_readme(model))


def _readme(model: Model) -> str:
    """Fills in the model card."""
    card, steps = model.card, format_steps(model.sampling.num_steps)
    keys = ("solver", "num_steps", "head", "schedule", "data", "guidance", "parent", "versions")
    rows = [f"| {key} | `{json.dumps(card.get(key))}` |" for key in keys]
    return README.format(
        stage=card["stage"],
        shape=" x ".join(map(str, model.image_shape)),
        steps=f"{steps} step{'' if steps == 1 else 's'}",
        network=card["network"]["name"],
        method=card["method"],
        label=", label=0" if model.network.num_labels else "",
        rows="\n".join(rows),
    )


@converter
def read_folder(source: str | Path) -> Conversion:
    """Reads a folder that `write_folder` wrote.

    Raises:
      ConversionError: a file is missing, damaged or not of the card's network.
    """
    source = Path(source)
    card = read_json(source / "config.json")
    check_card(card, source / "config.json")
    blank = build_blank(card)
    path = source / "model.safetensors"
    network = from_flat(blank, read_safetensors(path), path)
    if checksum(network.params) != card["checksum"]:
        raise ConversionError(
            f"{path} does not hold the parameters that config.json tells of; get both files again"
        )
    _ = Model(network, card).sampling  # raises if it cannot be sampled
    return Conversion(network, card)
