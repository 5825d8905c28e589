"""A whole tiny experiment: what it leaves, that it resumes, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

import pdistill
from configs import digits_pd
from pdistill import experiment
from pdistill.config import ConfigError
from pdistill.files import read_jsonl

TIMINGS = ("seconds_per_image",)


def tiny() -> ConfigDict:
    """digits_pd, but a few updates of a very small network, 4 -> 1 steps."""
    config = digits_pd.get_config()
    config.model.network.arguments.update(features=16, depth=1, heads=2)
    teacher, progressive = config.stages
    teacher["num_steps"] = (4, 1)
    teacher["optimizer"]["warmup"] = 2
    progressive.update(start_steps=4, long_rounds=0)
    for stage in (teacher, progressive):
        stage["loop"] = {
            "num_updates": 8, "batch_size": 16, "substeps": 2, "log_every": 4, "save_every": 4,
        }  # fmt: skip
    config.evaluation = ConfigDict({"num_samples": 64, "batch_size": 48})
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    experiment.run(tiny(), path)
    return path


def rows_without_timings(workdir):
    rows = read_jsonl(workdir / "results.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def test_the_run_directory(workdir):
    for name in ("teacher", "progressive/2", "progressive/1"):
        assert (workdir / name / "checkpoints" / "8").is_dir()
        assert (workdir / name / "model" / "model.json").exists()
        assert [row["step"] for row in read_jsonl(workdir / name / "log.jsonl")] == [4, 8]
    assert (workdir / "report.html").exists()
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["versions"]["jax"]


def test_every_measurement_has_one_row(workdir):
    rows = read_jsonl(workdir / "results.jsonl")
    keys = [(r["stage"], r["nfe"], r["metric"], r["reference"]) for r in rows]
    models = [("teacher", 4), ("teacher", 1), ("progressive/2", 2), ("progressive/1", 1)]
    metrics = [
        ("fd_pixels", "digits:train"),
        ("fd_pixels", "digits:test"),
        ("nearest_neighbour_ratio", "digits:train"),
    ]
    assert keys == [model + metric for model in models for metric in metrics]
    first = rows[0]
    assert first["num_samples"] == 64
    assert first["images_seen"] == 8 * 16
    assert first["rounding"] == "nearest"
    assert first["value"] > 0


def test_models_load_and_sample_what_was_measured(workdir):
    """The exported student is what results.jsonl and the grids speak of."""
    import jax

    model = pdistill.load(workdir / "progressive/2")
    assert (model.card["num_steps"], model.card["parent"]) == (2, "teacher")
    assert pdistill.load(workdir / "progressive/1").card["parent"] == "progressive/2"
    key = jax.random.fold_in(jax.random.key(0), experiment._hash("evaluation"))
    images = np.round(np.asarray(model.sample(key, num=16)) * 127.5 + 127.5)
    kept = np.load(workdir / "progressive/2/samples.npz")["2"][:16]
    # Another batch size may turn a rounding by one level of 255.
    np.testing.assert_allclose(images, kept.astype(np.float32), atol=1)


def test_the_same_command_again_changes_nothing(workdir):
    before = (workdir / "results.jsonl").read_text()
    experiment.run(tiny(), workdir)
    assert (workdir / "results.jsonl").read_text() == before


def test_a_run_cut_anywhere_ends_the_same(workdir, tmp_path):
    """Lost: the last student's model, its last checkpoint, half of the rows, half a line."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "progressive/1/model")
    shutil.rmtree(copy / "progressive/1/checkpoints/8")
    lines = (copy / "results.jsonl").read_text().splitlines(keepends=True)
    (copy / "results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    experiment.run(tiny(), copy)
    assert rows_without_timings(copy) == rows_without_timings(workdir)
    ours, theirs = (pdistill.load(d / "progressive/1").params for d in (copy, workdir))
    for a, b in zip(np_leaves(ours), np_leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def np_leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_another_config_in_the_same_directory_is_refused(workdir):
    config = tiny()
    config.seed = 1
    config.stages[0]["optimizer"]["learning_rate"] = 1e-4
    with pytest.raises(ConfigError, match=r"config\.seed: 0 -> 1") as error:
        experiment.run(config, workdir)
    assert "config.stages[0].optimizer.learning_rate: 0.003 -> 0.0001" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.update(name="digit"), "unknown data set 'digit'"),
        (lambda c: c.data.update(train="training"), "train and test"),
        (lambda c: c.update(mesh=ConfigDict({"data": 3, "fsdp": 1})), "does not fit 8 devices"),
        (lambda c: c.stages[0]["loop"].update(batch_size=12), "multiple of the 8 devices"),
        (lambda c: c.evaluation.update(metrics=("fid",)), "metric must be one of"),
    ],
)
def test_it_refuses_before_it_writes(tmp_path, change, message):
    config = tiny()
    with config.unlocked():
        change(config)
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
