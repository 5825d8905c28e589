import json
import os

import numpy as np
import pytest

from pdistill.cli import report
from pdistill.report import runs
from pdistill.runtime.files import write_jsonl


def images(value):
    return np.full((4, 2, 2, 1), value, np.uint8)


def test_order_is_that_of_the_results(row, workdir):
    """z before a; 16 before 4; runs without results last; a group's first stage has no files."""
    stages = ["z/first", "teacher", "z/16", "z/4", "a"]
    found = ["a", "teacher", "z/4", "z/16", "z/new", "unknown"]
    run = runs.read(
        workdir(
            [row(stage, 1, 1.0) for stage in stages],
            samples={name: {1: images(0)} for name in found},
            logs={name: [1.0] for name in found},
        )
    )
    assert list(run.samples) == ["z", "teacher", "a", "unknown"]
    assert {group: list(members) for group, members in run.losses.items()} == {
        "z": ["z/16", "z/4", "z/new"],
        "teacher": ["teacher"],
        "a": ["a"],
        "unknown": ["unknown"],
    }
    assert list(run.losses) == list(run.samples)


def test_contents(row, workdir):
    rows = [row("guided/stage1", 4, 1.0), row("guided/4", 4, 1.0)]
    directory = workdir(
        rows,
        samples={"guided/4": {4: images(4)}, "guided/stage1": {4: images(1), 8: images(8)}},
        pictures={
            "guided/4": dict.fromkeys(runs.PICTURES, np.arange(3)),
            "mine": {"images": images(1)},
        },
        logs={"guided/4": [0.5, 0.25], "guided/stage1": []},
        config={"config": {}},
    )
    run = runs.read(directory)
    assert run.name == "digits"
    assert run.rows == rows
    assert run.config == {"config": {}}
    assert {steps: x.max() for steps, x in run.samples["guided"].items()} == {4: 4, 8: 8}
    assert list(run.pictures) == ["guided/4"]
    np.testing.assert_array_equal(run.pictures["guided/4"]["spectrum"], [0, 1, 2])
    assert list(run.losses["guided"]) == ["guided/4"]  # a log without lines is none
    np.testing.assert_array_equal(run.losses["guided"]["guided/4"], [[10, 20], [0.5, 0.25]])


def test_samples_of_a_cascade_go_by_the_steps_of_each_level(row, workdir):
    """Two divisions of as many steps are kept apart."""
    samples = {"lowdiff": {"2+1": images(1), "1+2": images(2)}}
    run = runs.read(workdir([row("lowdiff", 3, 1.0)], samples=samples))
    assert {steps: x.max() for steps, x in run.samples["lowdiff"].items()} == {"2+1": 1, "1+2": 2}
    assert runs.all_steps("8+4+2") == 14


def test_arrays_of_a_users_are_not_the_runs(row, workdir):
    path = workdir([row("teacher", 2, 1.0)], samples={"teacher": {"2": images(1)}})
    (path / "mine").mkdir()
    np.savez(path / "mine/samples.npz", images=images(2), label=np.arange(2))
    assert list(runs.read(path).samples) == ["teacher"]


def test_updates_without_a_loss_are_not_in_its_curve(row, workdir):
    """A generator's, between its updates; and a method need have none."""
    path = workdir([row("dmd", 1, 1.0)])
    write_jsonl(path / "dmd/log.jsonl", [{"step": 5, "loss": 2.0}, {"step": 6}])
    write_jsonl(path / "mine/log.jsonl", [{"step": 5}])
    [(run, (steps, losses))] = runs.read(path).losses["dmd"].items()
    assert (run, steps.tolist(), losses.tolist()) == ("dmd", [5], [2])
    assert list(runs.read(path).losses) == ["dmd"]


def test_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.jsonl in .*nothing"):
        runs.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.jsonl", '{"stage": "teacher"}\n'),
        ("results.jsonl", "5\n"),
        ("results.jsonl", b"\xff\n"),
        ("config.json", '{"config": {'),
        ("config.json", '{"config": {"evaluation": {}}}'),
        ("teacher/selection.jsonl", '{"step": 1}\n'),
        ("teacher/samples.npz", "garbage"),
        ("teacher/samples.npz", "PK\x03\x04garbage"),
        ("teacher/pictures.npz", "PK\x03\x04garbage"),
        ("teacher/log.jsonl", '{"loss": 1}\n'),
        ("figures", ""),
    ],
)
def test_damaged_files_are_named(row, workdir, name, content):
    samples = {"teacher": {"2": images(1), "2@2": images(2)}}
    config = {"config": {"evaluation": {"guidance": [1.0]}}}
    path = workdir([row("teacher", 2, 1.0)], samples=samples, config=config)
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as error:
        report.main([str(path)])
    told = str(error.value)
    assert str(path / name) in told
    assert "pickle" not in told
    assert "\n" not in told


@pytest.mark.parametrize("value", [None, "x", [1.0]])
def test_rows_have_numbers(row, workdir, value):
    path = workdir([row("teacher", 2, 1.0), row("teacher", 2, value)])
    with pytest.raises(OSError, match=r"results\.jsonl has a row without a sound value; take it"):
        runs.read(path)


def test_too_little_memory_is_no_damage(row, workdir, monkeypatch):
    path = workdir([row("teacher", 2, 1.0)], samples={"teacher": {"2": images(1)}})

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("numpy.load", fails)
    with pytest.raises(MemoryError):
        runs.read(path)


def test_guided_samples_have_the_first_weight_too(workdir, row):
    """samples.npz calls the first weight's images by the step count alone."""
    image = np.zeros((1, 8, 8, 1), np.uint8)
    directory = workdir(
        [row("guided", 4, 1.0)],
        samples={"guided": {"4": image, "4@2": image + 2, "8": image + 8}},
        config={"config": {"evaluation": {"guidance": [0.0, 2.0]}}},
    )
    run = runs.read(directory)
    assert {w: int(x.max()) for w, x in run.guided["guided, 4"].items()} == {"0": 0, "2": 2}
    assert set(run.guided) == {"guided, 4"}
    assert set(run.samples["guided"]) == {4, 8}
    (directory / "config.json").unlink()
    assert (runs.read(directory).guided, runs.read(directory).config) == ({}, None)


def test_selections(workdir, row):
    directory = workdir([row("gan", 1, 1.0)], samples={"gan": {1: images(0)}})
    rows = [{"step": 10 * i, "metric": "fd_pixels", "value": 2.0 / i, "spectrum": [0.0, i]}
            for i in (1, 2)]  # fmt: skip
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (directory / "gan/selection.jsonl").write_text(lines + '{"step": 30, "val')
    assert runs.read(directory).selections == {"gan": rows}


def test_a_save_that_is_under_way(row, workdir, monkeypatch):
    """Its folders come and go: they are not looked into, and one that is gone is no error."""
    path = workdir([row("teacher", 1, 2.0)])
    for folder in ("teacher", "teacher/checkpoints/4.tmp"):
        (path / folder).mkdir(parents=True, exist_ok=True)
        (path / folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    scan = os.scandir

    def gone(folder="."):
        if "checkpoints" in os.fspath(folder):
            raise FileNotFoundError(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", gone)
    assert [*runs.read(path).losses] == ["teacher"]
