"""Every notebook runs from a fresh kernel; trained whole, its assertions check what it shows."""

import base64
import io
import os
import re
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from notebooks.run import code_cells, execute, keep_pictures, pictures

ROOT = Path(__file__).parent.parent
NOTEBOOKS = pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)


def environment(path):
    """That of a laptop: eight virtual devices, as tests have, are for the notebook of TPUs."""
    devices = 8 if path.stem.endswith("tpu") else 1
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags}


def hurried(source):
    """A cell with a few updates in the place of all, whose results nothing is asserted of."""
    most = {"num_updates": 120, "save_every": 120, "log_every": 60}
    source = re.sub(
        rf"\b({'|'.join(most)})=([\d_]+)", lambda m: f"{m[1]}={min(int(m[2]), most[m[1]])}", source
    )
    return re.sub(r"^( *)assert .*$", r"\1pass", source, flags=re.MULTILINE)


@NOTEBOOKS
def test_notebook_in_a_hurry(path, tmp_path):
    """Anywhere, as on Colab: the kernel does not start in the checkout."""
    notebook = execute(path, tmp_path, hurried, environment(path))
    assert len(pictures(notebook)) == len(pictures(nbformat.read(path, 4)))
    assert not (tmp_path / "pdistill-source").exists()  # what is installed is not cloned


@pytest.mark.slow
@NOTEBOOKS
def test_notebook(path):
    execute(path, path.parent, str, environment(path) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"})


@NOTEBOOKS
def test_what_is_committed(path):
    """Pictures of a whole run, `notebooks/run.py`, and nothing else of it."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures(notebook)]
    assert len(images) >= 2
    assert all(image[..., :3].std() > 1 for image in images)
    assert path.stat().st_size < 400_000
    kept = [cell.outputs for cell in code_cells(notebook)]
    keep_pictures(notebook)
    assert [cell.outputs for cell in code_cells(notebook)] == kept
    assert path.read_text() == nbformat.writes(notebook) + "\n"


@NOTEBOOKS
def test_colab(path):
    """A badge opens this notebook of the repository, which its first cell clones and installs."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        repository = tomllib.load(file)["project"]["urls"]["Repository"]
    notebook = nbformat.read(path, as_version=4)
    colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({colab}/blob/main/notebooks/{path.name})" in notebook.cells[0].source.split("\n")[0]
    setup = code_cells(notebook)[0].source
    assert f"!git clone --quiet --depth 1 {repository} pdistill-source\n" in setup
    assert "%pip install --quiet ./pdistill-source" in setup
