"""Against networks of guided-diffusion, as torch.save wrote them."""

import lzma
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import check_parity, each_damage
from test_torch_files import state_dict, storage, tensor, zipped

from pdistill.diffusion import DdpmSchedule
from pdistill.interop import ConversionError, adm, convert_adm
from pdistill.networks import Network
from pdistill.runtime.torch_files import read_torch
from pdistill.training.freezing import count

FOLDER = Path(__file__).parents[1] / "fixtures/interop/adm"
SMALL = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --learn_sigma True"
FLAGS = {
    "resnet": f"{SMALL} --attention_resolutions 4 --num_head_channels 32 --class_cond True "
    "--noise_schedule cosine --resblock_updown True --use_new_attention_order True",
    "conv": f"{SMALL} --attention_resolutions 8 --num_heads 4 --use_scale_shift_norm False",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Writes a fixture's state dict, with its name."""

    def weights(name):
        path = tmp_path_factory.mktemp("adm") / "network.pt"
        path.write_bytes(lzma.decompress((FOLDER / f"{name}.pt.xz").read_bytes()))
        return path

    return weights


@pytest.mark.parametrize("name", FLAGS)
def test_parity(weights, name):
    conversion = convert_adm(weights(name), flags=FLAGS[name])
    assert conversion.network.head == "eps"
    assert conversion.card["data"]["shape"] == (8, 8, 3)
    with np.load(FOLDER / f"{name}.npz") as arrays:
        arrays = dict(arrays)
    levels = conversion.network.schedule(jnp.asarray((arrays["step"] + 1) / 1000))
    check_parity(conversion, arrays, levels, "eps")


def test_the_learnt_variance_is_kept(weights):
    """Three more channels of the same network, and the sampler that heeds them."""
    path, flags = weights("conv"), FLAGS["conv"]
    dropped, kept = (convert_adm(path, flags=flags, variance=keep) for keep in (False, True))
    with np.load(FOLDER / "conv.npz") as arrays:
        z = jnp.asarray(np.moveaxis(arrays["z"], 1, -1)[:2])
    levels = kept.network.schedule(jnp.array([0.3, 0.8]))
    x_hat, fraction = jax.jit(Network.denoise_with_variance)(kept.network, z, levels)
    np.testing.assert_allclose(
        x_hat, jax.jit(Network.denoise)(dropped.network, z, levels), atol=1e-5
    )
    last = read_torch(path)["out.2.bias"]
    params = kept.network.params
    conv_out = {"kernel": 0 * params["conv_out"]["kernel"], "bias": jnp.asarray(last)}
    moved = kept.network.replace(params=params | {"conv_out": conv_out})
    _, constant = jax.jit(Network.denoise_with_variance)(moved, z, levels)
    np.testing.assert_allclose(constant[0, 0, 0], (last[3:] + 1) / 2, rtol=1e-6)
    assert fraction.shape == z.shape
    assert (kept.card["solver"], kept.card["num_steps"]) == ("iddpm", 250)  # as its authors do
    assert dropped.card["solver"] == "ddim"
    for wrong in (
        f"{flags} --predict_xstart True",
        flags.replace("learn_sigma True", "learn_sigma 0"),
    ):
        with pytest.raises(ConversionError, match="--variance is for a network of eps"):
            convert_adm(path, flags=wrong, variance=True)


@pytest.mark.parametrize(
    ("size", "multipliers"),
    [
        (64, (1, 2, 3, 4)),
        (128, (1, 1, 2, 3, 4)),
        (256, (1, 1, 2, 2, 4, 4)),
        (512, (0.5, 1, 1, 2, 2, 4, 4)),
    ],
)
def test_multipliers_of_each_size(size, multipliers):
    """Those of `create_model` in guided-diffusion."""
    network = adm.describe(adm.parse_flags(f"--image_size {size} --num_channels 64"))
    assert network.module.channels == tuple(64 * m for m in multipliers)


def test_published_flags():
    """Those of the 64x64 model, in guided-diffusion's README."""
    flags = (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
        "--image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --resblock_updown True "
        "--use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
    )
    network = adm.describe(adm.parse_flags(flags))
    assert network.module.channels == (192, 384, 576, 768)
    assert network.module.attention == (1, 2, 3)
    assert network.schedule == DdpmSchedule("cosine")
    # The published one has three more channels, for the variance.
    assert count(network.shapes) == 295_904_454 - 3 * (9 * 192 + 1)


WRONG_FLAGS = {
    "--image_size": "must be like '--image_size 64'",
    "--image_sise 64": "'image_sise' is not one of image_size, ",
    "--image_size big": "image_size must be int; it is 'big'",
    "--class_cond perhaps": "class_cond must be bool; it is 'perhaps'",
    "--image_size 32": "image_size=32 needs channel_mult",
    "--channel_mult 1,x": "must be numbers with commas",
    "--noise_schedule sqrt": "betas must be linear, scaled_linear or cosine; got 'sqrt'",
    "--num_heads_upsample 2": "num_heads_upsample must be num_heads",
    "--diffusion_steps 1000000000": "num must be in 2 .. 100,000",
    "--image_size 100000 --channel_mult 1": "each in 1 .. 16,384",
    "--num_res_blocks 1000000": "has 4,000,000 blocks; it can have 1,000",
    "--dropout nan": "dropout must be a finite number; got nan",
}


@pytest.mark.parametrize(("flags", "message"), WRONG_FLAGS.items(), ids=lambda x: x[:20])
def test_wrong_flags(weights, flags, message):
    with pytest.raises(ConversionError, match=re.escape(message)):
        convert_adm(weights("conv"), flags=flags)


CHANGED = {
    "--num_channels 64": "'conv_in.bias' has shape [32], not [64]",
    "--class_cond True": "has no tensor 'class_embedding.weight'",
    "--resblock_updown True": "has no tensor 'down_blocks.0.downsamplers.0.conv1",
    "--learn_sigma False": "'conv_out.bias' has shape [6], not [3]",
}


@pytest.mark.parametrize(("change", "message"), CHANGED.items(), ids=lambda x: x[:20])
def test_weights_that_are_not_what_the_flags_say(weights, change, message):
    with pytest.raises(ConversionError) as error:
        convert_adm(weights("conv"), flags=f"{FLAGS['conv']} {change}")
    assert message in str(error.value)


def test_damaged(weights):
    path = weights("conv")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"cannot read .*network\.pt: "):
        convert_adm(path, flags=FLAGS["conv"])


STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "b1": "BoolStorage"}


def torch_file(arrays):
    """Writes arrays as torch.save does, each in a storage of its own."""
    views, storages = {}, []
    for name, a in arrays.items():
        a = np.ascontiguousarray(a)
        of = storage(name, a.size, STORAGES[a.dtype.str[1:]])
        views[name] = tensor(0, a.shape, tuple(s // a.itemsize for s in a.strides), of)
        storages.append((name, a.size, a.tobytes()))
    return zipped(state_dict(**views), storages)


@each_damage
def test_damaged_numbers(weights, damage, message):
    path, name = weights("conv"), "time_embed.0.weight"
    arrays = read_torch(path)
    path.with_name("damaged.pt").write_bytes(torch_file(arrays | {name: damage(arrays[name])}))
    with pytest.raises(ConversionError, match=f"'time_embedding.linear_1.weight' {message}"):
        convert_adm(path.with_name("damaged.pt"), flags=FLAGS["conv"])
