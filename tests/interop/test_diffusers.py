"""Against networks of diffusers, in folders that it wrote."""

import json
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparison import check_parity

from pdistill.diffusion import DdpmSchedule
from pdistill.interop import ConversionError, convert_diffusers

FOLDER = Path(__file__).parents[1] / "fixtures/interop/diffusers"
NETWORKS = {
    "ddpm": ("eps", DdpmSchedule("linear"), (8, 8, 3)),
    "adm": ("v", DdpmSchedule("cosine"), (8, 8, 3)),
    "dit": ("eps", DdpmSchedule("scaled_linear"), (8, 8, 4)),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unpack(tmp_path):
    def unpack(name):
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


@pytest.mark.parametrize("name", NETWORKS)
def test_parity(unpack, name):
    conversion = convert_diffusers(unpack(name))
    head, schedule, shape = NETWORKS[name]
    assert conversion.network.head == head
    assert conversion.network.schedule == schedule
    assert conversion.card["data"]["shape"] == shape
    with np.load(FOLDER / f"{name}.npz") as arrays:
        arrays = dict(arrays)
    levels = schedule(jnp.asarray((arrays["step"] + 1) / 1000))
    check_parity(conversion, arrays, levels, "output")


def test_latents_and_their_guidance(unpack):
    card = convert_diffusers(unpack("dit")).card
    assert (card["clip"], card["data"]["scale"]) == (None, "latents")
    assert card["guidance"] == (0.0, None)
    assert card["num_labels"] == 4


def test_layouts_and_names_of_older_files(unpack, tmp_path):
    """Everything in one folder, and attention's layers called query, key, value, proj_attn."""
    folder = unpack("ddpm")
    new = convert_diffusers(folder)
    assert convert_diffusers(folder / "unet").network.blank == new.network.blank
    old = tmp_path / "old"
    old.mkdir()
    for path in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()):
        (old / path.name).write_bytes(path.read_bytes())
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.numpy.load_file(old / WEIGHTS)
    for name in list(tensors):
        for after, before in names.items():
            if f".{after}." in name:
                tensors[name.replace(after, before)] = tensors.pop(name)
    assert "mid_block.attentions.0.proj_attn.weight" in tensors
    safetensors.numpy.save_file(tensors, old / WEIGHTS)
    converted = convert_diffusers(old)
    name = "down_blocks.1.attentions.0"
    for layer in ("to_q", "to_k", "to_v", "to_out.0"):
        np.testing.assert_array_equal(
            converted.network.params[name][layer]["kernel"],
            new.network.params[name][layer]["kernel"],
        )


WRONG = {
    "class": ("unet", {"_class_name": "UNet2DConditionModel"}, "is of UNet2DConditionModel, not"),
    "activation": ("unet", {"act_fn": "gelu"}, "act_fn='gelu' is not supported, 'silu' is"),
    "embedding": ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is"),
    "blocks": (
        "unet",
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
        "blocks of type SkipDownBlock2D are not supported",
    ),
    "attention": (
        "unet",
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        "attention must be at the same scales, down and up",
    ),
    "channels": ("unet", {"block_out_channels": [16, 64]}, "has shape"),
    "groups": ("unet", {"norm_num_groups": 7}, "Number of groups (7) does not divide"),
    "levels": ("unet", {"block_out_channels": 16}, "cannot convert"),
    "size": ("unet", {"sample_size": None}, "cannot convert"),
    "layers": ("unet", {"layers_per_block": 2}, "has no tensor 'down_blocks.0.resnets.1"),
    "betas": ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule must be one of linear"),
    "head": ("scheduler", {"prediction_type": "score"}, "prediction_type one of epsilon"),
    "trained": ("scheduler", {"trained_betas": [0.1]}, "trained_betas=[0.1] is not supported"),
    "range": ("scheduler", {"beta_start": 2.0}, "must satisfy 0 < beta_start <= beta_end < 1"),
}


@pytest.mark.parametrize(("part", "change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_configs(unpack, part, change, message):
    folder = unpack("ddpm")
    path = folder / part / ("config.json" if part == "unet" else "scheduler_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConversionError) as error:
        convert_diffusers(folder)
    assert message in str(error.value)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_and_damaged_configs(unpack, file):
    path = unpack("ddpm") / file
    path.write_text('{"_class_name": "UNet2DModel"')
    with pytest.raises(ConversionError, match=f"cannot read .*{path.name}"):
        convert_diffusers(path.parents[1])
    path.unlink()
    with pytest.raises(ConversionError, match=f"there is no {path.name} in "):
        convert_diffusers(path.parents[1])


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_weights(unpack, keep):
    path = unpack("ddpm") / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConversionError, match=f"cannot read .*{WEIGHTS}"):
        convert_diffusers(path.parents[1])
