"""The config own_images: what follows from which data, and the page's commands on a folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pages import DOCS, ROOT, blocks
from PIL import Image

from pdistill.configs import fashion_pd, own_images
from pdistill.data.sources import Description, describe
from pdistill.experiment import estimate
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.dry_run import Cost
from pdistill.experiment.plan import plan
from pdistill.runtime import platform
from pdistill.runtime.mesh import make_mesh

PAGE = DOCS / "your_own_images.md"
SMALL = (
    *("--config.model.network.arguments.channels=8", "--config.stages[1].start_steps=2"),
    *("--config.stages[0].loop.num_updates=4", "--config.stages[1].loop.num_updates=4"),
    *("--config.stages[0].optimizer.warmup=2", "--config.stages[1].optimizer.warmup=2"),
    "--config.model.network.arguments.head_channels=8",
    *("--config.stages[0].measured_at=2,", "--config.evaluation.num_samples=16"),
)


@pytest.fixture
def recipe(monkeypatch):
    """The plain config for a data set of so many images of a shape, on a device."""

    def recipe(shape, num, classes=1, device="cpu", **held_out):
        about = Description("mine", {"train": num, **held_out}, shape, classes)
        monkeypatch.setattr(own_images, "describe", lambda name: about)
        return as_plain(own_images.get_config(f"mine:{device}"))

    return recipe


def test_fashion_is_as_in_its_own_config(recipe):
    """With twice the images, and told the classes."""
    ours = recipe((28, 28, 1), 5400, 10, test=600)
    theirs = as_plain(fashion_pd.get_config("cpu"))
    arguments, known = (c["model"]["network"]["arguments"] for c in (ours, theirs))
    assert arguments == known | {"attention_sizes": [7], "num_labels": 10}
    for i, updates in enumerate((5000, 500)):
        loop = {"num_updates": updates}
        assert ours["stages"][i] == theirs["stages"][i] | {
            "loop": theirs["stages"][i]["loop"] | loop
        }


@pytest.mark.parametrize(
    ("data", "patch", "multipliers", "attention"),
    [
        (((8, 8, 1), 1437, 10), 1, (1, 2), (8, 4)),
        (((32, 32, 3), 1600), 2, (1, 2), (8,)),
        (((64, 64, 3), 1600), 4, (1, 2), (8,)),
        (((28, 28, 1), 5400, 10, "gpu"), 1, (1, 2, 4), (14, 7)),
        (((64, 64, 3), 9000, 3, "gpu"), 1, (1, 2, 2, 4), (16, 8)),
        (((128, 128, 3), 9000, 3, "gpu"), 2, (1, 2, 2, 4), (16, 8)),
    ],
)
def test_networks_follow_from_sizes(recipe, data, patch, multipliers, attention):
    found = recipe(*data)["model"]["network"]["arguments"]
    assert (found["patch"], found["multipliers"]) == (patch, list(multipliers))
    assert found["attention_sizes"] == list(attention)


@pytest.mark.parametrize("data", [((8, 8, 1), 1437, 10), ((128, 128, 3), 9000, 3, "gpu")])
def test_runs_follow_from_sizes(recipe, data):
    experiment = parse(recipe(*data))
    first, *_, last = plan(experiment, data[0]).values()
    assert last.measured_at == (1,)
    assert first.measured_at[0] == experiment.stages[1].method.start_steps


def test_lengths_and_labels_follow_from_counts(recipe):
    def found(num, classes=1):
        config = recipe((32, 32, 3), num, classes)
        updates = [stage["loop"]["num_updates"] for stage in config["stages"]]
        arguments = config["model"]["network"]["arguments"]
        return updates, arguments["num_labels"], arguments.get("dropout", 0), config["data"]

    assert found(10)[:3] == ([1000, 100], 0, 0.1)  # fewer would teach nothing
    assert found(100, 5)[:3] == ([2000, 200], 5, 0.1)  # 400 times each, in whole thousands
    with pytest.warns(match="not told the 6 classes: 100 images .* fewer than 20 for each"):
        assert found(100, 6)[:3] == ([2000, 200], 0, 0.1)
    assert found(1601, 2)[:3] == ([5000, 500], 2, 0)
    assert found(600_000)[3]["resident"]
    assert not found(700_000)[3]["resident"]  # 2.15 GB


def test_metrics_follow_from_splits_and_sizes(recipe):
    def found(*data, **splits):
        evaluation = recipe(*data, **splits)["evaluation"]
        return evaluation["metrics"], evaluation.get("held_out")

    ratio = "nearest_neighbour_ratio"
    assert found((32, 32, 3), 900) == (["fd_pixels"], None)
    assert found((32, 32, 3), 900, validation=9) == (["fd_pixels", ratio], "validation")
    assert found((64, 64, 3), 900, test=9, validation=9) == (["kid_pixels", ratio], "test")


@pytest.mark.parametrize(
    ("shape", "device", "message"),
    [
        ((96, 96, 3), "cpu", "at most 64 on a cpu: .*--resolution=64, or say mine@64"),
        ((30, 30, 3), "cpu", "30x30 pixels, .* a multiple of 4 .* such as 32"),
        ((60, 60, 3), "gpu", "a multiple of 8 .* such as 64"),
        ((256, 256, 3), "gpu", "at most 128 on a gpu"),
        ((32, 32, 3), "tpu", "'NAME:cpu' or 'NAME:gpu'.*; got 'mine:tpu'"),
    ],
)
def test_what_it_is_not_for(recipe, shape, device, message):
    with pytest.raises(ValueError, match=message):
        recipe(shape, 900, device=device)


def test_the_device_is_what_jax_finds(monkeypatch):
    """Which is not asked where there is no plugin of an accelerator."""
    asked = subprocess.CompletedProcess((), 0, "gpu\n")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(platform.subprocess, "run", lambda *_, **__: asked)
    for plugin, name in ((False, "cpu"), (True, "gpu")):
        monkeypatch.setattr(platform, "has_plugin", lambda plugin=plugin: plugin)
        assert platform.platform.__wrapped__() == name
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert platform.platform.__wrapped__() == "cpu"


def test_the_estimate_counts_all_runs(recipe, monkeypatch, capsys):
    """By hand: operations of an update, times updates; of a sample, times evaluations."""
    config = parse(recipe((8, 8, 1), 1437))
    runs = plan(config, (8, 8, 1))
    costs = {"teacher": 2e9, "progressive": 4e9}
    monkeypatch.setattr(
        estimate,
        "trace_update",
        lambda p, *_, **__: SimpleNamespace(flops=costs[p.run.method.name]),
    )
    monkeypatch.setattr(estimate, "cost_of", lambda p, _: Cost(p.name, 1, 10**9, 0, 0, 0, 0, 0))
    monkeypatch.setattr(estimate, "_rate", lambda *_: 1e9)
    monkeypatch.setattr(type(runs["teacher"].network), "flops", lambda _: 1e6)
    mesh = make_mesh(2, 1, jax.devices()[:2])
    estimate.tell_estimate(list(runs.values()), runs, config, mesh, (1437, 8, 8, 1))
    # (5000 x 2 + (500 + 500 + 1000) x 4) / 2 s; 1000 x (8 + 4 + 2 + 1 + 4 + 2 + 1) / 2000 s
    told = capsys.readouterr().err
    assert "about 150 minutes to train and about 11 seconds to sample, within" in told
    assert "estimate         1 GB of" in told


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory in which the page's two first commands were given, and what the second said."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for i in range(50):
        path = folder / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    prepare, train, _ = (text for info, text in blocks(PAGE) if info == "bash")
    environment = os.environ | {"TFDS_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT)}

    def run(command, *more):
        arguments = [sys.executable, "-m", *shlex.split(command), *more]
        done = subprocess.run(
            arguments, env=environment, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    run(prepare, "--resolution=8")
    return folder, run(train, *SMALL)


@pytest.mark.slow
def test_the_pages_two_commands(made):
    folder, told = made
    assert (folder / "runs/mine/report.html").exists()
    assert re.search("estimate .* to train and .* to sample, .*\nestimate .* GB", told)
    assert "OpenCV" not in told  # nor anything else that TFDS logs
    config = json.loads((folder / "runs/mine/config.json").read_text())["config"]
    assert config["data"]["name"] == "mine"
    assert config["model"]["network"]["arguments"]["num_labels"] == 2  # 45 images of two classes
    assert config["model"]["network"]["arguments"]["channels"] == 8  # an override stays
    rows = [json.loads(line) for line in (folder / "runs/mine/results.jsonl").open()]
    measured = {(row["stage"], row["nfe"], row["metric"]) for row in rows}
    assert measured == {
        (stage, steps, metric)
        for stage, steps in (("teacher", 2), ("progressive/1", 1))
        for metric in ("fd_pixels", "nearest_neighbour_ratio")
    }


@pytest.mark.slow
def test_a_description_is_of_the_whole_data_set(made, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made[0] / "data"))
    assert describe("mine@4") == Description("mine@4", {"train": 45, "test": 5}, (4, 4, 3), 2)
    assert describe("mine").num_bytes == 45 * 8 * 8 * 3
    assert describe("digits").splits == {"train": 1437, "test": 360}
    with pytest.raises(ValueError, match="unknown data set 'nothing'"):
        describe("nothing")
