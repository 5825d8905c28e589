"""`tests/interop/sit_reference.py` is what the code of SiT, DiT and LightningDiT computes.

SIT_CHECKOUT, DIT_CHECKOUT and LIGHTNINGDIT_CHECKOUT say where copies of willisma/SiT,
facebookresearch/DiT and hustvl/LightningDiT are (947f95b, ed81ce2 and 2725fed were used). What
their networks need of timm is here again, in few lines.
"""

import importlib.util
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
sys.path.append(str(Path(__file__).parents[1] / "interop"))
import sit_reference  # noqa: E402


class PatchEmbed(torch.nn.Module):
    def __init__(self, size, patch, channels, width, bias=True):
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2
        self.proj = torch.nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(torch.nn.Module):
    def __init__(self, width, num_heads, qkv_bias):
        super().__init__()
        self.heads = num_heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x):
        batch, num, width = x.shape
        qkv = self.qkv(x).reshape(batch, num, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*qkv)
        return self.proj(mixed.transpose(1, 2).reshape(batch, num, width))


class Mlp(torch.nn.Module):
    def __init__(self, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1 = torch.nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = torch.nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def load(variable, file):
    """A module of a checkout, with what it imports and does not need left empty."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    folder = Path(os.environ[variable])
    timm = mock.MagicMock(PatchEmbed=PatchEmbed, Attention=Attention, Mlp=Mlp)
    names = ["timm", "timm.models", "timm.models.vision_transformer", "fairscale", "fairscale.nn"]
    names += [f"fairscale.nn.model_parallel{part}" for part in ("", ".initialize", ".layers")]
    spec = importlib.util.spec_from_file_location("theirs", folder / file)
    module = importlib.util.module_from_spec(spec)
    with (
        mock.patch.dict(sys.modules, dict.fromkeys(names, timm)),
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
        mock.patch.object(torch, "compile", lambda function: function),
    ):
        spec.loader.exec_module(module)
        for name in [n for n in sys.modules if n.split(".")[0] == "models"]:
            del sys.modules[name]
    return module


SMALL = {"hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 10}
PUBLISHED = {"use_rmsnorm": True, "use_rope": True, "use_swiglu": True}
CASES = {
    "sit": (
        ("SIT_CHECKOUT", "models.py", "SiT"), {"input_size": 8, "patch_size": 2},
        {"outputs": 8}, 1.0,
    ),
    "dit": (
        ("DIT_CHECKOUT", "models.py", "DiT"), {"input_size": 8, "patch_size": 2},
        {"outputs": 8}, 999.0,
    ),
    "lightningdit": (
        ("LIGHTNINGDIT_CHECKOUT", "models/lightningdit.py", "LightningDiT"),
        {"input_size": 4, "patch_size": 1, "in_channels": 6, **PUBLISHED},
        {"outputs": 6, "inputs": 6, "patch": 1, "rms": True, "rope": True, "swiglu": True}, 1.0,
    ),
    "lightningdit norms": (
        ("LIGHTNINGDIT_CHECKOUT", "models/lightningdit.py", "LightningDiT"),
        {"input_size": 8, "patch_size": 2, "in_channels": 4, "use_qknorm": True, "wo_shift": True},
        {"outputs": 4, "qk_norm": True, "shifts": False}, 1.0,
    ),
    "lightningdit rms norms": (
        ("LIGHTNINGDIT_CHECKOUT", "models/lightningdit.py", "LightningDiT"),
        {"input_size": 8, "patch_size": 2, "in_channels": 4, "use_qknorm": True,
         "use_rmsnorm": True, "use_rope": True},
        {"outputs": 4, "qk_norm": True, "rms": True, "rope": True}, 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("place", "theirs", "ours", "last"), CASES.values(), ids=CASES)
def test_networks(place, theirs, ours, last):
    variable, file, cls = place
    network = getattr(load(variable, file), cls)(**SMALL, **theirs).eval()
    tensors = sit_reference.state_dict(**ours)
    network.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()})
    rng = np.random.default_rng(0)
    size, channels = theirs["input_size"], theirs.get("in_channels", 4)
    x, t = rng.normal(size=(10, channels, size, size)), np.linspace(0, last, 10)
    label = np.arange(1, 11)
    with torch.no_grad(), mock.patch.object(torch.Tensor, "float", lambda a: a):
        output = network.double()(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(label))
    desired = sit_reference.network(tensors, x, t, label)[:, : output.shape[1]]
    error = np.abs(output.numpy() - desired).max() / np.abs(desired).max()
    assert error < (1e-6 if last == 1.0 else 1e-5)  # frequencies are float32, times 999
