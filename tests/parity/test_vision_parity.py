"""Image towers against transformers: the fixtures, and the published sizes with random weights."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored import assert_stored

from pdistill.features import load_extractor, vision

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
FOLDER = Path(__file__).parents[1] / "fixtures/interop/vision"
make = runpy.run_path(str(FOLDER / "make.py"))
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
CONFIGS = {
    "dinov2_b": {"image_size": 518},
    "dinov2_l": {"image_size": 518} | LARGE,
    "clip_l336": LARGE
    | {"intermediate_size": 4096, "image_size": 336, "patch_size": 14, "projection_dim": 768},
}


@pytest.mark.parametrize("name", make["SIDES"])
def test_fixtures(name):
    assert_stored(FOLDER / f"{name}.npz", make["compute"])


@pytest.mark.parametrize("name", CONFIGS)
def test_published_sizes(name, tmp_path):
    """Of images of 32 pixels a side, resized by Pillow."""
    torch.manual_seed(0)
    if name == "clip_l336":
        config = transformers.CLIPVisionConfig(**CONFIGS[name])
        network = transformers.CLIPVisionModelWithProjection(config)
    else:
        network = transformers.Dinov2Model(transformers.Dinov2Config(**CONFIGS[name]))
    network.eval().save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ours = load_extractor(name, weights=tmp_path)(images)["features"]

    tower = vision.TOWERS[name]
    size = tower.size, tower.size
    resized = [Image.fromarray(i).resize(size, Image.Resampling.BICUBIC) for i in images]
    x = (np.stack(resized) / 255 - tower.mean) / tower.std
    x = torch.from_numpy(np.float32(x)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if name == "clip_l336":
            theirs = network(x).image_embeds
            theirs /= theirs.norm(dim=-1, keepdim=True)
        else:
            make["resize_positions"](network, 16)
            theirs = network(x).pooler_output
    theirs = theirs.numpy()
    # Of what differs between images.
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs - theirs.mean(0))
