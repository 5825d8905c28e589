"""The table of parameters."""

import jax
import jax.numpy as jnp
from flax import struct

from pdistill.networks import Network
from pdistill.training import Learner, Optimizer, frozen
from pdistill.training.overview import describe_parameters, describe_state, write_parameters

PARAMS = {
    "student": {
        "dense": {"kernel": jnp.zeros((300, 4)), "bias": jnp.zeros(4)},
        "scale": jnp.ones(()),
    },
    "teacher": {"dense": {"kernel": jnp.zeros((300, 4), jnp.bfloat16)}},
    "teacher_2": {"bias": jnp.zeros(3)},
}


class State(struct.PyTreeNode):
    student: Learner
    teacher: Network = frozen()
    critics: tuple[Learner, ...] = ()


def state():
    """A student whose kernels stay as they are, and its teacher."""
    params = {"dense": {"kernel": jnp.zeros((300, 4)), "bias": jnp.zeros(4)}}
    network = Network(params, module=None, head="v", schedule=None, shape=(4,))
    return State(Learner.of(network, Optimizer(1e-3), fixed=("kernel",)), network)


def cells(text):
    """The table's rows by their names."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 5}


def test_every_parameter_has_a_row():
    text = describe_parameters(PARAMS, ["teacher", "student/dense/kernel"])
    rows = cells(text)
    assert rows["student/dense/kernel"] == ["(300, 4)", "float32", "1,200", "frozen"]
    assert rows["student/dense/bias"] == ["(4,)", "float32", "4", ""]
    assert rows["student/scale"] == ["()", "float32", "1", ""]
    assert rows["teacher/dense/kernel"] == ["(300, 4)", "bfloat16", "1,200", "frozen"]
    assert rows["teacher_2/bias"][-1] == ""  # not in the dictionary "teacher"
    assert text.endswith("Total: 2,408 parameters, of which 2,400 are frozen.\n")


def test_shapes_do_as_well_as_arrays():
    assert describe_parameters(jax.eval_shape(lambda: PARAMS)) == describe_parameters(PARAMS)


def test_trees_of_other_kinds_have_paths_too():
    text = describe_parameters({"heads": [jnp.zeros(2), jnp.zeros(3)], "empty": {}}, ["heads/1"])
    assert {name: row[-1] for name, row in cells(text).items() if "/" in name} == {
        "heads/0": "",
        "heads/1": "frozen",
    }


def test_the_file(tmp_path):
    write_parameters(tmp_path / "teacher", state())
    [path] = (tmp_path / "teacher").iterdir()
    assert path.name == "parameters.txt"
    rows = cells(path.read_text())
    assert rows["student/dense/kernel"][-1] == "frozen"
    assert rows["student/dense/bias"][-1] == ""
    assert rows["teacher/dense/kernel"][-1] == "frozen"
    assert not any(name.startswith("num_steps/") for name in rows)


def test_learners_in_a_tuple():
    """As several critics, whose networks need no `params`."""
    found = state()
    critics = tuple(Learner.of(jnp.zeros(n), Optimizer(1e-3), averaged=False) for n in (2, 3))
    text = describe_state(found.replace(critics=critics))
    rows = cells(text)
    assert [rows[f"critics/{i}"][0] for i in (0, 1)] == ["(2,)", "(3,)"]
    assert text.endswith("Total: 2,413 parameters, of which 2,404 are frozen.\n")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    write_parameters(tmp_path / "teacher", state())
    assert list(tmp_path.iterdir()) == []
