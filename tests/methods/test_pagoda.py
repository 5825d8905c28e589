"""PaGoDA: latents against closed forms, growth, what is frozen, and the losses."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict
from planning import TEACHER, plan_of, stage
from stepping import run, same
from tiny_experiment import leaves, tiny_pagoda

import pdistill
from pdistill import diffusion, experiment
from pdistill import model as models
from pdistill.configs import digits_pd
from pdistill.data import Dataset, load_dataset, to_float
from pdistill.data.columns import keep_origin
from pdistill.data.images import average, repeat
from pdistill.data.records import DataError
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.experiment.cards import trainable_fraction
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.interop.stablehlo import export_sampler
from pdistill.methods import Pagoda
from pdistill.methods.columns import Latents, Pairs
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.networks import NOTHING, AutoencoderTiny, Codec, Network, UNet
from pdistill.runtime.files import read_json, read_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.training import PRESETS, LoopConfig, Optimizer, partition

SCHEDULE = CosineSchedule()
ADAM = Optimizer(1e-3, b1=0.0, b2=0.99, clip_norm=0.0)
MODULE = UNet(
    1, channels=8, embedding_channels=16, multipliers=(1, 2), blocks=1, attention_sizes=()
)
NOISE = (4, 4, 1)
BASE = Network(None, MODULE, "v", SCHEDULE, NOISE)


@pytest.fixture(scope="module")
def teacher():
    """A network without zeros."""
    return drawn(BASE, seed=0)


def grown(*channels):
    """A network that has grown levels of so many channels."""
    return BASE.with_module({"grown": channels})


def drawn(network, seed=1):
    """A network of any numbers: what it begins with need not be compiled."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), network.shapes)


def judging(**changes):
    judge = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)
    judge = dataclasses.replace(judge, **changes)
    return Adversary(judges=(judge,), optimizer=ADAM, r1=0.0)


def pagoda(levels=1, **changes):
    settings = {"optimizer": ADAM, "adversary": judging(), "grown": (8,) * levels}
    return Pagoda(**settings | changes)


FROZEN = pagoda(fixed="pagoda", layer="conv_out/kernel")


def begin(method, teacher):
    init = lambda teacher: method.init(jax.random.key(0), teacher=teacher)  # noqa: E731
    return jax.jit(init)(teacher)


def batch(levels=1, num=8):
    image_key, latent_key = jax.random.split(jax.random.key(5))
    side = 4 * 2**levels
    return {
        "image": jax.random.uniform(image_key, (num, side, side, 1), minval=-1),
        "latent": jax.random.normal(latent_key, (num, *NOISE)),
    }


# --- latents --------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """v of independent pixels N(0, 0.5^2): equivariant to mirroring."""

    num_labels: int = 0

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        self.param("none", nn.initializers.zeros, ())
        x_hat = Gaussian(0.0, 0.5).denoise(z, logsnr)
        return diffusion.v_from_x(z, x_hat, logsnr)


def pixels(*shape):
    return Network({"none": jnp.zeros(())}, Pixels(), "v", SCHEDULE, shape)


@pytest.mark.parametrize(("num_steps", "bound"), [(20, 3e-2), (40, 8e-3), (80, 2e-3)])
def test_the_gain_of_the_encoder(x64, num_steps, bound):
    """docs/methods/pagoda.md, B1: the ratio of the standard deviations; second order."""
    x = jnp.array([[0.3], [-1.0]])
    found = Latents(num_steps).encode(pixels(1), x)
    (alpha_t, sigma_t), (alpha_0, sigma_0) = (
        diffusion.alpha_sigma(SCHEDULE(jnp.asarray(t))) for t in (1.0, 0.0)
    )
    c = 0.5
    gain = jnp.sqrt((alpha_t**2 * c**2 + sigma_t**2) / (alpha_0**2 * c**2 + sigma_0**2)) * alpha_0
    np.testing.assert_allclose(found, gain * x, rtol=bound)


def test_latents_of_data_are_normal_and_paired_with_mirrors(tmp_path):
    """docs/methods/pagoda.md, B7 and B9: white, of unit variance; E(flip x) = flip E(x)."""
    rng = np.random.default_rng(0)
    levels = np.clip(rng.normal(0, 0.5 * 127.5, (300, 8, 8, 1)) + 127.5, 0, 255)
    data = Dataset("normal:train", levels.astype(np.uint8), np.zeros(300, np.int32), 1)
    path, column = tmp_path / "latents.npy", Latents()
    settings = {"seed": 0, "mesh": make_mesh()}
    column.make(path, pixels(8, 8, 1), data, flip=True, batch_size=128, **settings)
    latents = np.load(path).astype(np.float32)
    assert latents.shape == (300, 2, 8, 8, 1)
    np.testing.assert_allclose(latents[:, 1], latents[:, 0, :, ::-1], atol=2e-3)
    # The images' deviation is a little less than 0.5, since they end at -1 and 1.
    assert latents[:, 0].std() == pytest.approx(to_float(data.images).std() / 0.5, rel=0.015)
    neighbours = np.corrcoef(latents[:, 0, :, 1:].ravel(), latents[:, 0, :, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.03
    assert list(tmp_path.iterdir()) == [path]

    small, column = tmp_path / "small.npy", Latents(8)
    column.make(small, pixels(4, 4, 1), data, flip=False, batch_size=64, **settings)
    x = average(to_float(jnp.asarray(data.images[:5])), 2)
    desired = column.encode(pixels(4, 4, 1), x)
    np.testing.assert_allclose(np.load(small)[:5, 0], desired, atol=2e-3)


def test_latents_of_moments_are_of_one_draw_each(tmp_path):
    """Of a codec's latents, as the teacher has learnt them; whatever the batch is."""
    mean, std, other = 0.1, 0.4, -0.3  # of images, and the mean of mirror images
    moments = np.array([mean, 2 * np.log(std), other, 2 * np.log(std)], np.float16)
    data = Dataset("x:train", np.tile(moments, (300, 8, 8, 1)), np.zeros(300, np.int32), 1)
    codec = Codec(None, AutoencoderTiny(latent_channels=1), mean=(0.5,), std=(2.0,))
    paths, settings = [tmp_path / f"{i}.npy" for i in range(2)], {"seed": 0, "mesh": make_mesh()}
    for path, size in zip(paths, (128, 100), strict=True):
        Latents().make(path, pixels(8, 8, 1), data, flip=True, batch_size=size, codec=codec,
                       **settings)  # fmt: skip
    first, second = (np.load(path).astype(np.float32) for path in paths)
    np.testing.assert_allclose(first, second, atol=1e-3)
    # (z - 0.5) / 2, and then images of deviation 0.5 become noise of deviation 1.
    for i, of_images in enumerate((mean, other)):
        assert first[:, i].mean() == pytest.approx(of_images - 0.5, abs=0.01)
        assert first[:, i].std() == pytest.approx(std, rel=0.02)
    assert abs(np.corrcoef(first[0, 0].ravel(), first[1, 0].ravel())[0, 1]) < 0.5


def test_a_batch_has_the_latents_of_its_images_as_they_are():
    """Mirrored or not; (N, 1, ...) where none may be."""
    rows = {"latent": jnp.arange(2 * 2 * 4, dtype=jnp.float16).reshape(2, 2, 2, 2, 1)}
    mirrored = jnp.array([True, False]).reshape(2, 1, 1, 1)
    found = Latents().batch(rows, mirrored)
    assert found.dtype == jnp.float32
    desired = [rows["latent"][0, 1], rows["latent"][1, 0]]
    np.testing.assert_array_equal(found, np.stack(desired))
    np.testing.assert_array_equal(Latents().batch(rows, None), rows["latent"][:, 0])


# --- growth ---------------------------------------------------------------------------------------


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def begun(network):
    """A network whose grown levels are as they begin; of the others any numbers."""

    def of_grown(key):
        params = flat(network.init(key).params)
        return {path: array for path, array in params.items() if path.startswith("grown_")}

    params = flat(drawn(network).params) | jax.jit(of_grown)(jax.random.key(1))
    return network.replace(params=traverse_util.unflatten_dict(params, sep="/"))


@pytest.mark.parametrize("levels", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_has_grown_repeats_pixels_at_first(teacher, levels):
    """docs/methods/pagoda.md, B5: the smaller one's images, repeated."""
    given = flat(teacher.params)
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    given["conv_out/kernel"] = given["conv_out/kernel"] * middle
    given["conv_out/bias"] = jnp.full_like(given["conv_out/bias"], 0.1)
    small = teacher.replace(params=traverse_util.unflatten_dict(given, sep="/"))
    fresh = begun(grown(*[8] * levels))
    larger, report = fresh.taking(small, reshaped=True)
    assert set(report.copied) == set(given)
    assert report.new
    assert all(path.startswith("grown_") for path in report.new)
    z, logsnr = jax.random.normal(jax.random.key(2), (3, *NOISE)), jnp.full(3, -20.0)
    denoise = jax.jit(Network.denoise)
    desired, found = repeat(denoise(small, z, logsnr), 2**levels), denoise(larger, z, logsnr)
    np.testing.assert_allclose(found, desired, rtol=2e-4, atol=2e-4)


def test_growing_further_keeps_the_generator_before(teacher):
    """A second level behind the first: all of the first stage's parameters are taken over."""
    first, _ = drawn(grown(8)).taking(teacher, reshaped=True)
    second, report = drawn(grown(8, 8), seed=2).taking(first, reshaped=True)
    assert {path.split("/")[0] for path in report.new} == {
        f"grown_1.{name}" for name in ("upsample", "block_0", "block_1")
    }
    assert not report.unused
    assert same(second.params["grown_0.block_0"], first.params["grown_0.block_0"])


def test_levels_of_other_widths_have_fresh_heads(teacher):
    fresh = drawn(grown(4))
    larger, report = fresh.taking(teacher, reshaped=True)
    assert "conv_out/kernel" in report.new
    assert "conv_out/kernel" in report.unused
    assert same(larger.params["conv_out"]["kernel"], fresh.params["conv_out"]["kernel"])
    with pytest.raises(ValueError, match=r"conv_out/kernel is .*8, \d\) there and .*4, \d\) here"):
        fresh.taking(teacher)


# --- training -------------------------------------------------------------------------------------


def test_the_rule_of_what_is_frozen():
    """docs/methods/pagoda.md, B6: encoder, middle, embeddings and coarse levels of the decoder."""
    learning, frozen = partition(grown(8).shapes.params, PRESETS["pagoda"])
    assert {name.split(".")[0] for name in learning} == {"up_0", "grown_0", "norm_out", "conv_out"}
    assert {name.split(".")[0] for name in frozen} == {
        "conv_in", "dense0", "dense1", "down_0", "down_1", "mid", "up_1",
    }  # fmt: skip


def test_the_rule_of_the_network_of_64_pixels():
    """Output blocks 9 to 15: of four levels of four blocks, the last seven."""
    unet = UNet(1, channels=8, embedding_channels=8, multipliers=(1,) * 4, blocks=3,
                attention_sizes=(4, 8), num_labels=2)  # fmt: skip
    network = Network(None, unet, "v", SCHEDULE, (16, 16, 1)).shapes
    learning, _ = partition(network.params, PRESETS["pagoda_64"])
    blocks = {path.split("/")[0] for path in learning if path.startswith("up_")}
    first = {f"up_1.block_{i}" for i in (1, 2, 3)} | {f"up_0.block_{i}" for i in range(4)}
    assert first <= blocks
    assert not {name for name in blocks if name.startswith(("up_2", "up_3", "up_1.block_0"))}
    assert not {name for name in blocks if name.endswith("attn_0") and name.startswith("up_1")}


@pytest.fixture(scope="module")
def course(teacher):
    """The states and metrics of 25 updates of one batch."""
    return run(FROZEN, begin(FROZEN, teacher), batch(), 25)


def test_frozen_parameters_stay_to_the_bit(teacher, course):
    states, rows = course
    before, after = (FROZEN.product(state).params for state in (states[0], states[-1]))
    parts = ("up_0", "grown_0", "norm_out", "conv_out")
    learning = {name for name in after if name.split(".")[0] in parts}
    for name in after:
        assert same(before[name], after[name]) != (name in learning), name
        if name not in learning:
            assert same(after[name], teacher.params[name])
    generator = states[-1].generator
    assert set(partition(generator.network.params, generator.fixed)[0]) == learning
    assert {name for name in after if name not in teacher.params} <= learning
    assert all(0.01 * 0.2 <= row["adversarial_weight"] <= 10 * 0.2 for row in rows)


def test_each_loss_has_its_own_noise_and_factor(course):
    """Reconstructions are of the latents."""
    [state, *_], [row, *_] = course
    data = batch()
    assert abs(row["adversarial"]) > 0.1
    desired = row["reconstruction"] + row["adversarial_weight"] * row["adversarial"]
    assert row["loss"] == pytest.approx(desired, rel=1e-5)
    logsnr = jnp.broadcast_to(SCHEDULE(jnp.asarray(1.0)), len(data["latent"]))
    x_hat = jax.jit(Network.denoise)(FROZEN.product(state), data["latent"], logsnr)
    desired = jnp.mean((x_hat - data["image"]) ** 2)
    assert row["reconstruction"] == pytest.approx(float(desired), rel=1e-4)
    # Of latents that belong to other images nothing else differs.
    _, [shuffled] = run(FROZEN, state, data | {"image": data["image"][::-1]}, 1)
    assert shuffled["adversarial"] == row["adversarial"]
    assert shuffled["reconstruction"] != row["reconstruction"]


def test_reconstructions_are_learnt(course):
    _, rows = course
    assert rows[-1]["reconstruction"] < 0.7 * rows[0]["reconstruction"]


class Linear(nn.Module):
    """A latent of one number -> 2 x 2 pixels, each in proportion; it has grown once."""

    num_labels: int = 0
    grown: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        w = self.param("w", nn.initializers.zeros, (4,))
        return (z.reshape(-1, 1) * w[None]).reshape(-1, 2, 2, 1)


def test_reconstructions_alone_lack_what_the_latent_does_not_say():
    """docs/methods/pagoda.md, B4 and B7: the regression of pixels on their average.

    Of four pixels of variance 1 and correlation r the average has (1 + 3 r) / 4, and so have
    reconstructions; latents of other images leave the whole variance and add theirs.
    """
    r = 0.5
    kept = (1 + 3 * r) / 4
    x = np.random.default_rng(0).multivariate_normal(np.zeros(4), r + (1 - r) * np.eye(4), 20_000)
    latent = x.mean(1) / np.sqrt(kept)
    data = {
        "image": jnp.asarray(x.reshape(-1, 2, 2, 1), jnp.float32),
        "latent": jnp.asarray(latent.reshape(-1, 1, 1, 1), jnp.float32),
    }
    fast = dataclasses.replace(ADAM, learning_rate=0.05)
    method = pagoda(1, optimizer=fast, adversary=judging(width=4), adversarial=1e-9)
    linear = Network({"w": jnp.zeros(4)}, Linear(), "x", SCHEDULE, (1, 1, 1))
    states, rows = run(method, begin(method, linear), data, 150)
    np.testing.assert_allclose(states[-1].generator.network.params["w"], kept**0.5, atol=0.02)
    assert rows[-1]["reconstruction"] == pytest.approx(1 - kept, abs=0.01)
    assert rows[-1]["adversarial_weight"] == np.float32(1e-9)  # without a layer, the factor
    _, [shuffled] = run(method, states[-1], data | {"latent": data["latent"][::-1]}, 1)
    assert shuffled["reconstruction"] == pytest.approx(1 + kept, abs=0.05)


SMALL = dataclasses.replace(TEACHER, resolution=4)


def larger(name="pagoda/8", *, resolution=8, given=None, **changes):
    """A stage that doubles the teacher's pixels."""
    method = pagoda(**{"fixed": "pagoda", "adversary": judging(batch_norm=True)} | changes)
    given = {"teacher": "teacher"} | (given or {})
    loop = LoopConfig(num_updates=100)
    return stage(method, name, given=given, resolution=resolution, loop=loop)


def planned(*stages, image_shape=(8, 8, 1)):
    return plan_of(MODULE, SMALL, *stages, image_shape=image_shape)


def test_a_stage():
    run = planned(larger())["pagoda/8"]
    assert (run.network.shape, run.network.image_shape) == (NOISE, (8, 8, 1))
    assert (run.given, run.network.sampler) == ({"teacher": "teacher"}, "one_step")
    assert run.measured_at == (1,)
    card = run.run.method.card(run.state)
    assert 0.1 < trainable_fraction(run) < 0.3
    assert card["transferred"]["new"][0].startswith("grown_0.")
    later = larger("pagoda/16", resolution=16, given={"start": "pagoda/8"}, grown=(8, 8))
    found = planned(larger(), later, image_shape=(16, 16, 1))["pagoda/16"]
    assert found.given == {"teacher": "teacher", "start": "pagoda/8"}
    assert found.network.image_shape == (16, 16, 1)
    moved = found.run.method.card(found.state)["transferred"]
    assert all(path.startswith("grown_1.") for path in moved["new"])  # the rest is pagoda/8's


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pagoda(adversarial=0.0), "adversarial must be positive"),
        (lambda: Latents(solver="ancestral"), "latents need a deterministic solver"),
        (lambda: Latents(num_steps=0), "latents need at least one step"),
        (
            lambda: planned(larger(grown=(8, 8))),
            "images of 16x16 pixels, where its stage is to make images of 8x8 pixels",
        ),
        (
            lambda: planned(larger(layer="down_0.block_0/conv1/kernel")),
            "no parameters that learn have the path",
        ),
        (lambda: planned(larger(fixed="most")), "fixed must be one of"),
        (
            lambda: planned(larger(given={"start": "pagoda/4"})),
            "starts from 'pagoda/4', which no earlier stage makes",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- an experiment --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny_pagoda())


def test_an_experiment(workdir, tmp_path):
    """Each size is measured against the data at that size; models make images of their size."""
    rows = {row["stage"]: row for row in read_jsonl(workdir / "results.jsonl")}
    assert {name: (row["method"], row["nfe"], row["reference"]) for name, row in rows.items()} == {
        "teacher": ("teacher", 2, "digits@4:train"),
        "pagoda/8": ("pagoda", 1, "digits:train"),
        "upsampled/8": ("upsampled", 2, "digits:train"),
    }
    for name, side in (("teacher", 4), ("pagoda/8", 8), ("upsampled/8", 8)):
        model = pdistill.load(workdir / name)
        assert model.noise_shape == (4, 4, 1)
        images = model.sample(jax.random.key(0), 3)
        assert images.shape == (3, *model.image_shape) == (3, side, side, 1)
        assert np.load(workdir / name / "samples.npz")
    assert pdistill.load(workdir / "pagoda/8").card["transferred"]["copied"]
    # The enlarged samples are the teacher's.
    small, large = (
        pdistill.load(workdir / name).sample(jax.random.key(0), 2)
        for name in ("teacher", "upsampled/8")
    )
    np.testing.assert_allclose(
        large, jax.image.resize(small, large.shape, "cubic"), rtol=1e-4, atol=1e-5
    )


def test_a_run_without_its_last_stages_goes_on(workdir, tmp_path):
    """The latents are not made again, and the parameters are the same to the bit."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "pagoda" / "8")
    shutil.rmtree(copy / "upsampled")
    [path] = (copy / "teacher").glob("latents_*.npy")
    before = path.stat().st_mtime_ns
    experiment.run(tiny_pagoda(), copy)
    assert path.stat().st_mtime_ns == before
    ours, theirs = (leaves(directory / "pagoda/8") for directory in (copy, workdir))
    chex.assert_trees_all_equal(ours, theirs)
    about = path.with_name(f"{path.name}.json")
    by = models.read_card(copy / "teacher/model")["checksum"]
    content = load_dataset("digits").digest()
    assert read_json(about) == {"maker": by, "content": content}
    about.write_text(json.dumps({"maker": by + 1, "content": content}))
    shutil.rmtree(copy / "pagoda" / "8")
    with pytest.raises(ValueError, match=r"latents_.*npy has rows by another model than the one"):
        experiment.run(tiny_pagoda(), copy)
    (copy / "pagoda" / "8").mkdir()
    for change in (lambda: about.write_text('{"content": "0"}'), about.unlink):
        change()
        shutil.rmtree(copy / "pagoda" / "8")
        with pytest.raises(ValueError, match=r"latents_.*npy has rows of other images than the"):
            experiment.run(tiny_pagoda(), copy)
        (copy / "pagoda" / "8").mkdir()


def test_pairs_are_of_their_teacher(tmp_path):
    """One that was trained on or replaced has none yet; a file of an earlier version stays."""
    path, pairs = tmp_path / "new" / Pairs(4).file, Pairs(4)
    data = load_dataset("digits")
    for maker in (1, 2):
        keep_origin(pairs, path, data, maker)  # of a file that is not there yet
    path.touch()
    keep_origin(pairs, path, data, 2)
    with pytest.raises(DataError, match=r"pairs_.*npz has rows by another model .*delete it"):
        keep_origin(pairs, path, data, 1)
    path.with_name(f"{path.name}.json").unlink()
    keep_origin(pairs, path, data, 1)


def test_a_grown_sampler_is_exported(workdir):
    model = pdistill.load(workdir / "pagoda/8")
    key, index = jax.random.key(0), jnp.arange(3)
    images = export_sampler(model).call(key, index)
    np.testing.assert_array_equal(images, model.sample(key, 3))


def test_sizes_that_do_not_go_together():
    config = tiny_pagoda()
    config.stages[1]["resolution"] = 3
    with pytest.raises(ConfigError, match="cannot be averaged to resolution 3"):
        plan(parse(as_plain(config)), (8, 8, 1))
    progressive = digits_pd.get_config().stages[1] | {"start_steps": 4}
    config = tiny_pagoda()
    config.stages = (config.stages[0], ConfigDict(progressive))
    with pytest.raises(ConfigError, match="pixels; set resolution to 4"):
        plan(parse(as_plain(config)), (8, 8, 1))
