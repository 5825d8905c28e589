"""The fixture that CI compares with is what PyTorch computes today."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
FOLDER = Path(__file__).parents[1] / "fixtures/discriminator"


def test_fixture_is_what_pytorch_computes():
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with np.load(FOLDER / "projected.npz") as archive:
        stored = dict(archive)
    for name, array in make.compute().items():
        np.testing.assert_allclose(stored[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
