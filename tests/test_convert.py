"""Command lines from end to end: other people's files in, a sampler out."""

import lzma
import os
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from test_torch_files import attack, program

import pdistill
from pdistill import convert, evaluate, export

FIXTURES = Path(__file__).parent / "fixtures/interop"


@pytest.fixture(scope="module")
def pickle_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("edm") / "network.pkl"
    path.write_bytes(lzma.decompress((FIXTURES / "edm/ddpmpp_vp.pkl.xz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """A converted transformer."""
    folder = tmp_path_factory.mktemp("diffusers")
    with zipfile.ZipFile(FIXTURES / "diffusers/dit.zip") as archive:
        archive.extractall(folder / "dit")
    out = folder / "models/dit"
    convert.main(["--from=diffusers", f"--source={folder / 'dit'}", f"--out={out}"])
    return out


def test_convert_export_run(dit, tmp_path, capsys):
    model = pdistill.load(dit)
    assert model.card["stage"] == "dit"
    assert model.card["num_steps"] == 64
    out = tmp_path / "sampler.stablehlo"
    export.main([f"--model={dit}", "--num_steps=2", f"--out={out}", "--weights=beside"])
    assert "call(weights, key, index, label, guidance)" in capsys.readouterr().out
    sampler = jax_export.deserialize(out.read_bytes())
    with np.load(out.with_suffix(".npz")) as weights:
        weights = dict(weights)
    key, label, weight = jax.random.key(0), jnp.array([1, 3]), jnp.array([0.0, 2.0])
    images = sampler.call(weights, key, jnp.arange(2), label, weight)
    desired = model.sample(key, 2, label=label, guidance=weight, num_steps=2)
    assert np.std(desired) > 0.1
    np.testing.assert_array_equal(images, desired)


def test_to_a_hub_and_back(dit, tmp_path):
    folder, out = tmp_path / "folder", tmp_path / "back"
    export.main([f"--model={dit}", "--to=safetensors", f"--out={folder}"])
    convert.main(["--from=safetensors", f"--source={folder}", f"--out={out}"])
    before, after = pdistill.load(dit), pdistill.load(out)
    assert before.card == after.card
    chex.assert_trees_all_equal(before.network, after.network)


def test_evaluate_takes_a_converted_model(pickle_file, tmp_path):
    out = tmp_path / "model"
    convert.main(["--from=edm", f"--source={pickle_file}", f"--out={out}", "--num_steps=2"])
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    rows = tmp_path / "rows.jsonl"
    evaluate.main([
        f"--model={out}", f"--reference={tmp_path / 'images.npz'}", "--metrics=fd_pixels",
        "--num_samples=8", f"--out={rows}",
    ])  # fmt: skip
    row = rows.read_text()
    assert '"nfe": 2' in row
    assert '"method": "edm"' in row


def error_of(arguments):
    with pytest.raises(SystemExit) as error:
        convert.main(arguments)
    return str(error.value)


def test_errors_leave_nothing(pickle_file, tmp_path):
    out = tmp_path / "out/model"
    marker = tmp_path / "marker"
    trap = tmp_path / "trap.pkl"
    trap.write_bytes(program(attack(marker)["system"]))
    common = [f"--source={pickle_file}", f"--out={out}"]
    cases = [
        (["--from=edm", f"--source={trap}", f"--out={out}"], "has no place in a network"),
        (["--from=edm", f"--source={tmp_path}", f"--out={out}"], "cannot read"),
        (["--from=diffusers", *common], "there is no config.json in"),
        (["--from=safetensors", *common], "cannot read"),
        (["--from=official_pd", "--image_size=32", *common], "cannot read"),
        (["--from=adm", "--flags=--image_size 64", *common], "cannot read"),
        (["--from=adm", *common], "--from=adm needs --flags"),
        (["--from=official_pd", *common], "--from=official_pd needs --image_size"),
        (["--from=edm", "--flags=x", *common], "--flags is not for --from=edm"),
        (["--from=edm", "--num_steps=0", *common], "must be at least 1"),
    ]
    for arguments, message in cases:
        error = error_of(arguments)
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
    assert not marker.exists()
    assert not out.parent.exists()


@pytest.mark.parametrize("name", ["adm", "diffusers", "edm", "ldm", "official_pd", "safetensors"])
def test_pipes_devices_and_deep_json(tmp_path, name):
    """No reader waits for a pipe, fills memory from a device, or shows a traceback."""
    more = {"adm": ["--flags="], "official_pd": ["--image_size=8"]}.get(name, [])
    out = [f"--from={name}", f"--out={tmp_path / 'out'}", *more]
    source = tmp_path / "source"
    if name in ("diffusers", "safetensors"):
        source.mkdir()
        (source / "config.json").write_text("[" * 10**5)
        assert "config.json is nested too deeply" in error_of([*out, f"--source={source}"])
        (source / "config.json").unlink()
        os.mkfifo(source / "config.json")
        error = error_of([*out, f"--source={source}"])
        assert "not a regular file" in error or "there is no config.json" in error
        return
    os.mkfifo(source)
    for path in (source, "/dev/zero"):
        assert f"{path} is not a regular file" in error_of([*out, f"--source={path}"])


def test_a_full_disk_leaves_nothing(pickle_file, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pdistill.runtime.temporary.replace", full)
    out = tmp_path / "model"
    error = error_of(["--from=edm", f"--source={pickle_file}", f"--out={out}"])
    assert error == "error: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_out_is_not_overwritten(pickle_file, tmp_path):
    (tmp_path / "kept").touch()
    error = error_of(["--from=edm", f"--source={pickle_file}", f"--out={tmp_path}"])
    assert error == f"error: {tmp_path} is there already; give a new --out"
    assert (tmp_path / "kept").exists()


def test_wrong_exports(dit, tmp_path):
    for arguments, message in [
        ([f"--model={tmp_path}"], "no model in"),
        ([f"--model={dit}", "--num_steps=0"], "num_steps must be at least 1"),
    ]:
        with pytest.raises(SystemExit, match=f"error: {message}"):
            export.main([*arguments, f"--out={tmp_path / 'x'}"])
    with pytest.raises(SystemExit, match=f"error: cannot write {tmp_path}: it is a folder"):
        export.main([f"--model={tmp_path}/none", f"--out={tmp_path}"])  # before it is loaded
    assert list(tmp_path.iterdir()) == []
