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
from pdistill.features import load_extractor

ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# The other takes the way of quickstart with larger images, whose pictures want a TPU.
LAPTOPS = [path for path in PATHS if path.stem != "cifar10_tpu"]
OF_LAPTOPS = pytest.mark.parametrize("path", LAPTOPS, ids=lambda path: path.stem)


def environment(path):
    """That of a laptop: eight virtual devices, as tests have, are for the notebook of TPUs."""
    devices = 8 if path.stem.endswith("tpu") else 1
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags}


SMALL = """
for stage in config.stages:
    if "loop" in stage:
        stage["loop"].update(num_updates=2, save_every=2, log_every=2, substeps=1)
        stage["optimizer"]["warmup"] = 0
small = {"dit": {"features": 16, "depth": 1}, "unet": {"channels": 16}}
config.model.network.arguments.update(small[config.model.network.name])
config.update({"evaluation": {"num_samples": 32}})
"""


def hurried(source):
    """A cell with a few updates of small networks, whose results nothing is asserted of."""
    source = re.sub(r"^(?=experiment\.run)", SMALL, source, flags=re.MULTILINE)
    source = re.sub(r"\bnum_updates=[\d_]+", "num_updates=2", source)
    return re.sub(r"^( *)assert .*$", r"\1pass", source, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    # A growing generator compiles for a minute; guidance takes the ways of the others, and what
    # emoji samples is not made smaller.
    [
        pytest.param(p, marks=pytest.mark.slow)
        if p.stem in ("resolution", "guidance", "emoji")
        else p
        for p in LAPTOPS
    ],
    ids=[path.stem for path in LAPTOPS],
)
def test_notebook_in_a_hurry(path, tmp_path):
    """Anywhere, as on Colab: the kernel does not start in the checkout."""
    notebook = execute(path, tmp_path, hurried, environment(path))
    assert len(pictures(notebook)) == len(pictures(nbformat.read(path, 4)))
    assert not (tmp_path / "pdistill-source").exists()  # what is installed is not cloned


@pytest.mark.slow
@NOTEBOOKS
def test_notebook(path, tmp_path):
    whole = environment(path) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}

    def trained(source):
        """Emoji's second half too, which wants packages of npm and half an hour."""
        return source.replace("TRAIN = False", "TRAIN = True")

    assert len(pictures(execute(path, tmp_path, trained, whole))) >= 2


def committed(path):
    notebook = nbformat.read(path, as_version=4)
    files = [io.BytesIO(base64.b64decode(picture)) for picture in pictures(notebook)]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


@OF_LAPTOPS
def test_pictures_are_committed(path):
    assert len(committed(path)) >= 2
    assert all(image[..., :3].std() > 1 for image in committed(path))


@NOTEBOOKS
def test_nothing_but_pictures_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    keep_pictures(notebook)
    assert path.read_text() == nbformat.writes(notebook) + "\n"


def test_quickstart_ends_in_digits():
    """In its last picture a column holds a digit, which a classifier of real ones reads."""
    pixels = committed(ROOT / "notebooks/quickstart.ipynb")[-1][::6, ::6, :1]
    digits = pixels[1:, 1:].reshape(6, 9, 10, 9)[:, :8, :, :8].swapaxes(1, 2).reshape(60, 8, 8, 1)
    read = np.argmax(load_extractor("classifier")(digits)["logits"], axis=1)
    assert np.mean(read == np.tile(np.arange(10), 6)) > 0.8


@pytest.mark.parametrize("place", ["checkout", "elsewhere", "address"])
@NOTEBOOKS
def test_the_first_cell_installs_what_is_there(path, place, tmp_path, monkeypatch):
    """From the checkout that the notebook is in; elsewhere it says what it wants to be told."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        repository = tomllib.load(file)["project"]["urls"]["Repository"]
    notebook, ran = nbformat.read(path, as_version=4), []
    source = code_cells(notebook)[0].source
    assert f'REPOSITORY = "{repository}"\n' in source
    if place == "address":
        source = source.replace(repository, "https://example.org/pdistill")
    (tmp_path / "notebooks").mkdir()
    if place == "checkout":
        (tmp_path / "pdistill").mkdir()
        (tmp_path / "pdistill/__init__.py").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "equinox")
    magic = re.sub(r"^( *)[!%](.*)$", lambda m: f"{m[1]}ran.append(f{m[2]!r})", source, flags=re.M)
    if place == "elsewhere" and "YOUR_" in repository:
        with pytest.raises(AssertionError, match="give the address of pdistill's repository"):
            exec(magic, {"ran": ran})
        return
    exec(magic, {"ran": ran})
    folder = tmp_path if place == "checkout" else tmp_path / "notebooks/pdistill-source"
    if place == "address":
        clone, *ran = ran
        assert clone.endswith(" https://example.org/pdistill pdistill-source")
    [install] = ran
    assert re.fullmatch(rf'pip install --quiet "{folder}(\[tpu\])?"(  #.*)?', install)
