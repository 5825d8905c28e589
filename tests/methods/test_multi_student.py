"""Several students: what each learns from, and the model that they make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import leaves, tiny_msd

import pdistill
from pdistill import experiment, partition
from pdistill.data import load_dataset
from pdistill.diffusion import CosineSchedule
from pdistill.methods import (
    DmdStage,
    MultiStudentStage,
    Round,
    ScoreMatchingStage,
    Teacher,
)
from pdistill.networks import Diffuser, DiT
from pdistill.runtime.files import read_jsonl
from pdistill.training import LoopConfig, Optimizer

IMAGE = (8, 8, 1)
NETWORK = DiT(out_channels=1, features=16, depth=1, heads=2, num_labels=4)
DIFFUSER = Diffuser(NETWORK, "v", CosineSchedule())
ADAM = Optimizer(1e-2)
LOOP = LoopConfig(10, 16, log_every=10, save_every=10)
BASE = {"loop": LOOP, "optimizer": ADAM, "teacher": "teacher"}
STUDENT = DmdStage(name="dmd", fake_optimizer=ADAM, **BASE)
MATCHING = ScoreMatchingStage(name="tsm", network={"features": 8}, **BASE)
TEACHER = {
    "teacher": Round("teacher", "teacher", Teacher(DIFFUSER, ADAM), lambda *_: None, LOOP, (4,))
}


def rounds(**changes):
    stage = MultiStudentStage(**{"name": "msd", "student": STUDENT, "parts": 2} | changes)
    return stage.rounds(DIFFUSER, IMAGE, TEACHER)


def test_rounds():
    first, dmd, _, other, model = rounds(score_matching=MATCHING)
    assert [first.name, dmd.name, other.name, model.name] == [
        "msd/tsm_0", "msd/dmd_0", "msd/dmd_1", "msd",
    ]  # fmt: skip
    assert (first.labels, first.parent, first.measured) == ((0, 1), "teacher", False)
    assert (dmd.labels, dmd.parent, dmd.teacher) == ((0, 1), "msd/tsm_0", "teacher")
    assert dmd.method.diffuser.network.features == 8  # the student's; the scores are the teacher's
    assert dmd.method.teacher.network.features == 16
    assert model.students == ("msd/dmd_0", "msd/dmd_1")
    assert model.method.diffuser.network.routes == (0, 0, 1, 1)
    assert (model.card["train_steps"], model.solver, model.measured) == (40, "one_step", True)


def test_one_student_is_the_method_alone():
    """Bit for bit, with the same keys."""
    [alone] = STUDENT.rounds(DIFFUSER, IMAGE, TEACHER)
    of_one, _ = rounds(parts=1)
    params = jax.jit(lambda: DIFFUSER.init(jax.random.key(0), IMAGE))()
    batch = {
        "image": jax.random.normal(jax.random.key(1), (16, *IMAGE)),
        "label": jnp.arange(16) % 4,
    }
    states = []
    for r in (alone, of_one):
        state = jax.jit(r.init)(jax.random.key(2), params)
        step = jax.jit(r.method.step)
        for i in range(6):
            state, _ = step(state, batch, jax.random.key(i))
            state = state.replace(step=state.step + 1)
        states.append(state)
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
        ({"student": dataclasses.replace(STUDENT, select="fd_pixels")}, "leave select out"),
        ({"student": dataclasses.replace(STUDENT, teacher="x")}, "no earlier stage makes"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        rounds(**changes)


def test_they_need_labels():
    plain = DIFFUSER.with_network({"num_labels": 0})
    with pytest.raises(ValueError, match="need a model with labels"):
        MultiStudentStage(name="msd", student=STUDENT, parts=2).rounds(plain, IMAGE, TEACHER)


def test_a_model_of_several_is_no_parent():
    known = TEACHER | {r.name: r for r in rounds()}
    with pytest.raises(ValueError, match="is of several students"):
        dataclasses.replace(STUDENT, teacher="msd").rounds(DIFFUSER, IMAGE, known)


# --- an experiment --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny_msd())


def test_the_model_is_its_students(workdir):
    """Each label's images are those of the student that has learnt it, in the order asked for."""
    model = pdistill.load(workdir / "msd")
    assert (model.card["kind"], model.card["solver"]) == ("routed", "one_step")
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
    experiment.run(tiny_msd(), workdir)
    for ours, theirs in zip(leaves(workdir / "msd"), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
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
