"""Against networks of diffusers, in folders that it wrote."""

import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparison import check_parity, each_damage

from pdistill import convert, samplers
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


def test_a_dit_of_before_its_class(unpack):
    """As facebook/DiT-XL-2-256: its config and its index say Transformer2DModel."""
    folder = unpack("dit")
    named = convert_diffusers(folder).network
    edit(folder, "transformer", _class_name="Transformer2DModel")
    pipeline(folder, _class_name="DiTPipeline", transformer=["diffusers", "Transformer2DModel"])
    found = convert_diffusers(folder).network
    assert found.blank == named.blank
    for a, b in zip(*map(jax.tree.leaves, (found.params, named.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    for change in ({"norm_type": "layer_norm"}, {"patch_size": None}):
        edit(folder, "transformer", norm_type="ada_norm_zero", patch_size=2)
        edit(folder, "transformer", **change)
        with pytest.raises(ConversionError, match="is of Transformer2DModel, not UNet2DModel"):
            convert_diffusers(folder)


def test_a_folders_own_scheduler_comes_first(unpack):
    """Before one in the folder above it, of the pipeline that it was fine-tuned from."""
    pipeline = unpack("ddpm")
    mine = pipeline / "mine"
    shutil.copytree(pipeline / "unet", mine)
    assert convert_diffusers(mine).network.head == "eps"  # it has no other
    shutil.copytree(pipeline / "scheduler", mine, dirs_exist_ok=True)
    config = mine / "scheduler_config.json"
    changed = json.loads(config.read_text()) | {"prediction_type": "v_prediction"}
    config.write_text(json.dumps(changed))
    assert convert_diffusers(mine).network.head == "v"
    assert convert_diffusers(pipeline).network.head == "eps"


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
    "nan": ("scheduler", {"beta_end": float("nan")}, "must satisfy 0 < beta_start <= beta_end < 1"),
    "steps": ("scheduler", {"num_train_timesteps": 10**9}, "num must be in 2 .. 100,000"),
    "half": ("scheduler", {"num_train_timesteps": 9.5}, "must be a whole number of at least 1"),
    "flow": ("scheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True is not supported"),
    "dynamic": ("scheduler", {"thresholding": True}, "thresholding=True is not supported"),
    "continuous": ("scheduler", {"timestep_type": "continuous"}, "timestep_type='continuous' is"),
    "old head": ("scheduler", {"predict_epsilon": False}, "predict_epsilon=False is not supported"),
    "clip": (
        "scheduler",
        {"clip_sample": True, "clip_sample_range": float("nan")},
        "clip_sample_range must be positive; it is nan",
    ),
    "nan epsilon": ("unet", {"norm_eps": float("nan")}, "epsilon must be a finite number; got nan"),
    "epsilon": ("unet", {"norm_eps": -1e-5}, "epsilon must be at least 0; got -1e-05"),
    "dropout": ("unet", {"dropout": 1.5}, "dropout must be in [0, 1); got 1.5"),
    "huge": ("unet", {"sample_size": 10**9}, "[height, width, channels], each in 1 .. 16,384"),
    "half size": ("unet", {"sample_size": 8.5}, "[height, width, channels], each in 1 .. 16,384"),
    "no channels": ("unet", {"in_channels": 0, "out_channels": 0}, "in_channels must be a whole"),
    "deep": ("unet", {"layers_per_block": 10**6}, "has 2,000,000 blocks; it can have 1,000"),
    "deeper": ("unet", {"layers_per_block": 300}, "not enough for a network of 600 blocks"),
}


@pytest.mark.parametrize(("part", "change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_configs(unpack, part, change, message):
    folder = unpack("ddpm")
    edit(folder, part, **change)
    with pytest.raises(ConversionError) as error:
        convert_diffusers(folder)
    assert message in str(error.value)


def edit(folder, part, **change):
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


# --- Schedulers and pipelines ---------------------------------------------------------------------

TRANSLATED = {
    "DDPM": ({"_class_name": "DDPMScheduler", "clip_sample": True}, (-1.0, 1.0)),
    "range": ({"clip_sample": True, "clip_sample_range": 2.5}, (-2.5, 2.5)),
    "no clipping": ({"clip_sample": False}, None),
    # It has a DDPM scheduler's values left in it, which it does not heed.
    "Euler": ({"_class_name": "EulerDiscreteScheduler", "clip_sample": True}, None),
    "Heun": ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, (-1.0, 1.0)),
}


@pytest.mark.parametrize(("change", "clip"), TRANSLATED.values(), ids=TRANSLATED)
def test_a_scheduler_says_whether_to_clip(unpack, change, clip):
    folder = unpack("ddpm")
    edit(folder, "scheduler", **change)
    assert convert_diffusers(folder).card["clip"] == clip


@pytest.mark.parametrize("use_clipped_model_output", [True, False])
def test_steps_are_those_of_one_of_diffusers_settings(use_clipped_model_output):
    """DDIMScheduler's step from its documentation, with timestep_spacing "trailing".

    Without use_clipped_model_output, its default, the noise stays that of x_hat unclipped.
    """
    x_hat = lambda z: 3 * np.tanh(z)  # noqa: E731  # beyond the range
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    noise = np.random.default_rng(0).normal(size=(64, 1))
    steps, step = [noise], 1000 // 10
    for t in range(999, 0, -step):
        a, before = alphas[t], alphas[t - step] if t >= step else 1.0
        z = steps[-1]
        x = np.clip(x_hat(z), -1, 1)
        eps = (z - np.sqrt(a) * (x if use_clipped_model_output else x_hat(z))) / np.sqrt(1 - a)
        steps.append(np.sqrt(before) * x + np.sqrt(1 - before) * eps)
    _, ours = samplers.sample(
        lambda z, logsnr: 3 * jnp.tanh(z), None, z_init=jnp.asarray(noise, jnp.float32),
        schedule=DdpmSchedule(), num_steps=10, clip=(-1, 1),
        return_trajectory=True,
    )  # fmt: skip
    difference = np.abs(ours - np.stack(steps)).max()
    assert difference < 1e-5 if use_clipped_model_output else difference > 0.1, difference


def test_what_a_scheduler_leaves_out_is_its_own_default(unpack):
    folder = unpack("ddpm")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text('{"_class_name": "DDPMScheduler"}')
    conversion = convert_diffusers(folder)
    assert conversion.network.schedule == DdpmSchedule("linear", 1e-4, 0.02)
    assert conversion.card["clip"] == (-1.0, 1.0)
    path.write_text('{"_class_name": "HeunDiscreteScheduler"}')
    conversion = convert_diffusers(folder)
    assert conversion.network.schedule == DdpmSchedule("linear", 0.00085, 0.012)
    assert conversion.card["clip"] is None


REFUSED = (
    *("CMStochasticIterativeScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("LCMScheduler", "ScoreSdeVeScheduler", "TCDScheduler", None),
)


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_that_mean_another_network(unpack, name):
    folder = unpack("ddpm")
    edit(folder, "scheduler", _class_name=name)
    with pytest.raises(ConversionError, match=f"is of {name or 'no class'}.*; a network for it"):
        convert_diffusers(folder)


def test_an_empty_scheduler_is_refused_by_the_command(unpack, tmp_path):
    folder = unpack("ddpm")
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"error: .*scheduler_config.json is of no class"):
        convert.main(["--from=diffusers", f"--source={folder}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def pipeline(folder, **parts):
    (folder / "model_index.json").write_text(json.dumps(parts))


def test_three_channels_of_a_codec_are_latents(unpack):
    folder = unpack("ddpm")
    assert convert_diffusers(folder).card["data"]["scale"] == "image / 127.5 - 1"
    pipeline(folder, _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])
    for source in (folder, folder / "unet"):
        card = convert_diffusers(source).card
        assert (card["data"]["scale"], card["clip"]) == ("latents", None)
    (folder / "model_index.json").unlink()
    (folder / "vqvae").mkdir()
    assert convert_diffusers(folder).card["data"]["scale"] == "latents"


def test_other_pipelines(unpack):
    folder = unpack("ddpm")
    pipeline(folder, _class_name="StableDiffusionPipeline")
    with pytest.raises(ConversionError, match="is of StableDiffusionPipeline, not one of DDPMPip"):
        convert_diffusers(folder)
    pipeline(folder, _class_name="DDPMPipeline", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    with pytest.raises(ConversionError, match="names ScoreSdeVeScheduler; make them the same"):
        convert_diffusers(folder)


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


@each_damage
def test_damaged_numbers(unpack, damage, message):
    path = unpack("dit") / "transformer" / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    tensors["proj_out_1.weight"] = damage(tensors["proj_out_1.weight"])
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ConversionError, match=f"'proj_out_1.weight' {message}"):
        convert_diffusers(path.parents[1])
