"""The Inception network against torch-fidelity's and pytorch-fid's, with weights read by both."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pdistill.features import inception
from pdistill.runtime.torch_files import sha256

make = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "fixtures/inception/make.py"))
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, as torch.save writes it."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with np.load(make.PATH) as archive:
        make.save(make.random_weights(json.loads(str(archive["shapes"])), seed=1), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256_START", sha256(weights)[:8])
        return inception.load(weights)


def assert_same(actual, desired):
    """To 1e-4 of what differs between the images; rounding in float32 is 2e-5 of it."""
    differing = np.linalg.norm(desired - desired.mean(0))
    assert np.linalg.norm(actual - desired) < 1e-4 * differing


def test_torch_fidelity(weights, extractor):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    images = make.random_images(3, seed=1)
    theirs = make.run_torch_fidelity(make.torch_fidelity_network(weights), images)
    for name, actual in extractor(images).items():
        assert_same(actual, theirs[name])


def test_pytorch_fid(weights, extractor, monkeypatch):
    """The network alone: theirs resizes and scales images otherwise."""
    theirs = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    import torch

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    network = theirs.InceptionV3(resize_input=False, normalize_input=False).eval()
    images = np.random.RandomState(2).randint(0, 256, (3, 299, 299, 3)).astype(np.uint8)
    images[1:] //= 4  # noise alone has much the same features in every image
    x = torch.from_numpy((np.float32(images) - 128) / 128).permute(0, 3, 1, 2)
    assert_same(extractor(images)["features"], network(x)[0][:, :, 0, 0].numpy())
