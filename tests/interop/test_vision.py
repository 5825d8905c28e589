"""Image towers against transformers' numbers, in float64 and float32, and folders of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny_vision import CLIP, DINOV2, FOLDER, make, save_tower, tensors_of

from pdistill.features.vision import TOWERS
from pdistill.interop import ConversionError
from pdistill.interop.vision import image_encoder
from pdistill.networks import ImageEncoder

MODULES = {"dinov2": DINOV2, "dinov2_small": DINOV2, "clip": CLIP}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {name: save_tower(root / name, name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_parity(folders, name):
    """Position embeddings of fewer patches are interpolated as in DINOv2's own code."""
    encoder = image_encoder(folders[name], module=MODULES[name])
    images = make["images"](name)
    with np.load(FOLDER / f"{name}.npz") as arrays:
        desired = arrays["features"]
    assert desired.std() > 0.3
    assert np.abs(desired[0] - desired[1]).max() > 0.3
    run = jax.jit(ImageEncoder.__call__, compiler_options={"xla_backend_optimization_level": 0})
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), encoder)
        exact = jax.device_get(run(double, jnp.asarray(images, jnp.float64)))
    single = jax.device_get(run(encoder, images))
    assert (exact.dtype, single.dtype) == (np.float64, np.float32)
    assert np.abs(exact - desired).max() < 1e-9 * desired.std()
    assert np.abs(single - desired).max() < 2e-5 * desired.std()


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("dinov2_b", 222, 86_579_712),
        ("dinov2_l", 438, 304_367_616),
        ("clip_l336", 392, 304_293_888),
    ],
)
def test_published_sizes(name, tensors, parameters):
    shapes = jax.tree.leaves(ImageEncoder(None, TOWERS[name].module).shapes.params)
    assert (len(shapes), sum(leaf.size for leaf in shapes)) == (tensors, parameters)


# --- Folders --------------------------------------------------------------------------------------


def test_a_buffer_of_older_files(folders, tmp_path):
    ids = {"vision_model.embeddings.position_ids": np.arange(10)[None]}
    safetensors.numpy.save_file(tensors_of("clip") | ids, tmp_path / "model.safetensors")
    found, wanted = (image_encoder(f, module=CLIP).params for f in (tmp_path, folders["clip"]))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "has no tensor"),
        (lambda tensors: tensors.update(more=np.zeros(2, np.float32)), "has a tensor 'more'"),
    ],
)
def test_other_networks_are_refused(tmp_path, change, message):
    tensors = tensors_of("dinov2")
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=message):
        image_encoder(tmp_path, module=DINOV2)
