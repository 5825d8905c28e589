"""EDM2's networks and codec against NumPy, in float64; and files that are not as they should be."""

import functools
import json
import re
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import nhwc
from edm2_reference import Sizes, denoised, heun, pickled, vae_encoder
from ml_collections import ConfigDict
from test_codecs import arrays_of, error, run, unpack
from test_edm import unpacked
from test_torch_files import program, value
from tiny_experiment import LOOP

import pdistill
from pdistill import convert
from pdistill.cli.config_file import load_config
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.interop import ConversionError, convert_edm, convert_edm2, write_folder
from pdistill.interop.edm2 import MEAN, STD, WEIGHTS
from pdistill.model import ModelError, save_codec
from pdistill.networks import AutoencoderKL, Conditioning, Network
from pdistill.runtime.files import read_jsonl
from pdistill.training.freezing import count

SMALL = Sizes()
GOLDEN = Sizes(side=16, channels=32, head=32, labels=10)
LEVELS = np.geomspace(0.002, 80, 10)
in_float64 = jax.enable_x64  # as a context


def draw(sizes, seed=0, dtype=np.float32):
    """Tensors of lengths that no network has after training; both gains are not zero."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.3, 3)
    return {
        name: np.asarray(rng.normal(size=shape) * (scale if shape else 1) + (not shape), dtype)
        for name, shape in sizes.shapes.items()
    }


def fill(sizes):
    """The tensors of a golden value, made of their names and shapes alone."""
    tensors = {}
    for name, shape in sizes.shapes.items():
        rng = np.random.default_rng(zlib.crc32(f"unet.{name}".encode()))
        a = rng.standard_normal(shape).astype(np.float32)
        a = a / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.1 * a
        gain = 0.7 if name.endswith("emb_gain") else 1.0
        tensors[name] = np.asarray(a if shape else gain, np.float32)
    return tensors


def converted(path, sizes, tensors, *, encoder=None, **options):
    arguments = options.pop("arguments", sizes.arguments)
    path.write_bytes(pickled(sizes, tensors, encoder=encoder, **arguments))
    return convert_edm2(path, **options)


def images(sizes, num, seed=0):
    return np.random.default_rng(seed).normal(size=(num, sizes.images, sizes.side, sizes.side))


def ours(network, x, sigma, labels):
    """D(x; sigma) as `denoised`."""
    scale = np.sqrt(1 + sigma**2)[:, None, None, None]
    told = Conditioning(label=jnp.asarray(labels))
    z, logsnr = jnp.asarray(nhwc(x / scale)), jnp.asarray(-2 * np.log(sigma))
    return np.moveaxis(np.asarray(jax.jit(Network.denoise)(network, z, logsnr, told)), -1, 1)


def check_parity(path, sizes, tensors, x, sigma, labels):
    """Compares D of a converted network with NumPy's, and returns it."""
    network = converted(path / "network.pkl", sizes, tensors).network
    with in_float64(True):
        actual = ours(wide(network), x, sigma, labels)
    desired = denoised(sizes, tensors, x, sigma, labels)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-9)
    return actual


def wide(network):
    return jax.tree.map(lambda a: a.astype(jnp.float64), network)


@pytest.mark.parametrize("labels", [3, 0])
def test_parity(tmp_path, labels):
    sizes = Sizes(labels=labels)
    x = images(sizes, 10) * np.hypot(LEVELS, 0.5)[:, None, None, None]
    told = np.arange(10) % (labels + 1)  # the last is none
    check_parity(tmp_path, sizes, draw(sizes), x, LEVELS, told)


def test_the_published_codes_numbers(tmp_path):
    """Mean, deviation, first and last element, with weights made of their names."""
    sigma = np.array([0.3, 5.0])
    noise = np.random.default_rng(1).standard_normal((2, 4, 16, 16)).astype(np.float32)
    x = sigma[:, None, None, None] * noise
    d = check_parity(tmp_path, GOLDEN, fill(GOLDEN), x, sigma, np.array([3, 10]))
    numbers = d.mean(), d.std(ddof=1), d.flat[0], d.flat[-1]
    np.testing.assert_allclose(numbers, (-0.005058, 0.373147, -0.181967, 0.421823), atol=6e-7)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A network and a smaller one that guides it: {name: (directory, sizes, tensors)}."""
    folder, found = tmp_path_factory.mktemp("edm2"), {}
    sizes = {"xs": SMALL, "s": Sizes(channels=8)}
    names = {"xs": "xs-0134217-0.125", "s": "s-2147483-0.070"}
    for seed, (name, size) in enumerate(sizes.items()):
        tensors = draw(size, seed, np.float16)
        source = folder / f"edm2-img512-{names[name]}.pkl"
        data = pickled(size, tensors, encoder=vae_encoder(), **size.arguments)
        source.write_bytes(data)
        guide = [f"--guide={folder / 'xs'}"] * (name == "s")
        convert.main(["--from=edm2", f"--source={source}", f"--out={folder / name}", *guide])
        found[name] = folder / name, size, tensors
    return found


def test_published_weights():
    """Those of the presets in `generate_images.py` of NVlabs/edm2, by network and guide."""
    by_size = {
        tuple("-".join(name.split("-")[:2]) for name in pair): weight
        for pair, weight in WEIGHTS.items()
        if "-uncond-" in pair[1] and "-uncond-" not in pair[0]
    }
    sizes = {"xs": 1.4, "s": 1.4, "m": 1.2, "l": 1.2, "xl": 1.2, "xxl": 1.2}
    assert by_size == {(f"img512-{size}", "img512-xs"): w for size, w in sizes.items()}
    others = [
        w for pair, w in WEIGHTS.items() if "-uncond-" not in pair[1] or "-uncond-" in pair[0]
    ]
    assert others == [2.1, 2.05, 2.85, 1.7]  # autoguidance: S, XXL, S without labels, 64 pixels


def test_the_card_has_the_published_settings(models):
    card = pdistill.load(models["s"][0]).card
    assert (card["solver"], card["num_steps"], card["clip"]) == ("edm", 32, None)
    assert card["guidance"] == [0.0, None]
    assert card["published"] == {"guidance": 1.1}  # theirs, 2.1, is of D_guide + 2.1 (D - D_guide)
    assert card["guide"]["path"] == str(models["xs"][0])
    assert card["data"]["scale"] == "latents"
    own = pdistill.load(models["xs"][0])
    assert own.guidance_range is None
    assert "published" not in own.card


def test_a_folder_for_hubs(models, tmp_path):
    """Its gains are numbers, arrays of no axes."""
    model = pdistill.load(models["xs"][0])
    write_folder(tmp_path / "folder", model)
    chex.assert_trees_all_equal(pdistill.load(tmp_path / "folder").network, model.network)


def test_the_published_sampler_with_a_guide(models):
    """EDM's steps from the same noise, of two networks from half-precision files; 32 in a card."""
    (directory, *large), (_, *small) = models["s"], models["xs"]
    model = pdistill.load(directory)
    noise, labels, w = images(SMALL, 2), np.array([2, 0]), model.card["published"]["guidance"]
    with in_float64(True):
        network = wide(model.network)
        told = Conditioning(label=jnp.asarray(labels), guidance=jnp.full(2, w))
        sample = jax.jit(functools.partial(model.sampling_with(8).run, key=None))
        actual = sample(network, told, z_init=jnp.asarray(nhwc(noise)))

    def guided(x, sigma):
        weaker = denoised(*small, x, sigma, labels)
        return weaker + (1 + w) * (denoised(*large, x, sigma, labels) - weaker)

    np.testing.assert_allclose(actual, nhwc(heun(guided, noise, 8)), rtol=0, atol=1e-8)


def test_gradients_are_those_of_the_normalised_weights(tmp_path):
    """Against differences of NumPy's; every parameter but the waves' frequencies learns."""
    tensors = draw(SMALL, 3)
    network = converted(tmp_path / "network.pkl", SMALL, tensors).network
    x, sigma, labels = images(SMALL, 2), np.array([0.2, 3.0]), np.array([1, 2])
    directions = draw(SMALL, 4)
    for name in ("emb_fourier.freqs", "emb_fourier.phases"):
        directions[name] *= 0
    along = converted(tmp_path / "network.pkl", SMALL, directions).network

    def loss(network, x):
        scale = jnp.sqrt(1 + jnp.asarray(sigma) ** 2)
        z = x / scale[:, None, None, None]
        told = Conditioning(label=jnp.asarray(labels))
        return jnp.sum(jnp.sin(network.denoise(z, -2 * jnp.log(jnp.asarray(sigma)), told)))

    with in_float64(True):
        network, along = wide(network), wide(along)
        gradient = jax.jit(jax.grad(loss))(network, jnp.asarray(nhwc(x)))
        slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient.params, along.params)))
    still = {name for name, a in gradient.params.items() if not jax.tree.leaves(a)[0].any()}
    assert still == {"emb_fourier.freqs", "emb_fourier.phases"}

    def value_at(h):
        moved = {name: a.astype(float) + h * directions[name] for name, a in tensors.items()}
        return np.sum(np.sin(denoised(SMALL, moved, x, sigma, labels)))

    assert slope == pytest.approx((value_at(1e-5) - value_at(-1e-5)) / 2e-5, rel=1e-6)


def test_the_papers_config_runs_to_its_end(tmp_path, finished):
    """sCD from converted networks on a codec's latents, of random weights: of digits, 8 x 8."""
    sizes, options = Sizes(labels=10), {}
    for seed, name in enumerate(("teacher", "guide")):
        source, options[name] = tmp_path / f"{name}.pkl", str(tmp_path / name)
        data = pickled(sizes, draw(sizes, seed), encoder=vae_encoder(), **sizes.arguments)
        source.write_bytes(data)
        convert.main(["--from=edm2", f"--source={source}", f"--out={options[name]}"])
    module = AutoencoderKL((8, 8), image_channels=1, blocks=1, groups=4, unit_pixels=True)
    codec = pdistill.Codec(None, module, MEAN, STD, tile=8)
    codec = jax.jit(codec.init)(jax.random.key(0))
    options["codec"] = str(tmp_path / "codec")
    save_codec(options["codec"], codec, stage="codec", method="edm2")
    plain = as_plain(load_config("imagenet512_edm2_scd:imported")) | options
    plain["data"] = {"name": "digits"}
    plain["mesh"] = {}
    plain["evaluation"] |= {
        "metrics": ["fd_pixels"], "num_samples": 32, "batch_size": 32, "guidance": [0.4],
    }  # fmt: skip
    plain["stages"][0]["measured_at"] = [2]
    plain["stages"][1] |= {"measured_at": [2], "loop": LOOP}
    workdir = finished(ConfigDict(plain))
    rows = read_jsonl(workdir / "results.jsonl")
    found = {
        (row["stage"], row["nfe"], row["solver"], row["guidance"], row.get("gamma")) for row in rows
    }
    assert found == {("teacher", 6, "edm", 0.4, None), ("scd", 2, "gamma", 0.4, 1.0)}
    teacher, student = (pdistill.load(workdir / name) for name in ("teacher", "scd"))
    assert teacher.image_shape == student.image_shape == (8, 8, 1)
    converted = pdistill.load(options["teacher"], codec=options["codec"])  # as it was converted
    assert converted.image_shape == (8, 8, 1)
    assert converted.network.codec.std == STD
    guided = pdistill.load(options["teacher"], guide=options["guide"]).network
    jax.tree.map(np.testing.assert_array_equal, teacher.network.replace(codec=None), guided)
    assert student.network.guide is None
    assert student.guidance_range == (0, 1)
    assert "guide" not in student.card


@pytest.mark.slow
def test_the_papers_config_has_the_published_size(tmp_path):
    module = AutoencoderKL((4,) * 4, blocks=1, groups=2, unit_pixels=True)
    codec = pdistill.Codec(None, module, MEAN, STD, tile=512)
    codec = jax.jit(codec.init)(jax.random.key(0))
    save_codec(tmp_path / "codec", codec, stage="codec", method="edm2")
    config = as_plain(load_config("imagenet512_edm2_scd")) | {"codec": str(tmp_path / "codec")}
    runs = plan(parse(config), (512, 512, 3))
    assert count(runs["teacher"].network.params) == 280_212_837 - 128 + 2 * 192
    assert runs["scd"].network.shape == (64, 64, 4)
    assert runs["scd"].image_shape == (512, 512, 3)


# --- The codec ------------------------------------------------------------------------------------


def test_the_codec_has_their_pixels_and_statistics(tmp_path):
    """Of pixels in [0, 1]; .5 (z - mean) / std of each channel."""
    folder, arrays = unpack("kl", tmp_path), arrays_of("kl")
    convert.main(["--from=edm2", f"--source={folder}", f"--out={tmp_path / 'codec'}"])
    codec = pdistill.load_codec(tmp_path / "codec")
    mean, _, decoded = run(codec, 2 * nhwc(arrays["images"]) - 1, nhwc(arrays["z"]))
    assert error(mean, nhwc(arrays["mean"])) < 2e-5
    assert error((decoded + 1) / 2, nhwc(arrays["decoded"])) < 2e-5
    z = pdistill.networks.Posterior(jnp.array([[[[5.81, 3.25 + 4.62, 0.12, -2.15]]]]), 0)
    np.testing.assert_allclose(codec.latents(z)[0, 0, 0], [0, 0.5, 0, 0], atol=1e-6)
    for message, *options in (
        ("a codec has no guide and no sampling steps", "--num_steps=2"),
        ("is of UNet2DModel, not AutoencoderKL",),
    ):
        with pytest.raises(SystemExit, match=message):
            convert.main(["--from=edm2", f"--source={folder}", f"--out={tmp_path / 'b'}", *options])
        (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))


# --- Files that are not what they should be -------------------------------------------------------


def refused(path, data, message, convert=convert_edm2):
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=message):
        convert(path)


def test_other_files(tmp_path):
    path, arguments = tmp_path / "network.pkl", SMALL.arguments
    tensors = draw(SMALL)
    whole = pickled(SMALL, tensors, **arguments)
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        refused(path, whole[:length], r"cannot read .*network\.pkl: ")
    for wrong, message in (
        (unpacked("ddpmpp_edm"), "it has EDMPrecond, not EDM2's Precond; EDM's is for --from=edm"),
        (program(value({"a": 1})), "holds no network, nor a dictionary with one as 'ema'"),
        (whole.replace(b"conv_res0", b"conv_res9"), "has no tensor .*conv_res0.weight"),
        (whole.replace(b"sigma_data", b"sigma_date"), "it lacks 'sigma_data'"),
    ):
        refused(path, wrong, message)
    refused(path, whole, "it has EDM2's Precond; give --from=edm2", convert_edm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "Transformer"}, "it has Transformer, not UNet"),
        ({"clip_act": 128}, "UNet with clip_act=128 is not supported"),
        ({"channel_mult": [1, 3]}, r"has shape \[8, 8\], not \[12, 12\]"),
        (
            {"encoder": vae_encoder(times=2.0)},
            "its encoder scales latents by .* is not what EDM2's",
        ),
        ({"encoder": vae_encoder("Other")}, "its encoder is Other, not StabilityVAEEncoder"),
    ],
    ids=str,
)
def test_other_networks(tmp_path, changes, message):
    data = pickled(SMALL, draw(SMALL), **SMALL.arguments | changes)
    refused(tmp_path / "network.pkl", data, message)


def test_numbers_that_are_not_finite(tmp_path):
    tensors = draw(SMALL, dtype=np.float16)
    tensors["out_conv.weight"][0, 0] = np.inf
    data = pickled(SMALL, tensors, **SMALL.arguments)
    refused(tmp_path / "network.pkl", data, "a number of 'out_conv.weight' is not finite")


def test_guides_that_do_not_fit(models, tmp_path):
    path, data = tmp_path / "network.pkl", pickled(SMALL, draw(SMALL), **SMALL.arguments)
    path.write_bytes(data)
    other = Sizes(labels=5)
    source = tmp_path / "other.pkl"
    source.write_bytes(pickled(other, draw(other), **other.arguments))
    out = tmp_path / "other"
    convert.main(["--from=edm2", f"--source={source}", f"--out={out}"])
    with pytest.raises(ConversionError, match="its guide takes 5 labels, it 3"):
        convert_edm2(path, guide=out)
    with pytest.raises(ConversionError, match=f"no model in {re.escape(str(tmp_path))}/none"):
        convert_edm2(path, guide=tmp_path / "none")
    with pytest.raises(ModelError, match="its guide takes 5 labels, it 3"):
        pdistill.load(models["s"][0], guide=out)
