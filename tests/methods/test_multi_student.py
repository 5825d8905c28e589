"""Several students: what each learns from, and the model that they make."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planning import TEACHER, plan_of, stage
from stepping import run
from tiny_experiment import leaves, tiny_msd

import pdistill
from pdistill import experiment, partition
from pdistill.data import load_dataset
from pdistill.methods import Dmd, FlowMap, MultiStudent, Run, ScoreMatching, Teacher
from pdistill.networks import DiT
from pdistill.runtime.files import read_jsonl
from pdistill.training import Optimizer

running = importlib.import_module("pdistill.experiment.run")  # its function has its name

IMAGE = (8, 8, 1)
MODULE = DiT(out_channels=1, features=16, depth=1, heads=2, num_labels=4)
ADAM = Optimizer(1e-2)
STUDENT = stage(Dmd(optimizer=ADAM, fake_optimizer=ADAM))
MATCHING = stage(ScoreMatching(optimizer=ADAM, network={"features": 8}), "tsm")


def planned(*stages, module=MODULE, **changes):
    """name -> Planned of several students, after the teacher, and of other stages."""
    method = MultiStudent(**{"student": STUDENT, "parts": 2} | changes)
    return plan_of(module, TEACHER, Run(name="msd", method=method), *stages)


def test_runs():
    plan = planned(score_matching=MATCHING)
    assert list(plan) == ["teacher", "msd/tsm_0", "msd/dmd_0", "msd/tsm_1", "msd/dmd_1", "msd"]
    first, dmd, model = (plan[name] for name in ("msd/tsm_0", "msd/dmd_0", "msd"))
    assert (first.run.labels, first.given, first.run.measured) == (
        (0, 1), {"teacher": "teacher"}, False
    )  # fmt: skip
    assert (dmd.run.labels, dmd.run.measured) == ((0, 1), False)
    assert dmd.given == {"teacher": "teacher", "start": "msd/tsm_0"}
    assert plan["msd/dmd_1"].arguments["labels"] == (2, 3)
    assert dmd.network.module.features == 8  # the student's; the scores are the teacher's
    assert dmd.state.teacher.module.features == 16
    assert dmd.state.fake_score.network.network.module.features == 16
    assert model.given == {"student_0": "msd/dmd_0", "student_1": "msd/dmd_1"}
    assert model.network.module.routes == (0, 0, 1, 1)
    assert (model.network.sampler, model.run.measured) == ("one_step", True)
    assert model.measured_at == (1,)
    assert model.run.method.card(model.state)["train_steps"] == 40


def test_one_student_is_the_method_alone():
    """docs/methods/multi_student.md, A5: bit for bit, with the same keys."""
    plan = planned(stage(STUDENT.method, "alone"), parts=1)
    batch = {
        "image": jax.random.normal(jax.random.key(1), (16, *IMAGE)),
        "label": jnp.arange(16) % 4,
    }
    teacher = jax.jit(plan["teacher"].network.blank.init)(jax.random.key(0))
    states = []
    for planned_run in (plan["alone"], plan["msd/dmd_0"]):
        state = jax.jit(planned_run.init)(jax.random.key(2), {"teacher": teacher})
        states.append(run(planned_run.run.method, state, batch, 6)[0][-1])
    chex.assert_trees_all_equal(*states)


def test_images_of_a_part():
    data = load_dataset("digits")
    part = data.of_labels((3, 8))
    assert set(part.labels) == {3, 8}
    assert len(part) == np.isin(data.labels, (3, 8)).sum()
    np.testing.assert_array_equal(part.images[0], data.images[np.isin(data.labels, (3, 8))][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 0}, "give parts or lists"),
        ({"lists": ((0, 1, 2, 3),)}, "give parts or lists"),
        ({"parts": 5}, "parts must be 1 to the 4 labels"),
        ({"parts": 0, "lists": ((0, 1), (2,))}, "must be in one list"),
        ({"student": MATCHING}, "makes a generator"),
        ({"student": stage(Teacher(optimizer=ADAM))}, "makes a generator"),
        ({"student": stage(FlowMap(optimizer=ADAM))}, "makes a generator"),
        ({"student": stage(STUDENT.method, given={})}, "student: it needs 'teacher'"),
        ({"student": dataclasses.replace(STUDENT, select="fd_pixels")}, "leave select out"),
        ({"student": stage(STUDENT.method, given={"teacher": "x"})}, "no earlier stage makes"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        planned(**changes)


def test_they_need_labels():
    with pytest.raises(ValueError, match="need a model with labels"):
        planned(module=MODULE.clone(num_labels=0))


def test_a_model_of_several_is_no_teacher():
    with pytest.raises(ValueError, match="is the model of several students"):
        planned(stage(STUDENT.method, "later", given={"teacher": "msd"}))


# --- an experiment --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_on():
    """Run -> the labels of its data set, filled in by `workdir`."""
    return {}


def streamed():
    """`tiny_msd`, of images that are in no program: parts of other lengths share theirs."""
    config = tiny_msd()
    config.data.resident = False
    return config


@pytest.fixture(scope="module")
def workdir(finished, trained_on):
    train = running.train

    def watched(method, state, pipeline, *args, name, **kwargs):
        trained_on[name] = set(pipeline.dataset.labels.tolist())
        return train(method, state, pipeline, *args, name=name, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", watched)
        return finished(streamed())


def test_each_student_is_trained_on_its_own_labels(workdir, trained_on):
    parts = {0: set(range(5)), 1: set(range(5, 10))}
    assert trained_on == {"teacher": set(range(10))} | {
        f"msd/{name}_{k}": part for name in ("tsm", "dmd") for k, part in parts.items()
    }


def test_the_model_is_its_students(workdir):
    """docs/methods/multi_student.md, A6: images are of the student that has learnt the label."""
    model = pdistill.load(workdir / "msd")
    assert (model.card["kind"], model.card["solver"]) == ("routed", "one_step")
    assert model.card["parent"] == "teacher"
    assert model.card["selected_step"] == model.card["train_steps"]
    assert model.card["train_steps"] == sum(
        pdistill.load(workdir / f"msd/{name}_{k}").card["train_steps"]
        for name in ("tsm", "dmd")
        for k in (0, 1)
    )
    assert model.card["images_seen"] == sum(
        pdistill.load(workdir / f"msd/{name}_{k}").card["images_seen"]
        for name in ("tsm", "dmd")
        for k in (0, 1)
    )
    assert model.card["images_seen_a_student"] == model.card["images_seen"] / 2
    labels = np.random.RandomState(0).randint(0, 10, 40)
    key = jax.random.key(3)
    images = model.sample(key, 40, label=labels)
    students = [pdistill.load(workdir / f"msd/dmd_{k}") for k in (0, 1)]
    expected = jnp.stack([s.sample(key, 40, label=labels) for s in students])
    expected = expected[labels // 5, jnp.arange(40)]
    np.testing.assert_allclose(images, expected, atol=1e-5)
    assert np.abs(images - students[0].sample(key, 40, label=labels)).max() > 1e-3


def test_only_whole_models_are_measured(workdir):
    rows = read_jsonl(workdir / "results.jsonl")
    assert [(row["stage"], row["nfe"]) for row in rows] == [("teacher", 2), ("msd", 1)]
    assert rows[-1]["labels"] == "data"
    assert "msd" in (workdir / "report.html").read_text()


def test_it_is_joined_again(workdir):
    before = leaves(workdir / "msd")
    rows = (workdir / "results.jsonl").read_text()
    (workdir / "msd/model").rename(workdir / "lost")
    experiment.run(streamed(), workdir)
    chex.assert_trees_all_equal(leaves(workdir / "msd"), before)
    assert (workdir / "results.jsonl").read_text() == rows


def test_pairs_are_of_all_labels_and_made_once(workdir):
    """They lie beside the teacher, where every student finds them."""
    [file] = (workdir / "teacher").glob("pairs_*.npz")
    assert set(np.load(file)["label"]) == set(range(10))


def test_parts_by_embeddings(workdir, capsys):
    partition.main([f"--model={workdir / 'teacher'}", "--parts=3"])
    lists = eval(capsys.readouterr().out, {})  # what a config can take
    assert sorted(label for part in lists for label in part) == list(range(10))
    with pytest.raises(SystemExit, match="parts must be 1 to the 10"):
        partition.main([f"--model={workdir / 'teacher'}", "--parts=11"])
