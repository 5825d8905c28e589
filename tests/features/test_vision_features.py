"""DINOv2 and CLIP as extractors: what they make of images, and where their weights come from."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_vision import save_tower, shrink

from pdistill.evaluation import Evaluator, Reference
from pdistill.features import load_extractor, vision
from pdistill.interop.vision import image_encoder
from pdistill.methods.parts.distance import Distance
from pdistill.runtime.torch_files import WeightsError

RNG = np.random.default_rng(0)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Towers of a few layers at small sizes, and a cache without weights."""
    shrink(monkeypatch)
    monkeypatch.setenv("PDISTILL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {
        "dinov2_b": save_tower(root / "dinov2", "dinov2"),
        "clip_l336": save_tower(root / "clip", "clip"),
    }


def pillow(image, size, mean, std):
    """An image as the published code gives it to a tower."""
    resized = Image.fromarray(image).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(resized) / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "shape", "cut", "statistics"),
    [
        ("dinov2_b", (20, 32, 3), np.s_[:, :], IMAGENET),
        ("dinov2_b", (50, 50, 1), np.s_[:, :], IMAGENET),
        ("clip_l336", (20, 33, 3), np.s_[:, 6:26], OPENAI),
        ("clip_l336", (51, 44, 1), np.s_[3:47], OPENAI),
    ],
)
def test_features_of_the_published_preprocessing(folders, name, shape, cut, statistics):
    """All of an image squeezed for DINOv2, its central square for CLIP; features of unit length."""
    images = RNG.integers(0, 256, (3, *shape), np.uint8)
    extractor = load_extractor(name, weights=folders[name])
    shown = images[..., 0] if shape[2] == 1 else images
    x = np.float32([pillow(image[cut], 42, *statistics) for image in shown])
    desired = image_encoder(folders[name], module=vision.TOWERS[name].module)(x)
    desired = np.asarray(desired, np.float64)
    if name == "clip_l336":
        desired /= np.linalg.norm(desired, axis=1, keepdims=True)
    found = extractor(images)["features"]
    assert np.abs(found - desired).max() < 2e-5 * desired.std()


def test_the_published_sizes_of_images(monkeypatch):
    monkeypatch.undo()
    sizes = {name: (tower.size, tower.square) for name, tower in vision.TOWERS.items()}
    assert sizes == {
        "dinov2_b": (224, False), "dinov2_l": (224, False), "clip_l336": (336, True),
    }  # fmt: skip


def test_places_of_the_weights(folders, tmp_path, monkeypatch):
    """An argument, the environment, the cache."""
    fingerprint = load_extractor("dinov2_b", weights=folders["dinov2_b"]).fingerprint
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/dinov2_b").symlink_to(folders["dinov2_b"])
    assert load_extractor("dinov2_b").fingerprint == fingerprint
    monkeypatch.setenv("PDISTILL_CLIP_L336", str(folders["clip_l336"]))
    assert load_extractor("clip_l336").fingerprint != fingerprint


@pytest.mark.parametrize("name", ["dinov2_l", "clip_l336"])
def test_without_weights(name, tmp_path):
    repository = vision.TOWERS[name].repository
    message = rf"there is no folder .*cache/{name} .*get model.safetensors .*{repository} and put"
    with pytest.raises(WeightsError, match=message):
        load_extractor(name)


def test_weights_of_another_network(folders):
    message = (
        r"model.safetensors has no tensor .*; get model.safetensors of .*/facebook/dinov2-base"
    )
    with pytest.raises(WeightsError, match=message):
        load_extractor("dinov2_b", weights=folders["clip_l336"])


def test_distances_rise_with_noise(folders):
    """Recorded as any other Frechet and kernel distance."""
    slopes = np.add.outer(5 * np.arange(32), 3 * np.arange(32))[None, ..., None]
    images = slopes * RNG.uniform(0, 0.7, (60, 1, 1, 3)) + RNG.uniform(0, 60, (60, 1, 1, 3))
    noise = RNG.normal(size=images.shape)
    metrics = ("fd_dinov2_b", "kid_dinov2_b", "precision_recall")
    options = {"dinov2_b": {"weights": folders["dinov2_b"]}}
    reference = Reference("slopes", images.astype(np.uint8), cached=False)
    evaluator = Evaluator([reference], metrics, options=options)
    found = []
    for std in (5, 15, 45):
        rows = evaluator.measure([np.clip(images + std * noise, 0, 255).astype(np.uint8)])
        found.append({row["metric"]: row["value"] for row in rows})
        assert {row["features"] for row in rows} == {"dinov2_b"}
    for metric in ("fd_dinov2_b", "kid_dinov2_b"):
        values = [values[metric] for values in found]
        assert values == sorted(values), metric
        assert values[2] > 2 * values[0]
    assert {"precision", "recall"} < found[0].keys()


def test_as_a_loss(folders, monkeypatch):
    monkeypatch.setenv("PDISTILL_DINOV2_B", str(folders["dinov2_b"]))
    distance = Distance.load("dinov2_b")
    a, b = RNG.uniform(-1, 1, (2, 2, 8, 8, 3)).astype(np.float32)
    value, slope = jax.jit(jax.value_and_grad(lambda a: distance(a, b).sum()))(a)
    assert 0.01 < value < 8
    assert np.abs(slope).max() > 1e-4
