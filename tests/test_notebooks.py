"""Every notebook runs from a fresh kernel; trained whole, its assertions check what it shows."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"


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


def run(path, change=str, **variables):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks cleared"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.source = change(cell.source)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=environment(path) | variables)
    assert all(cell.execution_count for cell in code)
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2


PATHS = sorted(FOLDER.glob("*.ipynb"))
LARGE = "cifar10_tpu"  # takes the way of quickstart with larger images


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem == LARGE else p for p in PATHS],
    ids=[path.stem for path in PATHS],
)
def test_notebook_in_a_hurry(path):
    run(path, hurried)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook(path):
    run(path, JAX_DISABLE_MOST_OPTIMIZATIONS="0")
