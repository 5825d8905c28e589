"""Against a network of the release's description in PyTorch, in checkpoints like the release's."""

import importlib.util
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import check_parity, each_damage
from flax import serialization, traverse_util

from pdistill.diffusion import CosineSchedule
from pdistill.interop import ConversionError, convert_official_pd

FOLDER = Path(__file__).parents[1] / "fixtures/interop"
SPEC = importlib.util.spec_from_file_location("random_weights", FOLDER / "random_weights.py")
random_weights = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(random_weights)


@pytest.fixture(scope="module")
def arrays():
    with np.load(FOLDER / "official_pd/both.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def params(arrays):
    """Parameters by their paths."""
    shapes = [tuple(map(int, shape.split())) for shape in arrays["shapes"]]

    def inputs(name, shape):
        if not name.endswith("kernel"):
            return 0
        return int(np.prod(shape[:2] if name.endswith("proj_out/kernel") else
                           shape[:3] if "conv" in name else shape[:1]))  # fmt: skip

    return {
        str(name): random_weights.draw(str(name), shape, inputs(name, shape))
        for name, shape in zip(arrays["names"], shapes, strict=True)
    }


@pytest.fixture
def write(params, tmp_path):
    """Writes a checkpoint: a train state in msgpack, of `params` or other ones."""

    def write(params=params, **state):
        tree = traverse_util.unflatten_dict(params, sep="/")
        state = {"step": 7, "ema_params": tree, "optimizer": {"momentum": {}}} | state
        path = tmp_path / "imagenet_8"
        path.write_bytes(serialization.msgpack_serialize(state))
        return path

    return write


def nchw(images):
    return np.moveaxis(images, -1, -3)


def test_parity(write, arrays):
    conversion = convert_official_pd(write(num_sample_steps=8), image_size=8)
    module = conversion.network.module
    assert conversion.network.head == "both"
    assert conversion.network.schedule == CosineSchedule()
    assert (module.channels, module.embedding_channels) == (32, 64)
    assert (module.multipliers, module.blocks) == ((1, 2), 1)
    assert (module.attention_sizes, module.head_channels) == ((4,), 16)
    assert (module.num_labels, conversion.card["num_labels"]) == (4, 4)
    assert conversion.card["num_steps"] == 8
    channels_first = {
        k: nchw(a) if k in ("z", "output", "noise", "trajectory") else a for k, a in arrays.items()
    }
    check_parity(conversion, channels_first, jnp.asarray(arrays["logsnr"]), "output")


def test_attention_that_is_stored_flat(write, params):
    """As an older Flax has it; the other axes of a parameter that is not flat tell the heads."""
    desired = convert_official_pd(write(), image_size=8)
    flat = {
        name: a.reshape(len(a), -1) if name.endswith(("q/kernel", "k/kernel", "v/kernel")) else a
        for name, a in params.items()
    }
    actual = convert_official_pd(write(flat), image_size=8)
    chex.assert_trees_all_equal(actual.network, desired.network)


def test_heads_of_three_channels(write, params):
    three = {k: a[..., :3] if k.startswith("conv_out") else a for k, a in params.items()}
    assert convert_official_pd(write(three), image_size=8).network.head == "x"
    eps = convert_official_pd(write(three), image_size=8, head="eps", num_steps=3)
    assert (eps.network.head, eps.card["num_steps"]) == ("eps", 3)
    with pytest.raises(ConversionError, match="3 channels out, which is not head='both'"):
        convert_official_pd(write(three), image_size=8, head="both")


def test_wrong_tensors(write, params):
    name = "up_0.block_1/conv2/kernel"
    missing = {k: a for k, a in params.items() if k != name}
    with pytest.raises(ConversionError, match=f"has no tensor '{name}'"):
        convert_official_pd(write(missing), image_size=8)
    with pytest.raises(ConversionError, match="has a tensor 'more/bias', which this network lacks"):
        convert_official_pd(write(params | {"more/bias": np.zeros(3)}), image_size=8)
    short = params | {name: params[name][:2]}
    with pytest.raises(ConversionError, match=rf"'{name}' has shape \[2, 3, 32, 32\], not \[3, 3"):
        convert_official_pd(write(short), image_size=8)
    turned = params | {"dense1/kernel": params["dense0/kernel"]}
    with pytest.raises(ConversionError, match=r"'dense1/kernel' has shape \[32, 64\], not"):
        convert_official_pd(write(turned), image_size=8)
    with pytest.raises(ConversionError, match="has no tensor 'conv_in/kernel'"):
        convert_official_pd(write({"dense0/bias": np.zeros(3)}), image_size=8)


def test_damaged_and_other_files(write):
    data = write().read_bytes()
    path = write()
    for wrong in (b"", b"<html>", data[:1000], data[:-1], serialization.msgpack_serialize([1])):
        path.write_bytes(wrong)
        with pytest.raises(ConversionError, match=r"cannot read .*imagenet_8 as a checkpoint"):
            convert_official_pd(path, image_size=8)


@each_damage
def test_damaged_numbers(write, params, damage, message):
    name = "dense1/kernel"
    path = write(params | {name: damage(params[name])})
    with pytest.raises(ConversionError, match=f"'{name}' {message}"):
        convert_official_pd(path, image_size=8)


@pytest.mark.parametrize("layer", ["down_{}.block_0/conv1/kernel", "down_0.block_{}/conv1/kernel"])
def test_a_name_that_claims_a_million_blocks(write, params, layer):
    path = write(params | {layer.format(999_999): np.zeros((3, 3, 32, 32), np.float32)})
    with pytest.raises(ConversionError, match=r"has no tensor 'down_\d+\.|blocks; it can have"):
        convert_official_pd(path, image_size=8)


def test_steps_that_no_checkpoint_has(write):
    with pytest.raises(ConversionError, match="num_sample_steps must be a whole number of at"):
        convert_official_pd(write(num_sample_steps=-8), image_size=8)
