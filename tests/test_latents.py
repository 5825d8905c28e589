"""Networks on a codec's latents: moments on disk, training, sampling, and what is wrong."""

import contextlib
import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from methods.planning import stage
from ml_collections import ConfigDict
from PIL import Image
from tiny_experiment import LOOP, tiny

import pdistill
from pdistill import experiment
from pdistill import model as models
from pdistill.cli import config_file, prepare, sample
from pdistill.data import Pipeline, load_dataset, make_batch, moments, sources, to_float
from pdistill.data.moments import Moments
from pdistill.diffusion import CosineSchedule
from pdistill.experiment.codecs import in_latents, keep_codec
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.features import efficientnet_lite0
from pdistill.interop.stablehlo import export_sampler, weights
from pdistill.methods import Ctm, Dmd, FlowMap, Gan, Guided, LowDiff, MultiStudent
from pdistill.methods.columns import Pairs
from pdistill.methods.method import roles
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.model import ModelError, change_card
from pdistill.model.card import codec_identity, same_codec
from pdistill.model.editing import Autoencoder
from pdistill.model.sampling import Sampling, enlarge
from pdistill.networks import Network, Posterior
from pdistill.runtime.mesh import make_mesh
from pdistill.training import Optimizer

running = importlib.import_module("pdistill.experiment.run")
JUDGE = {"features": "pixels", "halvings": (0,), "width": 8, "mixing": 0}
PIXELS = Judge(**JUDGE)


def config():
    """A codec of digits, and a teacher and its student on latents of 2 x 2 x 2."""
    config = tiny()
    teacher, progressive = config.stages
    teacher["measured_at"] = (2,)
    progressive.update(start_steps=2)
    config.model.network.arguments.patch = 1
    config.codec = "codec"
    codec = ConfigDict(
        {
            "name": "codec",
            "method": "codec",
            "network": {"channels": (8, 8), "blocks": 1, "latent_channels": 2},
            "loop": LOOP,
            "optimizer": {"learning_rate": 1e-3},
        }
    )
    config.stages = (codec, teacher, progressive)
    config.data.flip = True
    config.evaluation.update(num_samples=32, batch_size=16, metrics=("fd_pixels",))
    return config


ADAM = {"learning_rate": 1e-3}
OPTIMIZER = {"optimizer": Optimizer(**ADAM)}
UNET = {
    "name": "unet",
    "arguments": {
        "channels": 8,
        "multipliers": (1,),
        "blocks": 1,
        "embedding_channels": 8,
        "attention_sizes": (),
    },
}


def resolutions(workdir):
    """A teacher at half the resolution, and a generator that grows from it."""
    more = config()
    more.codec = str(workdir / "codec")
    more.model.network = ConfigDict(UNET)
    more.evaluation.metrics = ()
    loop = {"num_updates": 1, "batch_size": 16, "substeps": 1, "log_every": 1, "save_every": 1}
    common = {"measured_at": (1,), "loop": loop, "optimizer": ADAM}
    pagoda = {
        "teacher": "small",
        "grown": (8,),
        "adversary": {"judges": (JUDGE,), "optimizer": ADAM, "r1": 0.0},
        "latents": {"num_steps": 1, "solver": "ddim"},
    }
    more.stages = (
        ConfigDict(common | {"name": "small", "method": "teacher", "resolution": 4}),
        ConfigDict(common | {"name": "grown", "method": "pagoda"} | pagoda),
    )
    return more


@pytest.fixture(scope="module")
def grown(workdir, tmp_path_factory):
    """A run of `resolutions`, in which nothing is learnt."""
    grown = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", lambda method, state, *_, **__: state)
        patch.setenv("TFDS_DATA_DIR", str(grown / "data"))
        experiment.run(resolutions(workdir), grown)
    return grown


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latents")
    alone = config()
    alone.stages = alone.stages[:1]
    experiment.run(alone, workdir)  # a codec by itself is measured too
    rows = (workdir / "results.jsonl").read_bytes()
    assert b'"solver": "codec"' in rows
    experiment.run(config(), workdir)
    assert (workdir / "results.jsonl").read_bytes().startswith(rows)
    return workdir


def test_a_run_in_latents(workdir, tmp_path, bars):
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert {(row["stage"], row["nfe"]) for row in rows} == {
        *(("codec", 0), ("teacher", 2), ("progressive/1", 1))
    }
    before = (workdir / "results.jsonl").read_bytes()
    experiment.run(config(), workdir)
    assert (workdir / "results.jsonl").read_bytes() == before
    assert bars == []
    shutil.copytree(workdir, copy := tmp_path / "copy")
    others = [json.dumps(row) for row in rows if row["stage"] != "codec"]
    (copy / "results.jsonl").write_text("\n".join([*others, ""]))
    more = config()  # samples than there are images, each of which is encoded once
    more.evaluation.num_samples = 2000
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"num_samples": 32', '"num_samples": 2000'))
    experiment.run(more, copy)
    assert f"{'codec':<16} encoded and decoded" in bars
    last = json.loads((copy / "results.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["num_samples"], "duplicates" in last) == ("codec", 1437, False)
    model = pdistill.load(workdir / "progressive/1")
    assert model.image_shape == (8, 8, 1)
    assert model.noise_shape == (2, 2, 2)
    assert model.card["clip"] is None
    samples = np.load(workdir / "teacher/samples.npz")["2"]
    assert samples.shape == (32, 8, 8, 1)


@pytest.mark.parametrize(("name", "side"), [("small", 4), ("grown", 8)])
def test_a_stages_resolution_is_of_images(grown, name, side):
    model, key = pdistill.load(grown / name), jax.random.key(1)
    images, latents = (model.sample(key, 2, latents=left) for left in (False, True))
    assert images.shape == (2, side, side, 1) == (2, *model.image_shape)
    assert latents.shape == (2, side // 4, side // 4, 2)
    np.testing.assert_allclose(images, model.network.codec.decode(latents), atol=1e-5)
    [samples] = np.load(grown / name / "samples.npz").values()
    assert samples.shape[1:] == (side, side, 1)


class Half(nn.Module):
    """x_hat is half of z, of 1 x 1 and 2 x 2 latents."""

    resolutions: tuple[int, ...] = (1, 2)

    def __call__(self, z, logsnr, told, *, train=False):
        return z / 2


def test_a_cascade_of_latents_is_decoded_at_its_end(workdir):
    network = Network({}, Half(), "x", CosineSchedule(), (2, 2, 2))
    codec = pdistill.load_codec(workdir / "codec")
    cascade, start = Sampling((1, 1), "cascade:ddim:0.1", clip=None), {"shape": (3, 2, 2, 2)}
    latents = cascade.run(network, key=jax.random.key(1), **start)
    images = cascade.run(network.replace(codec=codec), key=jax.random.key(1), **start)
    np.testing.assert_allclose(images, codec.decode(latents), atol=1e-6)


def test_a_teacher_and_its_generator_edit_images_by_their_codec(grown, workdir):
    teacher, generator = (pdistill.load(grown / name) for name in ("small", "grown"))
    coder, small = Autoencoder(teacher, generator), jnp.full((2, 4, 4, 1), 0.5)
    assert coder.encode(small).shape == (2, 1, 1, 2)
    assert coder.super_resolve(small).shape == coder.reconstruct(jnp.zeros((2, 8, 8, 1))).shape
    card = generator.card | {"codec": {"path": "", "checksum": 0}}
    with pytest.raises(ValueError, match="the teacher's codec is not the generator's"):
        Autoencoder(teacher, dataclasses.replace(generator, card=card))


def test_samples_are_enlarged_after_they_are_decoded(workdir):
    model, key = pdistill.load(workdir / "teacher"), jax.random.key(1)
    card = model.card | {"data": model.card["data"] | {"shape": (16, 16, 1)}}
    large = models.Model(model.network.replace(enlarged=2), card)
    assert large.network.image_shape == (16, 16, 1)
    np.testing.assert_allclose(
        large.sample(key, 2), enlarge(model.sample(key, 2), 2, (-1, 1)), atol=1e-5
    )
    steps = jnp.sign(model.sample(key, 2))  # at which cubic interpolation overshoots
    assert float(jnp.abs(enlarge(steps, 2, (-1, 1))).max()) == 1.0
    assert float(jnp.abs(enlarge(steps, 2, None)).max()) > 1.0
    assert large.sample(key, 2, latents=True).shape == (2, 2, 2, 2)
    alone = dataclasses.replace(large, network=large.network.replace(codec=None))
    assert float(jnp.abs(alone.sample(key, 8)).max()) > 1.0  # latents


def test_networks_learn_scaled_latents(tmp_path, monkeypatch):
    """By the codec as it is saved, whose scale the plan did not know."""
    train, found = running.train, {}

    def spy(*arguments, name, codec, **others):
        found[name] = codec
        return train(*arguments, name=name, codec=codec, **others)

    monkeypatch.setattr(running, "train", spy)
    short = config()
    short.stages = short.stages[:2]
    experiment.run(short, tmp_path)
    assert found["codec"] is None
    assert found["teacher"] == pdistill.load_codec(tmp_path / "codec").blank
    assert max(found["teacher"].std) < 0.9  # of an untrained encoder


def test_samples_are_decoded_latents(workdir):
    model = pdistill.load(workdir / "progressive/1")
    codec = pdistill.load_codec(workdir / "codec")
    key = jax.random.key(1)
    latents = model.sample(key, 3, latents=True)
    assert latents.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(model.sample(key, 3), codec.decode(latents), atol=1e-5)
    loud = codec.replace(params=jax.tree.map(lambda a: 4 * a, codec.params))
    images, decoded = model.network.replace(codec=loud), loud.decode(latents)
    assert jnp.abs(decoded).max() > 1.1
    clipped = models.Model(images, model.card).sample(key, 3)
    np.testing.assert_allclose(clipped, jnp.clip(decoded, -1, 1), atol=1e-4)


def test_the_command_line_leaves_latents(workdir, tmp_path):
    arguments = [f"--model={workdir / 'progressive/1'}", "--num=3", "--seed=1"]
    sample.main([*arguments, "--latents", f"--out={tmp_path / 'latents.npz'}"])
    sample.main([*arguments, f"--out={tmp_path / 'images.npz'}"])
    latents = np.load(tmp_path / "latents.npz")["latents"]
    images = pdistill.load_codec(workdir / "codec").decode(jnp.asarray(latents))
    found = np.load(tmp_path / "images.npz")["images"]
    np.testing.assert_array_equal(found, pdistill.data.to_uint8(images))
    with pytest.raises(SystemExit):
        sample.main([*arguments, "--latents", f"--out={tmp_path / 'grid.png'}"])


def test_moments_are_those_of_the_codec(workdir):
    """Of each image, then of its mirror image; batches are drawn of them."""
    codec = pdistill.load_codec(workdir / "codec")
    rows = np.load(workdir / "codec/latents/00000.npy")
    assert rows.shape == (1437, 2, 2, 8)
    data = load_dataset("digits")
    x = to_float(data.images[:5])
    expected = np.concatenate([*codec.encode(x), *codec.encode(x[:, :, ::-1])], axis=-1)
    np.testing.assert_allclose(rows[:5], expected, atol=2e-3)
    resident = {"image": jnp.asarray(rows[:1]), "label": jnp.zeros(1, int)}
    raw = {"index": jnp.zeros(4096, int)}
    batch = make_batch(resident, raw, jax.random.key(0), flip=True, codec=codec.blank)
    drawn = np.asarray(batch["image"])
    both = [Posterior(*np.split(half, 2, -1)) for half in np.split(rows[:1].astype(float), 2, -1)]
    means = np.concatenate([codec.latents(Posterior(jnp.asarray(p.mean), p.logvar)) for p in both])
    variance = [np.exp(p.logvar) / np.square(codec.std) for p in both]
    second = np.concatenate(variance) + np.square(means)
    np.testing.assert_allclose(drawn.mean(0), means.mean(0), atol=0.15)
    np.testing.assert_allclose(np.square(drawn).mean(0), second.mean(0), rtol=0.2, atol=0.05)
    plain = make_batch(resident | {"image": resident["image"][..., :4]}, raw, jax.random.key(0),
                       flip=False, codec=codec.blank)  # fmt: skip
    np.testing.assert_allclose(plain["image"].mean(0), means[0], atol=0.15)


def test_a_run_directory_may_move(workdir, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(workdir, moved)
    key = jax.random.key(1)
    images = [pdistill.load(w / "teacher").sample(key, 2) for w in (workdir, moved)]
    np.testing.assert_array_equal(*images)


def test_a_codec_that_is_missing_or_another_one(workdir, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(workdir, moved)
    (moved / "codec").rename(tmp_path / "codec")
    with pytest.raises(ModelError, match=r"latents of a codec that is not in .*--codec=DIR"):
        pdistill.load(moved / "teacher")
    found = pdistill.load(moved / "teacher", codec=tmp_path / "codec")
    assert found.image_shape == (8, 8, 1)
    codec = pdistill.load_codec(tmp_path / "codec")
    other = jax.tree.map(lambda a: a + 1, codec.params)
    models.save_codec(moved / "codec/model", codec.replace(params=other), stage="", method="codec")
    with pytest.raises(ModelError, match="makes latents of another codec"):
        pdistill.load(moved / "teacher")


def test_the_recipe_for_own_images_is_of_latents(workdir, monkeypatch):
    """Those of 64 x 64 pixels need no patches."""
    about = sources.Description("mine", {"train": 6000}, (64, 64, 1), 1)
    monkeypatch.setattr(sources, "describe", lambda name: about)
    config, name = config_file.find_config("own_images:cpu"), "--config.data.name=mine"
    patches = []
    for arguments in ([name], [name, f"--config.codec={workdir / 'codec'}"]):
        found = config_file.load_config(config_file.for_data(config, arguments))
        patches.append(found.model.network.arguments.patch)
        runs = plan(parse(as_plain(found)), about.shape)
    assert patches == [4, 1]
    assert runs["teacher"].network.shape == (16, 16, 2)
    named = config_file.load_config(config_file.for_data(f"{config}:{workdir / 'codec'}", [name]))
    assert named == found
    with pytest.raises(SystemExit, match=r"no codec in"):
        config_file.load_config(config_file.for_data(config, [name, "--config.codec=nowhere"]))


def test_a_folder_for_hubs_has_the_codec(workdir, tmp_path):
    from pdistill.cli import convert, export

    folder, model = tmp_path / "folder", tmp_path / "model"
    source = workdir / "progressive/1"
    export.main([f"--model={source}", f"--out={folder}", "--to=safetensors"])
    convert.main([f"--source={folder}", f"--out={model}", "--from=safetensors"])
    key = jax.random.key(1)
    images = [pdistill.load(directory).sample(key, 2) for directory in (source, model)]
    np.testing.assert_array_equal(*images)
    assert pdistill.load(model).card["codec"]["path"] == "codec"


def test_every_command_that_loads_a_model_finds_a_codec(workdir, tmp_path):
    """One that has moved, by --codec; the message without it says so."""
    from pdistill.cli import compare, evaluate, export, pairs, partition

    model, codec = tmp_path / "model", tmp_path / "codec"
    shutil.copytree(workdir / "teacher/model", model)
    shutil.copytree(workdir / "codec/model", codec)
    few = ["--reference=digits:test", "--num_samples=16", "--batch_size=16"]
    commands = {
        evaluate: [f"--model={model}", "--metrics=kid_pixels", *few],
        compare: [f"--teacher={model}", f"--students={model}@2", *few],
        export: [f"--model={model}", f"--out={tmp_path / 'sampler'}"],
        pairs: [f"--model={model}", "--num=4", "--num_steps=2", f"--out={tmp_path / 'pairs.npz'}"],
        partition: [f"--model={model}", "--parts=2"],
    }
    for command, arguments in commands.items():
        with pytest.raises(SystemExit, match="--codec=DIR or codec in a config"):
            command.main(arguments)
        expected = contextlib.nullcontext()
        if command is partition:
            expected = pytest.raises(SystemExit, match="no labels")
        with expected:
            command.main([*arguments, f"--codec={codec}"])
    made, known = tmp_path / "pairs.npz", codec_identity(codec)
    pair = dict(np.load(made))
    assert pair["image"].shape == (4, 2, 2, 2)
    assert pair["codec"] == known["fingerprint"]
    Pairs(4).check_codec(made, known)
    np.savez(made, **pair | {"codec": known["checksum"]})  # as an earlier version made them
    Pairs(4).check_codec(made, known)
    for other, message in (({"fingerprint": 1}, "a model of another codec"), (None, "of another")):
        with pytest.raises(ValueError, match=message):
            Pairs(4).check_codec(made, other)


def test_pairs_of_images_are_not_for_latents(workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs = Pairs(4, num_steps=2, path="~/pairs.npz")
    mesh = make_mesh()
    network = pdistill.load(workdir / "teacher", mesh).network.of_latents
    pairs.make(tmp_path / "pairs.npz", network, seed=0, batch_size=8, mesh=mesh)
    dmd = {
        "name": "dmd", "method": "dmd", "teacher": "teacher", "loop": LOOP, "optimizer": ADAM,
        "fake_optimizer": ADAM, "regression": 1.0, "pairs": dataclasses.asdict(pairs),
    }  # fmt: skip
    wrong = config()
    wrong.codec, wrong.stages = str(workdir / "codec"), (wrong.stages[1], ConfigDict(dmd))
    with pytest.raises(ConfigError, match=r"pairs.path: .* was made by a model of images"):
        experiment.run(wrong, tmp_path / "run")


def test_a_model_of_latents_from_elsewhere_takes_a_codec(workdir, tmp_path):
    """Its card says that it makes latents, not of which codec."""
    network = pdistill.load(workdir / "teacher").network.of_latents
    card = pdistill.load(workdir / "teacher").card
    del card["codec"]
    elsewhere = tmp_path / "elsewhere"
    data = {"shape": (2, 2, 2), "scale": "latents"}
    models.save(elsewhere, network, **card | {"data": data})
    model = pdistill.load(elsewhere, codec=workdir / "codec")
    assert model.sample(jax.random.key(0), 2).shape == (2, *model.image_shape) == (2, 8, 8, 1)
    latents = model.sample(jax.random.key(0), 2, latents=True)
    without = pdistill.load(elsewhere)
    np.testing.assert_array_equal(without.sample(jax.random.key(0), 2, latents=True), latents)
    arguments = [f"--model={elsewhere}", "--num=2"]
    sample.main([*arguments, "--latents", f"--out={tmp_path / 'latents.npz'}"])
    np.testing.assert_array_equal(np.load(tmp_path / "latents.npz")["latents"], latents)
    with pytest.raises(SystemExit, match="give --codec, or --latents for"):
        sample.main([*arguments, f"--out={tmp_path / 'grid.png'}"])
    described = imported(elsewhere)
    with pytest.raises(ConfigError, match=r"codec that its card does not name; .*config.codec=DIR"):
        plan(parse(described), (8, 8, 1))
    runs = plan(parse(described | {"codec": str(workdir / "codec")}), (8, 8, 1))
    assert runs["teacher"].image_shape == (8, 8, 1)


def imported(path):
    """A config, plain, of a model that is imported."""
    described = as_plain(config())
    stage = {"name": "teacher", "method": "imported", "path": str(path), "measured_at": (2,)}
    return described | {"stages": [stage], "model": None, "codec": ""}


def test_stages_of_different_codecs(workdir, tmp_path):
    """A teacher of another codec's latents, or of images, teaches nobody here."""
    described = imported(workdir / "teacher")
    student = {"name": "student", "method": "flow_map", "teacher": "teacher", "loop": dict(LOOP)}
    student |= {"optimizer": {"learning_rate": 1e-3}, "measured_at": (1,)}
    codec = as_plain(config())["stages"][0]
    described |= {"codec": "codec", "stages": [codec, *described["stages"], student]}
    described["model"] = as_plain(config())["model"]
    with pytest.raises(ConfigError, match=r"'teacher' works on latents of the codec /.*, this"):
        plan(parse(described), (8, 8, 1))


def test_a_run_goes_on_in_its_own_latents_alone(tmp_path, workdir):
    codec, run = workdir / "codec/model", tmp_path / "teacher"
    keep_codec(run, codec)
    keep_codec(run, codec)
    own = pdistill.load_codec(codec)
    for other in (
        own.replace(params=jax.tree.map(lambda a: a + 1, own.params)),
        own.replace(mean=(own.mean[0] + 3, *own.mean[1:])),  # of the same parameters
    ):
        models.save_codec(tmp_path / "codec", other, stage="", method="codec")
        with pytest.raises(ModelError, match=r"began in latents of another codec than the one in"):
            keep_codec(run, tmp_path / "codec")
        with pytest.raises(ModelError, match="makes latents of another codec than the one in"):
            pdistill.load(workdir / "teacher", codec=tmp_path / "codec")


def test_what_an_earlier_version_knows_of_a_codec(workdir, tmp_path):
    """The checksum of its parameters alone, in cards, in runs and with moments; all go on."""
    codec, run, model = workdir / "codec/model", tmp_path / "run", tmp_path / "model"
    known = codec_identity(codec)
    shutil.copytree(workdir / "teacher/model", model)
    named = {"path": str(codec), "checksum": known["checksum"]}
    change_card(model, codec=named)
    assert pdistill.load(model).card["codec"] == known | named
    run.mkdir()
    (run / "codec.json").write_text(json.dumps({"checksum": known["checksum"]}))
    keep_codec(run, codec)
    arguments = {"flip": True, "batch_size": 500, "mesh": make_mesh(), "in_memory": False}
    shutil.copytree(workdir / "codec/latents", tmp_path / "latents")
    about = tmp_path / "latents/moments.json"
    for number, files in ((known["checksum"], 1), (1, 0)):
        about.write_text(json.dumps(json.loads(about.read_text()) | {"codec": number}))
        expected = contextlib.nullcontext() if files else pytest.raises(ValueError, match="codec")
        with expected:
            in_latents(load_dataset("digits"), codec, tmp_path / "latents", **arguments)


def test_codecs_are_told_apart_by_all_that_matters(workdir, tmp_path):
    """By their scale and their arguments too, but for those that a card leaves as they are."""
    own = pdistill.load_codec(workdir / "codec")

    def identity(codec, /, **card):
        models.save_codec(tmp_path / "codec", codec, stage="", method="codec")
        about = json.loads((tmp_path / "codec/model.json").read_text())
        (tmp_path / "codec/model.json").write_text(json.dumps(about | card))
        return codec_identity(tmp_path / "codec")

    same = identity(own)
    assert same == codec_identity(workdir / "codec")
    assert same == identity(own.replace(tile=2 * own.tile))
    arguments = {"channels": [8, 8], "blocks": 1, "latent_channels": 2, "image_channels": 1}
    assert same == identity(own, codec={"name": "autoencoder_residual", "arguments": arguments})
    others = [own.replace(std=(1.0, 1.0)), own.replace(module=own.module.clone(patch=1))]
    for other in map(identity, others):
        assert other["checksum"] == same["checksum"]
        assert not same_codec(other, same)
        assert same_codec(other, {"checksum": same["checksum"]})
    assert same_codec(None, None)
    assert not same_codec(None, same)


def test_a_set_half_prepared_goes_on(workdir, tmp_path, monkeypatch):
    """Shards that are there stay; what is missing is said, or made."""
    monkeypatch.setattr(moments, "SHARD", 500)
    codec = pdistill.load_codec(workdir / "codec")
    data = load_dataset("digits")
    about = Moments(1, data.name, len(data), (2, 2, 4), data.digest())
    arguments = {"flip": False, "batch_size": 100, "mesh": make_mesh()}
    about.write(tmp_path, data, codec, **arguments)
    whole = about.read(tmp_path)[:]
    assert len(whole) == 1437
    rows = np.array([1400, 3, 499, 500, 3])
    np.testing.assert_array_equal(about.read(tmp_path, 2)[rows], whole[rows][..., :2])
    threes = dataclasses.replace(data, images=about.read(tmp_path)).of_labels((3,))
    assert isinstance(threes.images, moments.Shards)  # still on disk
    np.testing.assert_array_equal(threes.images[:], whole[data.labels == 3])
    assert len(threes.of_labels(()).images) == 0
    (tmp_path / "00001.npy").unlink()
    stamp = (tmp_path / "00000.npy").stat().st_mtime_ns
    with pytest.raises(ValueError, match="half prepared, 1 of 3 shards are missing"):
        about.read(tmp_path)
    about.write(tmp_path, data, codec, **arguments)
    np.testing.assert_array_equal(about.read(tmp_path)[:], whole)
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == stamp
    (tmp_path / "00001.npy").write_bytes((tmp_path / "00001.npy").read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged: "):
        about.read(tmp_path)
    with pytest.raises(ValueError, match="holds moments with another codec: delete it"):
        dataclasses.replace(about, codec=2).write(tmp_path, data, codec, **arguments)
    with pytest.raises(ValueError, match="holds moments with another content: delete it"):
        dataclasses.replace(about, content="2").missing(tmp_path)
    older = json.loads((tmp_path / "moments.json").read_text())
    older.pop("content")
    (tmp_path / "moments.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="moments that do not say their content, as an older vers"):
        about.missing(tmp_path)


def test_an_exported_sampler_decodes(workdir):
    model = pdistill.load(workdir / "progressive/1")
    key, index = jax.random.key(1, impl="threefry2x32"), jnp.arange(3)
    expected = model.sample(key, 3)
    inside = export_sampler(model)
    np.testing.assert_allclose(inside.call(key, index), expected, atol=1e-6)
    beside = export_sampler(model, inside=False)
    np.testing.assert_allclose(beside.call(weights(model), key, index), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "nothing"}, "neither a stage before 'teacher' nor a directory"),
        ({"codec": "teacher"}, "neither a stage before 'teacher'"),
        ({"resolution": 2}, "height and width of images must be multiples of 4"),
    ],
)
def test_codecs_that_cannot_be(change, message):
    wrong = config()
    if "codec" in change:
        wrong.codec = change["codec"]
    else:
        wrong.stages[1].update(change)
    with pytest.raises(ConfigError, match=message):
        plan(parse(as_plain(wrong)), (8, 8, 1))


def test_what_is_made_for_pictures_sees_no_latents(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "load_params", dict)  # without the weights
    judge = dataclasses.replace(PIXELS, features="efficientnet_lite0")
    gan = Gan(**OPTIMIZER, adversary=Adversary(judges=(judge,), **OPTIMIZER))
    parsed = parse(as_plain(config()))
    for method, message in (
        (Ctm(**OPTIMIZER, distance="classifier"), "distance 'classifier' is of pictures"),
        (gan, "a judge sees pictures, .*among pixels, teacher"),
    ):
        wrong = dataclasses.replace(parsed, stages=(*parsed.stages[:2], stage(method)))
        with pytest.raises(ConfigError, match=message):
            plan(wrong, (8, 8, 1))


def test_latents_that_a_network_cannot_take():
    wrong = config()
    wrong.model.network.arguments.patch = 4
    with pytest.raises(ConfigError, match=r"model, for latents \(2, 2, 2\): .*must divide"):
        plan(parse(as_plain(wrong)), (8, 8, 1))


DMD = Dmd(**OPTIMIZER, fake_optimizer=Optimizer(1e-3), regression=1.0, pairs=Pairs(20))
METHODS = [
    Gan(**OPTIMIZER, adversary=Adversary(judges=(PIXELS,), **OPTIMIZER)),
    DMD,
    Ctm(**OPTIMIZER, grid_points=4, solver_steps=2),
    FlowMap(**OPTIMIZER),
    Guided(**OPTIMIZER),
    MultiStudent(student=stage(DMD, "student"), parts=2),
    LowDiff(**OPTIMIZER, resolutions=(1, 2), split=(8, 8), network=FrozenDict(multipliers=(1, 1))),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_in_latents(workdir, method):
    """Each makes a model of images of its teacher of latents."""
    described = as_plain(config())
    described["stages"] = described["stages"][:2]
    if method.name == "lowdiff":
        described["model"]["network"] = UNET | {"arguments": dict(UNET["arguments"])}
    described["model"]["network"]["arguments"]["num_labels"] = 10
    described["stages"][1]["label_dropout"] = 0.1
    parsed = parse(described)
    own = stage(method, measured_at=(1,), given={"teacher": "teacher"} if roles(method) else {})
    parsed = dataclasses.replace(parsed, stages=(*parsed.stages, own))
    runs = plan(parsed, (8, 8, 1))
    made = runs[method.name]
    assert (made.network.shape, made.image_shape) == ((2, 2, 2), (8, 8, 1))
    last = [run for run in runs.values() if run.trains][-1]
    traced = trace_update(last, runs, parsed, make_mesh(1, 1, jax.devices()[:1]), (1437, 8, 8, 1))
    assert traced.data[0]["image"].shape == (1437, 2, 2, 8)


def test_a_published_set_is_encoded_once(workdir, tmp_path, monkeypatch, capsys):
    """By prepare --codec; a run with or without mirroring then uses what is there."""
    images = tmp_path / "pictures"
    images.mkdir()
    for i in range(12):
        levels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(levels).save(images / f"{i}.png")
    codec = f"--codec={workdir / 'codec'}"
    root = f"--data_dir={tmp_path / 'data'}"
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    command = [f"--images={images}", "--name=mine", root, codec]
    for wrong, message in (("--resolution=6", "multiples of 4"), ("--channels=3", "1 channels")):
        with pytest.raises(SystemExit, match=message):
            prepare.main([*command, wrong])
    assert not (tmp_path / "data/mine").exists()
    prepare.main([*command, "--resolution=8"])
    with pytest.raises(SystemExit, match=r"leave out --images .*as --name=mine --codec="):
        prepare.main(command)
    assert "images/s" in capsys.readouterr().out
    [shard] = (tmp_path / "data/latents").rglob("*.npy")
    stamp = shard.stat().st_mtime_ns
    prepare.main(["--name=mine", root, codec])
    data = load_dataset("mine")
    arguments = {"batch_size": 8, "mesh": make_mesh()}
    both, one = (
        in_latents(data, workdir / "codec/model", None, flip=flip, **arguments).images
        for flip in (True, False)
    )
    np.testing.assert_array_equal(both[..., :4], one)
    assert [*(tmp_path / "data/latents").rglob("*.npy")] == [shard]
    assert shard.stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit, match="no codec in"):
        prepare.main(["--name=mine", root, f"--codec={tmp_path}"])


NUMBERS = ("fingerprint", "checksum")  # of codecs, by which folders of latents are and were named


def test_images_that_change_are_encoded_anew(workdir, tmp_path, monkeypatch, capsys):
    """Of as many, of the same name; the same ones prepared again keep their latents."""
    root = tmp_path / "data"
    command = [f"--images={tmp_path / 'pictures'}", "--name=mine", f"--data_dir={root}"]
    command += [f"--codec={workdir / 'codec'}", "--resolution=8", "--no_flip", "--held_out=0"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    (tmp_path / "pictures").mkdir()
    codec, folders = pdistill.load_codec(workdir / "codec"), []
    arguments = {"flip": False, "batch_size": 8, "mesh": make_mesh()}
    for change in (0, 0, 1):
        images[4, 0, 0] += change  # of one picture, one pixel
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"pictures/{i}.png")
        prepare.main(command)
        told = capsys.readouterr().err
        folders.append({path.name for path in (root / "latents/mine:train").iterdir()})
        for in_memory in (True, False):  # the same folder serves both
            data = load_dataset("mine", in_memory=in_memory)
            found = in_latents(data, workdir / "codec/model", None, **arguments).images
            means, _ = codec.encode(to_float(data.images[:]))
            np.testing.assert_allclose(found[..., :2], means, atol=2e-3)
        shutil.rmtree(root / "mine")
    assert [len(names) for names in folders] == [1, 1, 2]
    assert "latents          of other images of this name are in " in told
    known = codec_identity(workdir / "codec/model")
    for path in [*(root / "latents/mine:train").iterdir()]:
        path.rename(path.with_name(path.name.replace(*(f"{known[n]:08x}" for n in NUMBERS))))
    prepare.main(command)
    assert "do not say by which codec of these parameters they were made, are in " in (
        capsys.readouterr().err
    )


def test_data_sets_that_cannot_be_written_to(workdir, tmp_path, monkeypatch):
    """Latents go to the run, and are found there."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file/data"))
    arguments = {"flip": False, "batch_size": 500, "mesh": make_mesh()}
    arguments |= {"otherwise": tmp_path / "run/latents/8"}
    first, again = (
        in_latents(load_dataset("digits"), workdir / "codec/model", None, **arguments).images
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(list((tmp_path / "run/latents/8").glob("*.npy"))) == 1


def test_latents_on_disk_are_the_same(workdir):
    """Rows that are read as a run goes are those of all latents in memory."""
    arguments = {"flip": True, "batch_size": 100, "mesh": make_mesh()}
    data, folder = load_dataset("digits"), workdir / "codec/latents"
    resident, disk = (
        Pipeline(
            in_latents(data, workdir / "codec/model", folder, in_memory=kept, **arguments),
            *(16, 0, kept),
        )
        for kept in (True, False)
    )
    arrays = resident.resident_arrays()
    with resident.iterator(2) as order, disk.iterator(2) as rows:
        for _ in range(3):
            index, found = next(order)["index"], next(rows)
            for name in ("image", "label"):
                np.testing.assert_array_equal(found[name], arrays[name][index])
