"""SIGTERM and Ctrl-C end a program with 75 and one line, in time, wherever it is.

A handful of moments are tried. With PDISTILL_MOMENTS=20 in the environment there are as many, from
half a second to a run's end, and more points on its way.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pdistill.runtime.interruption import Interrupted, StopSignals

ROOT = Path(__file__).parent.parent
EXIT_CODE = 75
ENVIRONMENT = {
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
}
# Runs C code for minutes, in which Python's own handlers do not run, as in a compilation.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
PROGRAM = """
from pdistill.runtime.interruption import ProgramSignals
stop = ProgramSignals("; hint")
stop.__enter__()
{body}
"""


def interrupt(command, numbers=(signal.SIGTERM,), after=0.0, ready="ready", **environment):
    """Signals a program after its line `ready`; its exit code, seconds to its end, and stderr."""
    with subprocess.Popen(
        command, env=os.environ | ENVIRONMENT | environment, cwd=ROOT, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        if ready:
            assert process.stdout.readline() == f"{ready}\n"
        time.sleep(after)
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        _, errors = process.communicate(timeout=300)
    return process.returncode, time.monotonic() - began, errors


def python(body):
    return [sys.executable, "-c", PROGRAM.format(body=body)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_a_compilation_it_ends_at_once(number):
    code, seconds, errors = interrupt(python(f"print('ready', flush=True); {BUSY}"), [number])
    assert (code, errors) == (EXIT_CODE, f"stopped by {number.name}; hint\n")
    assert seconds < 5


def test_what_is_being_written_is_not_left(tmp_path):
    body = f"""
from pathlib import Path
from pdistill.runtime.temporary import replacing
with replacing(Path({str(tmp_path)!r}) / "folder") as folder:
    folder.mkdir()
    (folder / "file").touch()
    print("ready", flush=True)
    {BUSY}
"""
    assert interrupt(python(body))[0] == EXIT_CODE
    assert list(tmp_path.iterdir()) == []


IN_BACKGROUND = f"""
from pdistill.runtime import background
def work():
    {BUSY}
background.start(work)
"""


def test_a_signal_does_not_wait_for_the_background():
    body = f"{IN_BACKGROUND}\nprint('ready', flush=True)\n__import__('time').sleep(60)"
    code, seconds, errors = interrupt(python(body))
    assert (code, errors) == (EXIT_CODE, "stopped by SIGTERM; hint\n")
    assert seconds < 5


@pytest.mark.parametrize(
    ("ending", "code", "error"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(75)", 75, ""),
        ("raise SystemExit('error: why')", 1, "error: why\n"),
        ("raise KeyError('why')", 1, "KeyError: 'why'\n"),
    ],
)
def test_an_end_does_not_wait_for_the_background(ending, code, error):
    """Nor does it crash in it, as Python does in daemons that are in C++ code."""
    body = f"""{IN_BACKGROUND}
with background.left_at_end():
    print("said")
    {ending}
"""
    done = subprocess.run(
        python(body), env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (code, "said\n")
    assert done.stderr.endswith(error)
    assert ("Traceback" in done.stderr) == ("KeyError" in ending)


DEFERRED = f"""
with stop.deferred():
    print("ready", flush=True)
    {BUSY}
"""


def test_the_second_signal_does_not_wait_for_the_save():
    code, seconds, errors = interrupt(python(DEFERRED), [signal.SIGTERM, signal.SIGINT])
    waits = "SIGTERM: saves, then stops; once more stops at once\n"
    assert (code, errors) == (EXIT_CODE, waits + "stopped by SIGINT; hint\n")
    assert seconds < 5


def test_the_first_signal_waits_for_the_save():
    body = """
import time
with stop.deferred():
    with stop.at_once():
        pass
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.5)
    print("saved", file=__import__("sys").stderr)
"""
    code, _, errors = interrupt(python(body))
    assert errors.startswith("SIGTERM: saves, then stops; once more stops at once\nsaved\n")
    assert "Interrupted: stopped by SIGTERM" in errors  # for the program, which says so
    assert code != EXIT_CODE


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminals_end_saves_too(ignored, capfd):
    """Of which a shell tells its programs once more; those of nohup go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    ends = contextlib.nullcontext() if ignored else pytest.raises(Interrupted, match="SIGHUP")
    try:
        with StopSignals() as stop, ends, stop.deferred():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested == (None if ignored else "SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, before)
    told = "" if ignored else "SIGHUP: saves, then stops; SIGTERM stops at once\n"
    assert capfd.readouterr().err == told


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_terminals_end_another_signal_stops_at_once(number):
    code, seconds, errors = interrupt(python(DEFERRED), [signal.SIGHUP, number])
    waits = "SIGHUP: saves, then stops; SIGTERM stops at once\n"
    assert (code, errors) == (EXIT_CODE, waits + f"stopped by {number.name}; hint\n")
    assert seconds < 5


UNREAD = """
from pdistill.runtime.interruption import Interrupted
from pdistill.runtime.terminal import update, write
import sys, time
try:
    with stop.deferred():
        while not stop.requested:
            update("step")
            time.sleep(0.01)
        write("the table", to=sys.stdout)
except Interrupted as interruption:
    stop.end(str(interruption))
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_needs_nobody_who_reads(terminal):
    """It goes on, and ends as always, once its terminal or the end of its pipe has gone."""
    reader, writer = os.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        python(UNREAD), stdout=writer, stderr=writer, cwd=ROOT, env=os.environ | ENVIRONMENT
    ) as process:
        os.close(writer)
        assert b"step" in os.read(reader, 100)
        os.close(reader)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == EXIT_CODE


@pytest.mark.parametrize("entry", [["pdistill.main"], ["pdistill", "train"], ["pdistill.evaluate"]])
def test_the_first_half_second(tmp_path, entry):
    """Before JAX is imported, and through the new start with huge pages."""
    command = [sys.executable, "-m", *entry, "--config=digits_pd", f"--workdir={tmp_path}"]
    code, seconds, errors = interrupt(command, after=0.5, ready="", GLIBC_TUNABLES="")
    hint = "" if "evaluate" in entry[0] else "; the same command goes on"
    assert (code, errors) == (EXIT_CODE, f"stopped by SIGTERM{hint}\n")
    assert seconds < 5


CONFIG = """
from tiny_experiment import tiny

def get_config():
    config = tiny()
    config.stages = config.stages[:1]
    return config
"""
# The command line, with a function that says so when it is called, and then runs for minutes.
RUN = f"""
import importlib, sys

def busy(*_, **__):
    print("ready", flush=True)
    {BUSY}

module, name, *arguments = sys.argv[1:]
if name:
    setattr(importlib.import_module(module), name, busy)
from pdistill.__main__ import run
run("train", arguments)
"""
POINTS = {"compiling": ("pdistill.training.update", "_step")}
MORE_POINTS = {
    "measuring": ("pdistill.experiment.measure", "measure"),
    "exporting": ("pdistill.model.store", "save_params"),
    "drawing pictures": ("pdistill.report", "tile"),
    "reporting": ("pdistill.report.figures", "save"),
}
MOMENTS = int(os.environ.get("PDISTILL_MOMENTS", "0"))


def command(tmp_path, module="", name=""):
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    return [sys.executable, "-c", RUN, module, name, *arguments]


@pytest.mark.parametrize("point", POINTS | (MORE_POINTS if MOMENTS else {}))
def test_on_the_way_of_a_run(tmp_path, point):
    point = (POINTS | MORE_POINTS)[point]
    code, seconds, errors = interrupt(command(tmp_path, *point))
    assert code == EXIT_CODE, errors
    assert errors.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    assert "Traceback" not in errors
    assert seconds < 5


@pytest.mark.skipif(not MOMENTS, reason="PDISTILL_MOMENTS=20 takes minutes")
def test_at_many_moments(tmp_path):
    """From half a second to the end of a run; one that has ended in time ends with 0."""
    began = time.monotonic()
    subprocess.run(
        command(tmp_path), env=os.environ | ENVIRONMENT, cwd=ROOT, check=True, capture_output=True
    )
    whole = time.monotonic() - began
    for i in range(MOMENTS):
        after = 0.5 + i * (whole - 0.5) / MOMENTS
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        code, seconds, errors = interrupt(command(tmp_path), [number], after, ready="")
        print(f"{after:6.1f} s {number.name} {code} {seconds:.1f} s {errors.splitlines()[-1:]}")
        if code != 0:  # it has ended before
            assert code == EXIT_CODE, errors
            assert f"stopped by {number.name}" in errors.splitlines()[-1]
            assert errors.count("stopped by") == 1
        assert "Traceback" not in errors
        assert seconds < 10  # one save
