"""Folders for hubs: out and in is exact, and damage is one clear error."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparison import each_damage
from flax import traverse_util

import pdistill
from pdistill.diffusion import KarrasSchedule
from pdistill.interop import ConversionError, conversion, read_folder, write_folder, write_model
from pdistill.model import ModelError
from pdistill.networks import AutoencoderTiny, Edm2UNet, Network, SongUNet
from pdistill.runtime.mesh import make_mesh


@pytest.fixture(scope="module")
def folder(guided, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "new/folder"
    write_folder(folder, pdistill.load(guided))
    return folder


def test_out_and_in_is_exact(folder, guided, tmp_path):
    write_model(tmp_path / "model", read_folder(folder))
    before, after = pdistill.load(guided), pdistill.load(tmp_path / "model")
    assert after.card == before.card
    chex.assert_trees_all_equal(after.network, before.network)


def test_a_folder_is_a_model(folder, guided):
    """Also spread over devices, as a model directory is."""
    before, mesh = pdistill.load(guided), make_mesh(2, 4, jax.devices())
    for after, other in (
        (pdistill.load(folder), before),
        (pdistill.load(folder, mesh), pdistill.load(guided, mesh)),
    ):
        assert after.card == before.card
        chex.assert_trees_all_equal(after.network, other.network)
        shardings = (jax.tree.map(lambda a: a.sharding, m.network.params) for m in (after, other))
        assert next(shardings) == next(shardings)


def test_what_else_is_in_a_folder_is_not_lost(guided, tmp_path):
    model = pdistill.load(guided)
    for _ in range(2):  # its own folder is replaced
        write_folder(tmp_path / "models/one", model)
    with pytest.raises(ValueError, match="models has one in it, which a model's folder would repl"):
        write_folder(tmp_path / "models", model)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"theirs has config\.json in it"):
        write_folder(theirs, model)
    (tmp_path / "models/one/.git").mkdir()
    with pytest.raises(ValueError, match=r"one has \.git in it"):
        write_folder(tmp_path / "models/one", model)
    pdistill.load(tmp_path / "models/one")
    with pytest.raises(ValueError, match="is a file"):
        write_folder(tmp_path / "models/one/config.json", model)


def test_a_codec_goes_out_and_in(guided, tmp_path):
    """In a folder within the model's."""
    model = pdistill.load(guided)
    *_, channels = model.network.shape
    blocks = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    module = AutoencoderTiny(channels=8, latent_channels=channels, **blocks)
    codec = pdistill.Codec(None, module, (0.5,) * channels, (2.0,) * channels, 16)
    codec = jax.jit(codec.init)(jax.random.key(0))
    network = model.network.replace(codec=codec)
    write_folder(tmp_path / "folder", dataclasses.replace(model, network=network))
    folders = [tmp_path / name for name in ("folder", "moved/folder", "model")]
    shutil.copytree(folders[0], folders[1])
    (folders[1] / "codec").rename(tmp_path / "moved/codec")  # as models of one zoo share it
    card = json.loads((folders[1] / "config.json").read_text())
    card["codec"]["path"] = "../codec"
    (folders[1] / "config.json").write_text(json.dumps(card))
    write_model(folders[2], read_folder(folders[1]))
    shutil.rmtree(tmp_path / "moved")
    for directory in (folders[0], folders[2]):
        found = pdistill.load(directory).network.codec
        assert found.blank == codec.blank
        chex.assert_trees_all_equal(found.params, codec.params)


def test_a_model_is_written_with_its_parts_or_not_at_all(guided, tmp_path, monkeypatch):
    model = pdistill.load(guided, guide=guided)
    write_folder(tmp_path / "folder", model)
    monkeypatch.setattr(conversion, "guide_card", lambda *_: 1 / 0)  # in the middle
    with pytest.raises(ZeroDivisionError):
        write_model(tmp_path / "model", read_folder(tmp_path / "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("module", "exact"),
    [
        (SongUNet(1, channels=8, waves="fourier", multipliers=(1,), blocks=0), ["map_noise.freqs"]),
        (
            Edm2UNet(1, channels=16, multipliers=(1,), blocks=1, head_channels=16),
            ["emb_fourier.freqs", "emb_fourier.phases"],
        ),
    ],
)
def test_frequencies_are_not_rounded(tmp_path, module, exact):
    """In cos and sin of hundreds of radians: NCSN++ would be another network, by 5 percent."""
    blank = Network(None, module=module, head="v", schedule=KarrasSchedule(), shape=(4, 4, 1))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), blank.shapes.params
    )
    card = conversion.teacher_card(blank, method="edm", source="random", num_steps=2)
    write_model(tmp_path / "model", conversion.Conversion(blank.replace(params=params), card))
    write_folder(tmp_path / "hub", pdistill.load(tmp_path / "model"), "bfloat16")
    network = read_folder(tmp_path / "hub").network
    before, after = (traverse_util.flatten_dict(p, sep="/") for p in (params, network.params))
    same = [name for name, a in after.items() if np.array_equal(a, before[name])]
    assert [name.rpartition("/")[-1] for name in sorted(same)] == exact


def test_advice_names_the_models_below(folder):
    with pytest.raises(ModelError, match=f"there are {folder}; give one"):
        pdistill.load(folder.parent)


def test_layout(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    readme = (folder / "README.md").read_text()
    header = readme.split("---\n")[1]
    assert "library_name: pdistill\n" in header
    assert "pipeline_tag: unconditional-image-generation\n" in header
    assert "\n# digits/4, 4 evaluations, progressive distillation\n" in readme
    assert "4 x 4 x 1 images in 4 steps" in readme
    assert "num=16, label=0)" in readme
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert tensors["block_0/qkv/kernel"].shape == (8, 3, 2, 4)
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # whoever may read the card may read the weights


def rewrite(folder, tmp_path, change_tensors=None, **card):
    """A copy of the folder with some tensors changed, and entries of its config."""
    config = json.loads((folder / "config.json").read_text()) | card
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file((change_tensors or dict)(tensors), tmp_path / "model.safetensors")
    return tmp_path


def without(tensors):
    return {k: a for k, a in tensors.items() if k != "position"}


WRONG = {
    "missing": (without, r"has no tensor 'position'"),
    "renamed": (
        lambda t: without(t) | {"positions": t["position"]},
        r"has no tensor 'position'; it has 'positions', which this network lacks",
    ),
    "more": (lambda t: t | {"more": t["position"]}, r"has a tensor 'more', which this network"),
    "shape": (
        lambda t: t | {"position": t["position"].T.copy()},
        r"'position' has shape \[8, 4\], not \[4, 8\]",
    ),
    "values": (
        lambda t: t | {"position": t["position"] + 1},
        r"does not hold the parameters that config.json tells of",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tensors(folder, tmp_path, change, message):
    with pytest.raises(ConversionError, match=message):
        read_folder(rewrite(folder, tmp_path, change))


@each_damage
def test_damaged_numbers(folder, tmp_path, damage, message):
    change = lambda t: t | {"position": damage(t["position"])}  # noqa: E731
    with pytest.raises(ConversionError, match=f"'position' {message}"):
        read_folder(rewrite(folder, tmp_path, change))


@pytest.mark.parametrize("keep", [0, 7, 100, 1000, -1])
def test_truncated(folder, tmp_path, keep):
    path = rewrite(folder, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConversionError, match=r"cannot read .*model.safetensors: "):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"format": 2}, "has format 2; this reads 1"),
        (
            {"head": "w"},
            "cannot convert .*: head must be one of v, x, eps, both, .*; got 'w'",
        ),
        ({"network": {"name": "dit"}}, "cannot convert .*: it lacks 'arguments'"),
        ({"network": 3}, "cannot convert .*: 'int' object"),
        ({"solver": "ddjm"}, "cannot convert .*: solver must be one of"),
        ({"clip": [1.0, -1.0]}, "cannot convert .*: clip must be"),
        ({"data": {"shape": [10**9, 4, 1]}}, "cannot convert .*: a shape must be"),
    ],
    ids=str,
)
def test_wrong_cards(folder, tmp_path, card, message):
    with pytest.raises(ConversionError, match=message):
        read_folder(rewrite(folder, tmp_path, **card))


def test_no_folder(tmp_path):
    with pytest.raises(ConversionError, match=r"cannot read .*nothing/config.json"):
        read_folder(tmp_path / "nothing")
