"""Autoencoders against diffusers' and LightningDiT's, in float64."""

import functools
import json
import runpy
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparison import checkpoint, nhwc
from flax import linen as nn
from flax import traverse_util

import pdistill
from pdistill import convert
from pdistill import model as models
from pdistill.data.images import average, repeat
from pdistill.interop import ConversionError, convert_diffusers, convert_ldm
from pdistill.interop import codecs as codecs_of_diffusers
from pdistill.interop.diffusers_weights import WEIGHTS
from pdistill.interop.weights import TORCH_NAMES, from_torch
from pdistill.networks import AutoencoderKL, AutoencoderTiny, Posterior

FIXTURES = Path(__file__).parents[1] / "fixtures/interop"
FOLDER = FIXTURES / "codecs"
draw = runpy.run_path(str(FIXTURES / "random_weights.py"))["draw"]


def unpack(name, folder):
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(folder / name)
    return folder / name


def arrays_of(name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def ldm_tensors():
    arrays = arrays_of("ldm")
    shapes = [tuple(map(int, shape.split())) for shape in arrays["shapes"]]
    return {
        str(name): draw(str(name), shape, int(np.prod(shape[1:])) if len(shape) > 1 else 0)
        for name, shape in zip(arrays["names"], shapes, strict=True)
    }


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Every fixture's codec by name."""
    folder = tmp_path_factory.mktemp("codecs")
    found = {
        name: convert_diffusers(unpack(name, folder)).network for name in ("kl", "flux", "tiny")
    }
    other = {"loss.logvar": np.zeros(1, np.float32)}
    found["ldm"] = convert_ldm(checkpoint(folder / "ldm.pt", ldm_tensors() | other)).network
    return found


def error(actual, desired):
    return np.abs(np.asarray(actual) - desired).max() / desired.std()


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def run(codec, images, z):
    """Moments of images, and the image of z, as the decoder has it before any scale."""
    posterior = codec.encode(images)
    return *posterior, codec.decode(codec.latents(posterior._replace(mean=z)))


def check_parity(codec, arrays, dtype, bound):
    codec = jax.tree.map(lambda a: a.astype(dtype), codec)
    images, z = (jnp.asarray(nhwc(arrays[name]), dtype) for name in ("images", "z"))
    for name, a in zip(("mean", "logvar", "decoded"), run(codec, images, z), strict=True):
        assert a.dtype == dtype
        if name in arrays:
            assert error(a, nhwc(arrays[name])) < bound, name


@pytest.mark.parametrize("name", ["kl", "flux", "tiny", "ldm"])
def test_parity_in_float32(codecs, name):
    check_parity(codecs[name], arrays_of(name), jnp.float32, 2e-5)


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_parity_in_float64(codecs, name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # Flax promotes to float32
        check_parity(codecs[name], arrays_of(name), jnp.float64, 1e-9)


class Averages(nn.Module):
    """The fixture's in the place of an autoencoder: each tile's results are its own."""

    factor: int = 2
    latent_channels: int = 3
    image_channels: int = 3

    def encode(self, images):
        h = average(jnp.concatenate([images, 2 * images], -1), 2)
        mean, logvar = jnp.split(h - h.mean((1, 2), keepdims=True), 2, -1)
        return mean, logvar

    def decode(self, z):
        h = repeat(z, 2)
        return h - h.mean((1, 2), keepdims=True)


def test_tiles_of_large_images():
    """Blended as diffusers blends them, at sides that no number of tiles fills."""
    codec = pdistill.Codec({}, Averages(), (0.0,) * 3, (1.0,) * 3, tile=16)
    arrays = {name: nhwc(a).astype(np.float32) for name, a in arrays_of("tiles").items()}
    (mean, logvar), decoded, whole = jax.jit(
        lambda images, z: (codec.encode_tiled(images), codec.decode_tiled(z), codec.decode(z))
    )(arrays["images"], arrays["z"])
    assert error(mean, arrays["mean"]) < 1e-6
    assert error(logvar, arrays["logvar"]) < 1e-6
    assert error(decoded, arrays["decoded"]) < 1e-6
    assert error(whole, arrays["decoded"]) > 0.1


# Mean, deviation, first and last element, NCHW, of diffusers with weights made of their names.
GOLDENS = {
    "kl": (
        (2, 4, 6, 10), (0.072504, 0.418778, 0.186557, 0.408461),
        (-0.157786, 0.518730, 0.724792, 0.017982), (-0.126126, 0.687698, -0.344002, -0.245962),
    ),
    "tiny": (
        (2, 4, 3, 5), (-0.181998, 0.247023, 0.041894, -0.473656),
        None, (-0.416005, 0.897133, -0.662828, -0.661422),
    ),
}  # fmt: skip


def golden_weight(name, shape):
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if a.ndim > 1:
        return a / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(0.1) * a + np.float32(name.endswith("weight"))


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(codecs, name):
    codec = codecs[name]
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(codec.params).items():
        key = ".".join((*path[:-1], TORCH_NAMES.get(path[-1], path[-1])))
        shape = leaf.shape if leaf.ndim == 1 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
        convolution = path[-2] in ("quant_conv", "post_quant_conv", "conv_shortcut")
        tensors[key] = golden_weight(
            key, (*shape, 1, 1) if convolution and leaf.ndim > 1 else shape
        )
    codec = from_torch(codec.blank, tensors, "goldens")
    images, z = (
        jnp.asarray(nhwc(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)))
        for seed, shape in ((1, (2, 3, 12, 20)), (2, GOLDENS[name][0]))
    )
    for a, golden in zip(run(codec, images, z), GOLDENS[name][1:], strict=True):
        if golden:
            a = np.moveaxis(np.asarray(a), -1, 1)
            found = (a.mean(), a.std(ddof=1), a.flat[0], a.flat[-1])
            np.testing.assert_allclose(found, golden, atol=2e-6)


PUBLISHED = {
    "f8d4": (AutoencoderKL(), 83_653_863, 248),
    "f8d16": (AutoencoderKL(latent_channels=16, quant=False, post_quant=False), 83_819_683, 244),
    "f16d32": (
        AutoencoderKL((128, 128, 256, 256, 512), latent_channels=32, attention=(4,)),
        *(69_836_067, 342),
    ),
    "tiny": (AutoencoderTiny(), 2_445_063, 134),
    "tiny 16": (AutoencoderTiny(latent_channels=16), 2_458_899, 134),
}


@pytest.mark.parametrize(("module", "count", "tensors"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes_have_as_many_parameters(module, count, tensors):
    channels = module.latent_channels
    codec = pdistill.Codec(None, module, (0.0,) * channels, (1.0,) * channels)
    leaves = jax.tree.leaves(codec.shapes.params)
    assert (sum(leaf.size for leaf in leaves), len(leaves)) == (count, tensors)
    assert codec.factor == (16 if channels == 32 else 8)


# --- Scale, noise, directories --------------------------------------------------------------------


def edit(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


SCALES = {  # what a config says of the scale, and a network's latents of z = 2
    "default": ({}, 2 * 0.18215),
    "flux": ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, (2 - 0.1159) * 0.3611),
    "no shift": ({"scaling_factor": 0.5, "shift_factor": None}, 1.0),
    "statistics": (
        {"scaling_factor": 0.5, "latents_mean": [1.0] * 4, "latents_std": [4.0] * 4},
        (2 - 1) / 4 * 0.5,
    ),
}


@pytest.mark.parametrize(("change", "desired"), SCALES.values(), ids=SCALES)
def test_scale_of_the_latents(tmp_path, change, desired):
    folder = unpack("kl", tmp_path)
    edit(folder, **change)
    codec = convert_diffusers(folder).network
    z = jnp.full((1, 2, 3, 4), 2.0)
    latents = codec.latents(Posterior(z, 0 * z))
    np.testing.assert_allclose(latents, desired, rtol=1e-6)


def test_statistics_of_a_file(tmp_path):
    """As LightningDiT saves them, [1, c, 1, 1]."""
    mean, std = (np.float32(a).reshape(1, 3, 1, 1) for a in ([1, 2, 3], [0.5, 2, 4]))
    source = checkpoint(tmp_path / "ldm.pt", ldm_tensors())
    statistics = checkpoint(tmp_path / "latents_stats.pt", {"mean": mean, "std": std})
    codec = convert_ldm(source, statistics=statistics).network
    assert (codec.mean, codec.std) == ((1.0, 2.0, 3.0), (0.5, 2.0, 4.0))


def test_latents_are_drawn(codecs):
    """z of mean 1 and deviation 3, scaled; without a key their means."""
    codec = codecs["flux"]
    mean = jnp.ones((4, 40, 40, 6))
    posterior = Posterior(mean, jnp.full_like(mean, 2 * np.log(3)))
    drawn = np.asarray(codec.latents(posterior, jax.random.key(0)))
    # 38,400 draws: the standard error of the mean is 0.005 of the deviation, of that 0.004.
    assert drawn.std() == pytest.approx(3 * 0.3611, rel=0.02)
    assert drawn.mean() == pytest.approx((1 - 0.1159) * 0.3611, abs=0.02)
    np.testing.assert_allclose(codec.latents(posterior), (1 - 0.1159) * 0.3611, rtol=1e-6)


def test_from_a_folder_to_a_directory(tmp_path, capsys, codecs):
    folder, out = unpack("flux", tmp_path), tmp_path / "codec"
    convert.main(["--from=diffusers", f"--source={folder}", f"--out={out}"])
    assert "Codec(AutoencoderKL, f4d6, 49,255 parameters)" in capsys.readouterr().out
    codec = pdistill.load_codec(out)
    assert codec.blank == codecs["flux"].blank
    jax.tree.map(np.testing.assert_array_equal, codec.params, codecs["flux"].params)
    with pytest.raises(models.ModelError, match=r"holds a codec, .* pdistill\.load_codec"):
        pdistill.load(out)
    with pytest.raises(models.ModelError, match=f"no codec in {tmp_path}: there are {out}; give"):
        pdistill.load_codec(tmp_path)
    with pytest.raises(models.ModelError, match=f"no model in {tmp_path}: give a folder with"):
        pdistill.load(tmp_path)


def test_a_model_is_no_codec(plain, tmp_path):
    with pytest.raises(models.ModelError, match=r"holds a model, not a codec; .* pdistill\.load$"):
        pdistill.load_codec(plain)
    with pytest.raises(models.ModelError, match="no codec in"):
        pdistill.load_codec(tmp_path)


DAMAGED_CARDS = {
    "name": ({"codec": {"name": "vq", "arguments": {}}}, "codec must be one of autoencoder_kl"),
    "std": ({"std": [0.0] * 4}, "every std positive"),
    "mean": ({"mean": [0.0] * 5}, "mean and std must be 4 numbers each"),
    "tile": ({"tile": 12}, "tile must be a multiple of 16"),
    "checksum": ({"checksum": 1}, "its parameters are not those that were saved"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED_CARDS.values(), ids=DAMAGED_CARDS)
def test_damaged_cards(tmp_path, codecs, change, message):
    models.save_codec(tmp_path / "codec", codecs["tiny"], stage="tiny", method="diffusers")
    path = tmp_path / "codec/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(models.ModelError, match=message):
        pdistill.load_codec(tmp_path / "codec")


# --- Errors ---------------------------------------------------------------------------------------

WRONG = {
    "class": ({"_class_name": "AutoencoderDC"}, "is of AutoencoderDC, not UNet2DModel"),
    "activation": ({"act_fn": "relu"}, "act_fn='relu' is not supported, 'silu' is"),
    "blocks": (
        {"down_block_types": ["DownEncoderBlock2D", "SkipDownBlock2D"]},
        "blocks of type SkipDownBlock2D are not supported",
    ),
    "attention": (
        {"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]},
        "attention must be at the same scales",
    ),
    "tensor": ({"layers_per_block": 2}, "has no tensor 'decoder.up_blocks.0.resnets.2"),
    "unknown tensor": ({"use_quant_conv": False}, "has a tensor 'quant_conv."),
    "shape": ({"latent_channels": 8}, "has shape"),
    "no channels": ({"latent_channels": 0}, "latent_channels must be a whole number"),
    "scale": ({"scaling_factor": 0}, "scaling_factor must be positive"),
    "half": ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std go together"),
    "statistics": (
        {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3},
        "mean and std must be 4 numbers each",
    ),
    "deep": ({"layers_per_block": 10**6}, "has 2,000,000 blocks; it can have 1,000"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_configs(tmp_path, change, message):
    folder = unpack("kl", tmp_path)
    edit(folder, **change)
    with pytest.raises(ConversionError) as raised:
        convert_diffusers(folder)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kind", "module", "std"),
    [
        ("tiny", "AutoencoderTiny", AutoencoderTiny(), 1.0),
        ("kl", "AutoencoderKL", AutoencoderKL(channels=(64,), blocks=1), 1 / 0.18215),
    ],
)
def test_what_is_not_said_is_diffusers_default(tmp_path, monkeypatch, name, kind, module, std):
    """Of the tiny one that is TAESD. Only the config is read, as no file has such weights."""
    monkeypatch.setattr(codecs_of_diffusers, "from_torch", lambda blank, *_: blank)
    folder = unpack(name, tmp_path)
    (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
    codec = convert_diffusers(folder).network
    assert codec.module == module
    assert codec.std == pytest.approx(4 * (std,))


def test_wrong_configs_of_the_tiny_one(tmp_path):
    folder = unpack("tiny", tmp_path)
    edit(folder, num_encoder_blocks=[1, 10**6, 1])
    with pytest.raises(ConversionError, match="blocks; it can have 1,000"):
        convert_diffusers(folder)
    edit(folder, num_encoder_blocks=[1, 1, 2], encoder_block_out_channels=[8, 8, 16])
    with pytest.raises(ConversionError, match="all blocks must have as many channels"):
        convert_diffusers(folder)


def test_damaged_weights(tmp_path):
    folder = unpack("tiny", tmp_path)
    with pytest.raises(ConversionError, match="a codec has no sampling steps"):
        convert_diffusers(folder, num_steps=4)
    path = folder / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    name = "decoder.layers.5.weight"
    safetensors.numpy.save_file({k: a for k, a in tensors.items() if k != name}, path)
    with pytest.raises(ConversionError, match=f"has no tensor '{name}'"):
        convert_diffusers(folder)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConversionError, match=f"cannot read .*{WEIGHTS}"):
        convert_diffusers(folder)


def test_a_checkpoint_of_something_else(tmp_path):
    source = checkpoint(tmp_path / "other.pt", {"conv.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(SystemExit, match=r"error: .*no tensors of an autoencoder of latent-diff"):
        convert.main(["--from=ldm", f"--source={source}", f"--out={tmp_path / 'out'}"])
    tensors = ldm_tensors()
    del tensors["decoder.up.1.attn.0.q.weight"]
    with pytest.raises(ConversionError, match=r"has no tensor 'decoder\.up_blocks\.0\.attentions"):
        convert_ldm(checkpoint(tmp_path / "part.pt", tensors))


def test_images_and_latents_that_do_not_fit(codecs):
    codec = codecs["flux"]
    with pytest.raises(ValueError, match="must be multiples of 4 for this codec; got 12x18"):
        codec.encode(jnp.zeros((1, 12, 18, 3)))
    for encode in (codec.encode, codec.encode_tiled):
        with pytest.raises(ValueError, match=r"images must be numbers in \[-1, 1\].*; got uint8"):
            encode(jnp.zeros((1, 12, 16, 3), jnp.uint8))
    with pytest.raises(ValueError, match="takes images of 3 channels; got 1"):
        codec.encode_tiled(jnp.zeros((1, 12, 16, 1)))
    with pytest.raises(ValueError, match="latents have 6 channels; got 4: they are of another"):
        codec.decode(jnp.zeros((1, 3, 4, 4)))
