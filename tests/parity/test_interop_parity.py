"""The fixtures that CI compares with are what the original networks compute today.

EDM's, guided-diffusion's and LightningDiT's code is not on a package index: EDM_CHECKOUT,
ADM_CHECKOUT and LIGHTNINGDIT_CHECKOUT say where copies of NVlabs/edm, openai/guided-diffusion and
hustvl/LightningDiT are.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
FOLDER = Path(__file__).parents[1] / "fixtures/interop"


def load_make(kind):
    spec = importlib.util.spec_from_file_location(f"make_{kind}", FOLDER / kind / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return make


def compare(kind, name, computed, rtol=1e-4, atol=1e-5):
    with np.load(FOLDER / kind / f"{name}.npz") as stored:
        assert sorted(stored) == sorted(computed)
        for key, array in computed.items():
            if stored[key].dtype.kind == "U":
                np.testing.assert_array_equal(stored[key], array)
            else:
                scale = np.abs(stored[key]).max()
                np.testing.assert_allclose(stored[key], array, rtol=rtol, atol=atol * scale)


def checkout(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return os.environ[variable]


@pytest.mark.parametrize("name", ["ddpm", "adm", "dit"])
def test_diffusers(name):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    make = load_make("diffusers")
    compare("diffusers", name, make.compute(*make.build(name)))


@pytest.mark.parametrize("name", ["ddpmpp_edm", "ddpmpp_vp", "ncsnpp_ve", "adm_edm"])
def test_edm(name, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    make = load_make("edm")
    compare("edm", name, make.compute(*make.build(name, checkout("EDM_CHECKOUT"))))


@pytest.mark.parametrize("name", ["resnet", "conv"])
def test_adm(name, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    make = load_make("adm")
    compare("adm", name, make.compute(*make.build(name, checkout("ADM_CHECKOUT"))))


def test_official_pd():
    compare("official_pd", "both", load_make("official_pd").compute())


@pytest.mark.parametrize("name", ["kl", "flux", "tiny", "tiles", "ldm"])
def test_codecs(name):
    """In float64 on both sides."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    make = load_make("codecs")
    if name == "tiles":
        computed = make.compute_tiles()
    elif name == "ldm":
        computed = make.compute(make.build_ldm(checkout("LIGHTNINGDIT_CHECKOUT")))
    else:
        computed = make.compute(make.build(name))
    compare("codecs", name, computed, rtol=1e-9, atol=1e-10)
