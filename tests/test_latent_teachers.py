"""Teachers of latents by the command line: with a codec of their own, or a run's."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_experiment import LOOP

import pdistill
from pdistill import convert, experiment
from pdistill import model as models
from pdistill.cli.config_file import load_config
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.model import ModelError
from pdistill.networks import AutoencoderTiny, Codec, SiT
from pdistill.runtime.mesh import make_mesh

sys.path.append(str(Path(__file__).parent / "interop"))
from comparison import checkpoint
from sit_reference import state_dict

# Of latents of 4 x 4 x 4 for images of 8 x 8 x 1.
TINY = AutoencoderTiny(
    channels=4, latent_channels=4, image_channels=1, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
)


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    """A folder for data sets of their own, where runs keep latents."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def write_codec(directory, channels=4, image_channels=1, **blocks):
    module = TINY.clone(latent_channels=channels, image_channels=image_channels, **blocks)
    blank = Codec(None, module, (0.0,) * channels, (1.0,) * channels, tile=64)
    codec = jax.jit(blank.init)(jax.random.key(0))
    models.save_codec(directory, codec, stage="tiny", method="diffusers")
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A codec, a checkpoint of SiT, and models of it with the codec and without."""
    folder = tmp_path_factory.mktemp("latent_teachers")
    write_codec(folder / "codec")
    tensors = state_dict(outputs=8, width=16, depth=1, heads=2, patch=2, side=2)
    source = f"--source={checkpoint(folder / 'sit.pt', tensors, ('ema',))}"
    common = ["--from=sit", source, "--heads=2", "--num_steps=2"]
    convert.main([*common, f"--out={folder / 'bare'}"])
    convert.main([*common, f"--out={folder / 'whole'}", f"--codec={folder / 'codec'}"])
    return folder


def test_a_converted_teacher_makes_images(folder, capsys):
    model = pdistill.load(folder / "whole")
    assert (model.image_shape, model.noise_shape) == ((8, 8, 1), (4, 4, 4))
    latents = model.sample(jax.random.key(0), 2, label=3, guidance=0.5, latents=True)
    images = model.sample(jax.random.key(0), 2, label=3, guidance=0.5)
    decoded = np.clip(model.network.codec.decode(latents), -1, 1)
    np.testing.assert_allclose(decoded, images, atol=1e-5)
    bare = pdistill.load(folder / "bare")
    assert bare.image_shape == (4, 4, 4)
    np.testing.assert_array_equal(bare.sample(jax.random.key(0), 2, label=3, guidance=0.5), latents)
    assert bare.card["published"] == {"guidance": 0.5}


def test_codecs_that_do_not_fit(folder, tmp_path):
    common = [f"--source={folder / 'sit.pt'}", f"--out={tmp_path / 'out'}"]
    other = write_codec(tmp_path / "other", channels=2)
    with pytest.raises(SystemExit, match="latents of 2 channels, and the network takes 4; give"):
        convert.main(["--from=sit", "--heads=2", *common, f"--codec={other}"])
    with pytest.raises(SystemExit, match="no codec in"):
        convert.main(["--from=sit", "--heads=2", *common, f"--codec={tmp_path / 'none'}"])
    assert not (tmp_path / "out").exists()


def test_a_codec_for_one_that_names_none(folder, tmp_path):
    assert pdistill.load(folder / "bare").image_shape == (4, 4, 4)
    assert pdistill.load(folder / "bare", codec=folder / "codec").image_shape == (8, 8, 1)
    shutil.copytree(folder / "bare", tmp_path / "guide")
    card = json.loads((tmp_path / "guide/model.json").read_text())
    card["codec"] = {"path": "elsewhere", "checksum": 1}
    (tmp_path / "guide/model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="not both of images, or of latents of one codec"):
        pdistill.load(folder / "bare", codec=folder / "codec", guide=tmp_path / "guide")


@pytest.mark.parametrize(
    ("name", "students"),
    [
        ("guided", ("guided", "guided_progressive/1")),
        pytest.param("dmd2", ("dmd",), marks=pytest.mark.slow),
        pytest.param("mean_flow", ("mean_flow",), marks=pytest.mark.slow),
        pytest.param("progressive", ("progressive/1",), marks=pytest.mark.slow),
    ],
)
def test_configs_to_their_last_line(folder, tmp_path, name, students):
    """With few updates, of digits, from a teacher whose codec the config names.

    What is copied of it, and its students, make images.
    """
    config = load_config(f"imagenet256_{name}:imported")
    config.teacher, config.codec = str(folder / "bare"), str(folder / "codec")
    config.data = ConfigDict({"name": "digits"})
    config.mesh = ConfigDict({"data": -1})
    small = {"start_steps": 2, "long_rounds": 0, "measured_at": (2,), "select": "fd_pixels"}
    for stage in config.stages[1:]:
        stage.update({key: value for key, value in small.items() if key in stage}, loop=LOOP)
    config.evaluation.update(
        num_samples=16, batch_size=16, metrics=("fd_pixels",), references=("test",)
    )
    if name == "guided":
        config.evaluation.guidance = (0.5,)
    experiment.run(config, tmp_path / "run")
    for stage in ("teacher", *students):
        model = pdistill.load(tmp_path / "run" / stage)
        assert (model.image_shape, model.noise_shape) == ((8, 8, 1), (4, 4, 4))
        assert model.card["codec"]["path"] == str(folder / "codec")
        assert model.network.guidance_channels == 3


@pytest.fixture(scope="module")
def imagenet(folder, tmp_path_factory):
    """A codec of 256 x 256 x 3, and a small SiT of its latents of 32 x 32 x 4."""
    out = tmp_path_factory.mktemp("imagenet")
    write_codec(out / "codec", image_channels=3, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4)
    tensors = state_dict(outputs=4, width=16, depth=1, heads=2, patch=8, side=4, labels=1000)
    source = checkpoint(out / "sit.pt", tensors)
    convert.main([
        "--from=sit", f"--source={source}", "--heads=2", f"--out={out / 'sit'}",
        f"--codec={out / 'codec'}",
    ])  # fmt: skip
    return out


@pytest.mark.parametrize(
    "name",  # progressive distillation is run above
    [pytest.param("progressive", marks=pytest.mark.slow), "guided", "dmd2", "mean_flow"],
)
def test_an_update_of_each_config_fits_its_teacher(imagenet, name):
    config = as_plain(load_config(f"imagenet256_{name}:imported"))
    assert "codec" not in config
    for stage in config["stages"]:
        stage |= {"start_steps": 2} if "start_steps" in stage else {}
    settings = parse(config | {"teacher": str(imagenet / "sit")})
    runs = plan(settings, (256, 256, 3))
    teacher, student = list(runs.values())[:2]
    assert teacher.network.shape == (32, 32, 4)
    assert student.image_shape == (256, 256, 3)
    update = trace_update(
        student, runs, settings, make_mesh(-1, 8, jax.devices()), (50_000, 256, 256, 3)
    )
    _, metrics = update.traced.out_info
    assert metrics["values"]["loss"].shape == (1,)


def test_remat_and_number_format_of_an_imported_teacher(imagenet):
    """The config's and a stage's own reach the teacher, its card, and students that are copies."""
    config = as_plain(load_config("imagenet256_progressive:imported"))
    first, second, *_ = config["stages"]
    assert first["remat"] == "products"
    second["start_steps"] = 2
    first["dtype"] = "bfloat16"
    settings = parse(config | {"teacher": str(imagenet / "sit")})
    runs = plan(settings, (256, 256, 3))
    for name in ("teacher", "progressive/1"):
        module = runs[name].network.module
        assert (module.remat, module.dtype) == ("products", jnp.bfloat16)
    teacher = runs["teacher"]
    said = teacher.run.method.card(teacher.network)["network"]["arguments"]
    assert (said["remat"], said["dtype"]) == ("products", "bfloat16")
    del first["remat"], first["dtype"]  # which its card says then
    module = plan(parse(config | {"teacher": str(imagenet / "sit")}), (256, 256, 3))[
        "teacher"
    ].network.module
    assert (module.remat, module.dtype) == (False, None)


@pytest.mark.parametrize("variant", ["", ":lightningdit"])
def test_the_teachers_config(tmp_path, variant):
    """It is of XL's sizes, which are counted elsewhere, and an update fits its codec's latents."""
    channels, blocks = (32, (1,) * 5) if variant else (4, (1,) * 4)
    write_codec(tmp_path / "codec", channels, 3, encoder_blocks=blocks, decoder_blocks=blocks)
    config = as_plain(load_config(f"imagenet256_latents{variant}"))
    sizes = config["model"]["network"]["arguments"]
    whole = SiT(channels, **sizes)
    assert (whole.features, whole.depth, whole.heads) == (1152, 28, 16)
    sizes |= {"features": 16, "depth": 1, "heads": 2}
    settings = parse(config | {"codec": str(tmp_path / "codec")})
    runs = plan(settings, (256, 256, 3))
    assert runs["teacher"].network.module.swiglu == bool(variant)
    update = trace_update(
        runs["teacher"], runs, settings, make_mesh(-1, 8, jax.devices()), (50_000, 256, 256, 3)
    )
    _, metrics = update.traced.out_info
    assert metrics["values"]["loss"].shape == (1,)


@pytest.fixture
def lowdiff(tmp_path):
    """`imagenet256_lowdiff` with few updates of a small network, of digits in a codec's latents."""
    write_codec(tmp_path / "codec")
    config = load_config("imagenet256_lowdiff")
    config.codec, config.mesh = str(tmp_path / "codec"), ConfigDict({"data": -1})
    config.data = ConfigDict({"name": "digits"})
    config.model.network.arguments.update(features=16, depth=1, heads=2)
    del config.model.network.arguments["remat"]
    lowdiff, progressive = config.stages
    lowdiff.update(resolutions=(2, 4), measured_at=((1, 1),))
    progressive.update(start_steps=2, long_rounds=0)
    for stage in (lowdiff, progressive):
        stage["loop"], stage["split"] = LOOP, (8, 8)
    config.evaluation = ConfigDict(
        {"num_samples": 16, "batch_size": 16, "metrics": ("fd_pixels",), "guidance": (0.0,)}
    )
    return config


def test_updates_of_lowdiff_fit_a_codecs_latents(lowdiff):
    settings = parse(as_plain(lowdiff))
    runs = plan(settings, (8, 8, 1))
    for name in ("lowdiff", "distilled/1"):
        assert (runs[name].image_shape, runs[name].network.shape) == ((8, 8, 1), (4, 4, 4))
        update = trace_update(runs[name], runs, settings, make_mesh(-1, 1), (1000, 8, 8, 1))
        _, metrics = update.traced.out_info
        assert metrics["values"]["loss"].shape == (1,)


@pytest.mark.slow
def test_lowdiff_to_its_last_line(lowdiff, tmp_path):
    experiment.run(lowdiff, tmp_path / "run")
    model = pdistill.load(tmp_path / "run/distilled/1")
    assert (model.image_shape, model.noise_shape) == ((8, 8, 1), (4, 4, 4))
    assert model.sample(jax.random.key(0), 2, label=3).shape == (2, 8, 8, 1)
