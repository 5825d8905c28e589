"""Stages that start from a model made elsewhere."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_experiment import leaves, tiny

import pdistill
from pdistill import experiment
from pdistill.data import load_dataset
from pdistill.diffusion import DdpmSchedule, output_channels
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.imported import Imported
from pdistill.experiment.measure import Measurements
from pdistill.experiment.plan import plan
from pdistill.interop.conversion import Conversion, teacher_card, write_model
from pdistill.model import ModelError
from pdistill.model.sampling import Sampling
from pdistill.networks import DiT, Network
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.samplers import parse_solver

IMAGE = (8, 8, 1)


def write(directory, shape=IMAGE, head="eps", features=24):
    """A converted teacher with another network, head and schedule than the config's model."""
    module = DiT(output_channels(head, 1), features=features, depth=1, heads=2)
    blank = Network(None, module=module, head=head, schedule=DdpmSchedule(), shape=shape)
    network = jax.jit(blank.init)(jax.random.key(0))
    card = teacher_card(network, method="elsewhere", source="a_file", num_steps=2)
    assert card["clip"] == (-1.0, 1.0)  # of images, unless a converter says another range
    write_model(directory, Conversion(network, card))
    return directory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "foreign")


def importing(path, **changes):
    config = tiny()
    _, progressive = config.stages
    stage = {"name": "teacher", "method": "imported", "path": str(path)} | changes
    config.stages = (ConfigDict(stage), progressive)
    config.stages[1].update(start_steps=2)
    return config


@pytest.fixture(scope="module")
def workdir(finished, foreign):
    return finished(importing(foreign))


def test_students_of_it(workdir, foreign):
    for ours, theirs in zip(leaves(workdir / "teacher"), leaves(foreign), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    card = pdistill.load(workdir / "teacher").card
    assert (card["stage"], card["method"], card["source"]) == ("teacher", "elsewhere", str(foreign))
    student = pdistill.load(workdir / "progressive/1")
    assert student.network.blank == pdistill.load(foreign).network.blank
    rows = read_jsonl(workdir / "results.jsonl")
    found = {(row["stage"], row["nfe"], row["method"], row["train_steps"]) for row in rows}
    assert found == {("teacher", 2, "elsewhere", None), ("progressive/1", 1, "progressive", 8)}
    assert (workdir / "report.html").exists()


def test_again_it_changes_nothing(workdir, foreign):
    before = (workdir / "results.jsonl").read_text()
    experiment.run(importing(foreign), workdir)
    assert (workdir / "results.jsonl").read_text() == before


def test_a_plan_needs_no_parameters(foreign, tmp_path):
    """Which the stage loads onto the mesh of the run, those of a guide too; here they are lost."""
    mesh = make_mesh(2, 4, jax.devices())
    method = Imported(path=str(foreign), guide=str(foreign))
    loaded = method.load(mesh)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(loaded)} == {mesh}
    assert jax.eval_shape(lambda network: network, loaded) == method.shapes
    copy = shutil.copytree(foreign, tmp_path / "model")
    shutil.rmtree(copy / "params")
    config = parse(as_plain(importing(copy)))
    assert plan(config, IMAGE)["teacher"].network == Imported(path=str(foreign)).shapes
    with pytest.raises(ModelError, match=f"cannot load {copy}: "):
        experiment.run(importing(copy), tmp_path / "run")


def test_one_that_is_damaged_is_found_before_anything_trains(foreign, tmp_path):
    copy = shutil.copytree(foreign, tmp_path / "model")
    shutil.rmtree(copy / "params")
    config = tiny()
    config.stages = (*config.stages, importing(copy, name="theirs").stages[0])
    with pytest.raises(ModelError, match=f"cannot load {copy}: "):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize(("solver", "clip"), [("edm", None), ("heun", (-1.5, 1.5))])
def test_it_is_measured_as_its_card_says(foreign, tmp_path, solver, clip):
    """As `pdistill evaluate` does: EDM2's teachers were measured by DDIM, with clipping."""
    model = shutil.copytree(foreign, tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(card | {"solver": solver, "clip": clip}))
    own, data = pdistill.load(model).sampling, load_dataset("digits", "train")
    assert (own.solver.name, own.clip, own.nfe) == (solver, clip, 3)

    def measured(**evaluation):
        config = importing(model)
        config.evaluation.update(metrics=("fd_pixels",), references=("train",), **evaluation)
        settings = parse(as_plain(config))
        runs = plan(settings, data.image_shape)
        measurements = Measurements(tmp_path, settings, data, runs, make_mesh())
        measurements.open({})
        return [[m.sampling for m in measurements.missing(r)] for r in runs.values()]

    student = Sampling(1, "ddim", (-1.0, 1.0))
    assert measured() == [[own], [student]]
    ddim = dataclasses.replace(own, solver=parse_solver("ddim"))
    assert measured(solvers=("ddim",)) == [[ddim], [student]]
    unclipped = dataclasses.replace(own, clip=None)
    assert measured(clip=False) == [[unclipped], [Sampling(1, "ddim", None)]]


def test_a_variance_that_nothing_trains(tmp_path):
    path = write(tmp_path / "model", head="eps_variance")
    with pytest.raises(ConfigError, match=r"\(progressive/1\): .*has a learnt variance, which"):
        experiment.run(importing(path), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made_for": [64], "num_steps": 64}, "made for num_steps=64 and knows a few"),
        ({"made_for": [2], "num_steps": 2}, None),
        ({"kind": "jump", "solver": "gamma:1"}, "has learnt to jump and may not know how to"),
        ({"kind": "jump", "solver": "gamma:1", "denoises": True}, None),
        ({"kind": "jump", "solver": "gamma:0"}, None),
        ({"kind": "jump", "solver": "gamma:0", "denoises": False}, "may not know how to denoise"),
    ],
)
def test_teachers_that_know_too_little(foreign, tmp_path, change, message):
    """Their cards say so: students at other counts, and maps; older cards of maps do not."""
    copy = shutil.copytree(foreign, tmp_path / "model")
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(card | change))
    config = parse(as_plain(importing(copy)))
    if message is None:
        assert plan(config, IMAGE)["teacher"].made_for == tuple(change.get("made_for", ()))
        return
    with pytest.raises(ConfigError, match=message):
        plan(config, IMAGE)


def test_paths_that_are_no_models(tmp_path, foreign):
    with pytest.raises(ConfigError, match=r"stages\[0\] \(teacher\): no model in"):
        experiment.run(importing(tmp_path / "nothing"), tmp_path / "run")
    card = json.loads((foreign / "model.json").read_text())
    for change, message in (
        ({"data": {}}, r"damaged/model\.json lacks the key 'shape'"),
        ({"num_steps": None}, r"stages\[0\] \(teacher\): "),
    ):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged/model.json").write_text(json.dumps(card | change))
        with pytest.raises(ConfigError, match=message):
            experiment.run(importing(tmp_path / "damaged"), tmp_path / "run")
    large = write(tmp_path / "large", (16, 16, 1))
    message = (
        r"\(teacher\): it makes images of 16x16 pixels, .* of 8x8 pixels; set resolution to 16"
    )
    with pytest.raises(ConfigError, match=message):
        experiment.run(importing(large), tmp_path / "run")
    assert not (tmp_path / "run").exists()
