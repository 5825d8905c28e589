"""A run killed again and again ends as an undisturbed one: same parameters, same rows."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import check_events, leaves

import pdistill
from pdistill.model import ModelError
from pdistill.runtime.files import read_jsonl

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
}
STAGES = ("teacher", "progressive/2", "progressive/1")
# Where the run is killed, in the order in which it gets there.
POINTS = {
    "starting": ("pdistill.experiment.directory", "write_atomically", 1, "before"),
    "training": ("pdistill.data.pipeline", "BatchIterator.__next__", 3, "after"),
    "saving": ("pdistill.training.checkpoints", "Checkpointer.save", 1, "after"),
    "exporting": ("pdistill.model.store", "save_params", 1, "after"),
    "measuring": ("pdistill.training.logging", "LogFile.append", 2, "after"),
    "keeping pictures": ("numpy", "savez", 2, "after"),
    "saving the second": ("pdistill.training.checkpoints", "Checkpointer.save", 1, "after"),
    "exporting the second": ("pdistill.model.store", "sync_global_devices", 1, "before"),
    "training the third": ("pdistill.training.checkpoints", "Checkpointer.save", 2, "after"),
    "reporting": ("pdistill.report.figures", "save", 2, "before"),
}
FEW = ("exporting", "training the third", "reporting")


def start(workdir, *point):
    program = [sys.executable, str(ROOT / "tests/tiny_experiment.py"), str(workdir)]
    return subprocess.run(
        [*program, *map(str, point)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )


def rows(workdir):
    return [
        {k: v for k, v in row.items() if k != "seconds_per_image"}
        for row in read_jsonl(workdir / "results.jsonl")
    ]


@pytest.mark.parametrize("points", [FEW, pytest.param(tuple(POINTS), marks=pytest.mark.slow)])
def test_a_run_killed_at_points_ends_as_an_undisturbed_one(tmp_path, points):
    undisturbed = start(tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = tmp_path / "killed"
    resumed = []
    for name in points:
        process = start(killed, *POINTS[name])
        assert process.returncode == -signal.SIGKILL, f"{name}: {process.stderr}"
        resumed += [line for line in process.stderr.splitlines() if "resumes" in line]
        if name == "exporting":
            check_half_an_export(killed / "teacher")
    last = start(killed)
    assert last.returncode == 0, last.stderr

    assert rows(killed) == rows(tmp_path / "undisturbed")
    for stage in STAGES:
        for ours, theirs in zip(
            leaves(killed / stage), leaves(tmp_path / "undisturbed" / stage), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        steps = [row["step"] for row in read_jsonl(killed / stage / "log.jsonl")]
        assert steps == [4, 8]
    assert (killed / "report.html").exists()
    assert not list(killed.rglob("*.tmp*"))
    check_events(killed)
    assert resumed  # a save interval is 4 updates: none of the 8 is lost but those after the save


def check_half_an_export(directory):
    [half] = directory.glob("model.tmp-*")
    for path in (directory, half):
        with pytest.raises(ModelError, match="no model in"):
            pdistill.load(path)


def terminate(text, workdir, python=(), options=()):
    """The command line, sent SIGTERM at the first line with `text`: exit code, what comes after."""
    command = [
        sys.executable, *python, "-m", "pdistill.main", "--config=tests/tiny_experiment.py",
        f"--workdir={workdir}", *options,
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if text in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    return process.returncode, rest


def test_sigterm_before_anything_is_trained(tmp_path):
    """While modules are imported, which takes seconds: the same exit code."""
    code, rest = terminate(" ml_collections\n", tmp_path / "run", python=("-X", "importtime"))
    assert code == 75, rest
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    """In training: exit code 75, and the same command goes on."""
    loop = {"num_updates": 100_000, "save_every": 10_000}
    options = [f"--config.stages[0].loop.{name}={value}" for name, value in loop.items()]
    code, rest = terminate(" step ", tmp_path, options=options)
    assert code == 75, rest
    message = rest.splitlines()[-1]
    assert message.startswith("stopped by SIGTERM: teacher is saved at step ")
    assert message.endswith("; the same command goes on")
    step = message.split("step ")[1].split(";")[0]
    assert (tmp_path / "teacher" / "checkpoints" / step).is_dir()
