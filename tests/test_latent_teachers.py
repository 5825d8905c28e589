"""Teachers of latents by the command line: with a codec of their own, or a run's."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_experiment import LOOP, tiny

import pdistill
from pdistill import convert, experiment
from pdistill import model as models
from pdistill.networks import AutoencoderTiny, Codec

sys.path.append(str(Path(__file__).parent / "interop"))
from comparison import checkpoint
from sit_reference import state_dict

# Of latents of 4 x 4 x 4 for images of 8 x 8 x 1.
TINY = AutoencoderTiny(
    channels=4, latent_channels=4, image_channels=1, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
)


def write_codec(directory, channels=4):
    module = TINY.clone(latent_channels=channels)
    blank = Codec(None, module, (0.0,) * channels, (1.0,) * channels, tile=32)
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
    np.testing.assert_allclose(model.network.codec.decode(latents), images, atol=1e-5)
    bare = pdistill.load(folder / "bare")
    assert bare.image_shape == (4, 4, 4)
    np.testing.assert_array_equal(bare.sample(jax.random.key(0), 2, label=3, guidance=0.5), latents)
    assert bare.card["published_guidance"] == 0.5


def test_codecs_that_do_not_fit(folder, tmp_path):
    common = [f"--source={folder / 'sit.pt'}", f"--out={tmp_path / 'out'}"]
    other = write_codec(tmp_path / "other", channels=2)
    with pytest.raises(SystemExit, match="latents of 2 channels, and the network takes 4; give"):
        convert.main(["--from=sit", "--heads=2", *common, f"--codec={other}"])
    with pytest.raises(SystemExit, match="no codec in"):
        convert.main(["--from=sit", "--heads=2", *common, f"--codec={tmp_path / 'none'}"])
    assert not (tmp_path / "out").exists()


def test_a_codec_for_one_that_names_none(folder):
    assert pdistill.load(folder / "bare").image_shape == (4, 4, 4)
    assert pdistill.load(folder / "bare", codec=folder / "codec").image_shape == (8, 8, 1)


@pytest.mark.parametrize("teacher", ["bare", "whole"])
def test_a_run_from_it(folder, tmp_path, teacher):
    """The run's copy makes images, by the config's codec or the teacher's own; as its students."""
    config = tiny()
    stages = [
        {"name": "teacher", "method": "imported", "path": str(folder / teacher)},
        {"name": "guided", "method": "guided", "teacher": "teacher", "measured_at": (2,)},
    ]
    stages[1] |= {"loop": LOOP, "optimizer": {"learning_rate": 1e-3}}
    config.stages = tuple(map(ConfigDict, stages))
    config.codec = "" if teacher == "whole" else str(folder / "codec")
    del config["model"]
    config.evaluation.update(num_samples=16, batch_size=16, metrics=("fd_pixels",))
    experiment.run(config, tmp_path / "run")
    for stage in ("teacher", "guided"):
        model = pdistill.load(tmp_path / "run" / stage)
        assert (model.image_shape, model.noise_shape) == ((8, 8, 1), (4, 4, 4))
        assert model.card["codec"]["path"] == str(folder / "codec")
        assert model.network.guidance_channels == 3
