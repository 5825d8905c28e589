import functools
import json
import operator
import re
import runpy
from pathlib import Path

import pytest

from pdistill.diffusion import CosineSchedule
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.networks import DiT

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPE = (8, 8, 1)
LOOP = {"num_updates": 40, "batch_size": 8, "log_every": 20, "save_every": 20}
CONFIG = {
    "data": {"name": "digits"},
    "model": {
        "network": {"name": "dit", "arguments": {"features": 8, "heads": 2}},
        "schedule": {"name": "cosine", "arguments": {}},
    },
    "stages": [
        {
            "name": "teacher",
            "method": "teacher",
            "num_steps": [8, 4],
            "loop": LOOP,
            "optimizer": {"learning_rate": 1e-3},
        },
        {
            "name": "pd",
            "method": "progressive",
            "teacher": "teacher",
            "start_steps": 8,
            "end_steps": 2,
            "loop": LOOP,
            "optimizer": {"learning_rate": 1e-3, "anneal": "linear"},
        },
    ],
}
REMOVED = object()


def changed(path, value):
    """CONFIG with another value at "a.b[0].c"."""
    config = json.loads(json.dumps(CONFIG))
    *parents, last = [int(k) if k.isdigit() else k for k in re.findall(r"\w+", path)]
    place = functools.reduce(operator.getitem, parents, config)
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return config


# --- Configs that can run -----------------------------------------------------------------------


def test_digits_config():
    config = runpy.run_path(str(CONFIGS / "digits_pd.py"))["get_config"]()
    rounds = parse(as_plain(config)).rounds(SHAPE)  # as experiment.run does
    names = ["teacher", *(f"progressive/{n}" for n in (32, 16, 8, 4, 2, 1))]
    assert [r.name for r in rounds] == names
    assert [r.parent for r in rounds] == [None, *names[:-1]]
    assert [r.num_steps for r in rounds[1:]] == [(32,), (16,), (8,), (4,), (2,), (1,)]
    # As in the paper, the last two rounds are twice as long.
    assert [r.loop.num_updates for r in rounds] == [3000, 400, 400, 400, 400, 800, 800]
    assert [r.method.optimizer.num_updates for r in rounds] == [r.loop.num_updates for r in rounds]
    diffuser = rounds[0].method.diffuser
    assert diffuser.network == DiT(out_channels=1, patch=2, features=64, depth=4, heads=4)
    assert diffuser.schedule == CosineSchedule()
    assert diffuser.head == "v"
    assert all(r.method.diffuser == diffuser for r in rounds)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*_*.py")), ids=lambda path: path.stem)
def test_configs_refuse_unknown_variants(path):
    with pytest.raises(ValueError, match="got 'nonesuch'"):
        runpy.run_path(str(path))["get_config"]("nonesuch")


def test_defaults_and_conversions():
    parsed = parse(changed("stages[0].optimizer.learning_rate", 1))  # an int for a float
    assert parsed.stages[0].optimizer.learning_rate == 1.0
    assert isinstance(parsed.stages[0].optimizer.learning_rate, float)
    assert parsed.stages[0].num_steps == (8, 4)
    assert parsed.model.head == "v"
    assert parsed.evaluation.references == ("train", "test")
    assert parsed.seed == 0


@pytest.mark.parametrize(("head", "channels"), [("v", 3), ("x", 3), ("eps", 3), ("both", 6)])
def test_output_channels_follow_from_the_head_and_the_data(head, channels):
    rounds = parse(changed("model.head", head)).rounds((8, 8, 3))
    assert {r.method.diffuser.network.out_channels for r in rounds} == {channels}
    assert {r.method.diffuser.head for r in rounds} == {head}


def test_an_earlier_round_can_be_the_parent():
    again = {**CONFIG["stages"][1], "name": "again", "teacher": "pd/4", "start_steps": 4}
    config = {**CONFIG, "stages": [*CONFIG["stages"], again]}
    rounds = parse(config).rounds(SHAPE)
    assert [(r.name, r.parent) for r in rounds] == [
        ("teacher", None), ("pd/4", "teacher"), ("pd/2", "pd/4"), ("again/2", "pd/4"),
    ]  # fmt: skip


# --- Configs that cannot ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Misspelt keys.
        ("modle", {}, "unknown key 'modle'; did you mean 'model'?"),
        ("data.flipp", True, "unknown key 'data.flipp'; did you mean 'flip'?"),
        ("data.zzz", 1, "unknown key 'data.zzz'; known keys: name, train, flip, resident"),
        (
            "stages[1].optimizer.learning_rat",
            1e-3,
            "unknown key 'stages[1].optimizer.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("stages[0].start_steps", 4, "unknown key 'stages[0].start_steps'"),
        # Missing keys.
        ("data", REMOVED, "missing key 'data'"),
        ("model.network.name", REMOVED, "missing key 'model.network.name'"),
        ("stages[0].loop.num_updates", REMOVED, "missing key 'stages[0].loop.num_updates'"),
        ("stages[1].teacher", REMOVED, "missing key 'stages[1].teacher'"),
        ("stages[1].method", REMOVED, "stages[1] must be a dictionary with name and method"),
        # Wrong types.
        ("data", "digits", "data must be a dictionary; got 'digits'"),
        ("data.flip", 1, "data.flip must be bool; got 1"),
        ("data.name", None, "data.name must be str; got None"),
        ("seed", True, "seed must be int; got True"),
        ("seed", 0.5, "seed must be int; got 0.5"),
        ("stages", "teacher", "stages must be a tuple; got 'teacher'"),
        ("stages[1]", 3, "stages[1] must be a dictionary"),
        ("stages[0].num_steps", 8, "stages[0].num_steps must be a tuple; got 8"),
        ("stages[0].num_steps[1]", "4", "stages[0].num_steps[1] must be int; got '4'"),
        (
            "stages[0].optimizer.learning_rate",
            "1e-3",
            "stages[0].optimizer.learning_rate must be float; got '1e-3'",
        ),
        ("model.network.arguments", 5, "model.network.arguments must be a dictionary; got 5"),
        # Values.
        (
            "stages[1].method",
            "progresive",
            "stages[1].method must be one of teacher, progressive, guided, gan, direct, dmd, "
            "score_matching, multi_student, ctm, pagoda, upsampled, lowdiff, imported; got "
            "'progresive'",
        ),
        ("stages[0].optimizer.learning_rate", -1.0, "stages[0].optimizer: learning_rate must be"),
        ("stages[0].optimizer.anneal", "cos", "stages[0].optimizer: anneal must be one of"),
        ("stages[1].loop.batch_size", 0, "stages[1].loop: batch_size must be at least 1; got 0"),
        (
            "stages[1].loop.log_every",
            15,
            "stages[1].loop: log_every must be a multiple of substeps=10; got 15",
        ),
    ],
)
def test_config_that_does_not_parse(path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages[1].start_steps", 12, r"stages\[1\] \(pd\): .*power of two.*start_steps=12"),
        ("stages[1].end_steps", 8, r"stages\[1\] \(pd\): .*start_steps=8 and end_steps=8"),
        ("stages[1].end_steps", 0, r"stages\[1\] \(pd\): .*start_steps=8 and end_steps=0"),
        ("stages[1].optimizer.warmup", 40, r"stages\[1\] \(pd\): .*num_updates above warmup"),
        ("stages[1].teacher", "techer", r"starts from 'techer', .*there are: teacher"),
        ("stages[1].teacher", "pd/2", r"\(pd\): it starts from 'pd/2', which no earlier"),
        ("stages[0]", CONFIG["stages"][1], "starts from 'teacher', .*there are: none"),
        ("stages[1]", CONFIG["stages"][0], r"stages\[1\]\.name: 'teacher' is used twice"),
        ("model.network.name", "dti", "model.*network must be one of dit.*; got 'dti'"),
        ("model.network.arguments.depht", 2, "model.*'dit' has no 'depht'"),
        ("model.network.arguments.depth", 10**9, "depth must be at most 1,000,000; got 1,000,000"),
        ("model.network.arguments.dtype", "float31", "model.*float31"),
        ("model.network.arguments.patch", 3, "model.*patch 3 must divide the image size 8x8"),
        ("model.network.arguments.heads", 3, "model.*heads 3 must divide features 8"),
        ("model.schedule.name", "cosin", "model.*schedule must be one of .*; got 'cosin'"),
        ("model.schedule.arguments.slope", 2.0, "model.*'cosine' has no 'slope'"),
        ("model.head", "w", "model.*head must be one of v, x, eps, both; got 'w'"),
        ("stages[0].weighting", "snrr", r"stages\[0\].*weighting must be one of .*; got 'snrr'"),
        ("stages[0].num_steps", [], r"stages\[0\].*num_steps"),
        ("stages[0].num_steps", [8, 0], r"stages\[0\].*num_steps.*at least 1"),
        ("evaluation", {"batch_size": 0}, "evaluation.*batch_size must be at least 1; got 0"),
        ("evaluation", {"num_samples": -1}, "evaluation.*num_samples"),
    ],
)
def test_config_without_a_run(path, value, message):
    """Found before anything is compiled, by `parse` or when the rounds are listed."""

    with pytest.raises(ConfigError, match=message):
        parse(changed(path, value)).rounds(SHAPE)
