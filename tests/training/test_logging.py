"""The status line, TensorBoard's events and their rewinding."""

import importlib.util
import inspect
import io
import itertools
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pdistill.runtime import terminal
from pdistill.training.logging import MetricWriter, Progress, Writer, drop_events


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which only moves where a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _no_open_line():
    yield
    terminal.end_line()


@pytest.fixture(params=[Terminal, io.StringIO], ids=["terminal", "file"])
def open_stream(request, monkeypatch):
    """Puts a stream in place of standard error; in the test itself, as pytest's does so before."""

    def open_stream():
        stream = request.param()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return open_stream


def shown(stream):
    """The lines that a terminal shows of what was written to it."""
    lines = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    return [line.replace(terminal.CLEAR_TO_END, "") for line in lines]


def test_compilation_is_in_no_rate(clock, open_stream):
    """Ten seconds a dispatch of ten updates, the first of which takes another thousand."""
    stream = open_stream()
    progress = Progress("teacher", 100, 0)
    with progress.compiling(10):
        clock[0] += 1010
    clock[0] += 10
    assert progress.report(20, {"loss": 0.5}) == pytest.approx(1.0)
    clock[0] += 5
    assert progress.report(30, {"loss": 0.25}) == pytest.approx(2.0)
    lines = filter(None, stream.getvalue().replace("\r", "\n").splitlines())
    compiles, _, first, second = lines
    assert compiles.startswith(f"{'teacher':<16} compiles")
    assert "step  20/100  loss 0.5  1 steps/s  ETA 1:20" in first
    assert "2 steps/s  ETA 0:52" in second  # 70 left, at 20 in 15 seconds


def test_a_resumed_run_counts_from_where_it_starts(clock, open_stream):
    stream = open_stream()
    progress = Progress("teacher", 100, 40)
    clock[0] += 20
    assert progress.report(60, {}) == pytest.approx(1.0)
    assert "step  60/100  1 steps/s  ETA 0:40" in stream.getvalue()


def test_nothing_is_known_of_a_rate_before_the_second_dispatch(clock, open_stream):
    stream = open_stream()
    progress = Progress("teacher", 100, 0)
    with progress.compiling(10):
        clock[0] += 1000
    assert progress.report(10, {"loss": 0.5}) is None
    [*_, line] = filter(None, shown(stream))
    assert line == f"{'teacher':<16} step  10/100  loss 0.5"


def test_updates_without_a_loss_have_none_in_the_line(clock, open_stream):
    stream = open_stream()
    with Progress("gan", 10, 0) as progress:
        clock[0] += 1
        progress.report(1, {"grad_norm": 1.0})
    assert "loss" not in stream.getvalue()


def test_what_is_seen_of_a_status_and_messages(clock, open_stream):
    """On a terminal a status takes the place of the one before; a log keeps each."""
    stream = open_stream()
    with Progress("teacher", 30, 0) as progress:
        for step in (10, 20):
            clock[0] += 10
            progress.report(step, {})
        terminal.say("a warning")
        clock[0] += 10
        progress.report(30, {})
    terminal.say("the end")
    [*lines, rest] = shown(stream)
    words = [line.split()[2] if "step" in line else line for line in lines]
    kept = ["20/30", "a warning", "30/30", "the end"]
    assert words == (kept if stream.isatty() else ["10/30", *kept])
    assert rest == ""
    if not stream.isatty():
        assert "\r" not in stream.getvalue()
        assert terminal.CLEAR_TO_END not in stream.getvalue()


def test_a_shorter_status_leaves_nothing_of_a_longer_one(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "20")
    terminal.update("x" * 100)
    terminal.update("short")
    terminal.end_line()
    first, second = stream.getvalue().split("\r")[1:]
    assert first == "x" * 19 + terminal.CLEAR_TO_END  # a wrapped line would stay
    assert second == f"short{terminal.CLEAR_TO_END}\n"


def test_an_error_begins_below_the_status(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    terminal.update("step 1")
    with pytest.raises(SystemExit), terminal.plain_errors(ValueError):
        raise ValueError("bad")
    assert stream.getvalue().endswith("\n")


def test_the_interface_is_that_of_clu():
    """Read from its file: importing `clu.metric_writers` imports TensorFlow."""
    [folder] = importlib.util.find_spec("clu").submodule_search_locations
    spec = importlib.util.spec_from_file_location("i", f"{folder}/metric_writers/interface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = module.MetricWriter.__abstractmethods__
    assert len(names) == 10
    for name in names:
        theirs = inspect.signature(getattr(module.MetricWriter, name)).parameters.values()
        ours = inspect.signature(getattr(MetricWriter, name)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [
            (p.name, p.kind, p.default) for p in theirs
        ]


def read(directory):
    return EventAccumulator(str(directory), size_guidance={"images": 0, "tensors": 0}).Reload()


def test_tensorboard_reads_every_kind(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars(3, {"teacher/loss": jnp.float32(0.25), "teacher/skipped": 2})
        writer.write_images(3, {
            "teacher/one": np.zeros((4, 5, 3), np.uint8),
            "teacher/many": jnp.zeros((2, 4, 5, 1)),
        })  # fmt: skip
        writer.write_texts(3, {"teacher/note": "hello"})
        writer.write_histograms(3, {"teacher/params": jnp.arange(10.0)}, {"teacher/params": 5})
        writer.write_hparams({"rate": 1e-3, "frozen": ["a"]})
        writer.flush()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("teacher/loss")] == [(3, 0.25)]
    assert [e.value for e in events.Scalars("teacher/skipped")] == [2]
    one = events.Images("teacher/one")[0]
    assert (one.height, one.width) == (4, 5)
    many = events.Images("teacher/many")[0]
    assert many.height * many.width >= 2 * 4 * 5  # in one grid
    assert events.Histograms("teacher/params")[0].histogram_value.num == 10
    assert "teacher/note/text_summary" in events.Tags()["tensors"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []  # no run of its own


FULL = """
import resource, sys
from pdistill.training.logging import MetricWriter

with MetricWriter(sys.argv[1]) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
    for step in range(1_000):
        writer.write_scalars(step, {"teacher/loss": 1.0})
"""


def test_events_that_cannot_be_written_are_an_error_of_the_run(tmp_path):
    """A thread of tensorboardX would die of it, and the run then wait for the thread for ever."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "OSError: [Errno 27] File too large" in ended.stderr
    assert ended.returncode == 1


def test_what_is_flushed_is_in_the_file(tmp_path, clock):
    """By `flush`, as before a save, or every 20 seconds, for those who watch the run."""
    with MetricWriter(tmp_path) as writer:
        for step, flushes in ((1, True), (2, False), (3, True)):
            writer.write_scalars(step, {"teacher/loss": 0.5})
            if flushes:
                writer.flush()
                steps = [event.step for event in read(tmp_path).Scalars("teacher/loss")]
                assert steps == [*range(1, step + 1)]
        clock[0] += 20
        writer.write_scalars(4, {"teacher/loss": 0.5})
        assert len(read(tmp_path).Scalars("teacher/loss")) == 4


def test_a_damaged_event_is_left_out(tmp_path):
    """And is no error of the run whose curves it is of."""
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars(1, {"teacher/loss": 0.25})
    [path] = tmp_path.iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound + (20).to_bytes(8, "little") + b"abcd" + 20 * b"\xff" + b"abcd")
    drop_events(path, lambda event: False)
    assert path.read_bytes() == sound


@pytest.mark.parametrize("kind", ["summaries", "videos"])
def test_a_kind_that_is_not_written_is_refused(tmp_path, kind):
    with (
        MetricWriter(tmp_path) as writer,
        pytest.raises(NotImplementedError, match=rf"^MetricWriter does not write {kind}\.$"),
    ):
        getattr(writer, f"write_{kind}")(0, {"a": np.zeros(3)})


def test_names_that_a_tag_may_not_have(tmp_path, caplog):
    """They are changed here: tensorboardX would tell of each in the terminal."""
    with caplog.at_level("INFO"), MetricWriter(tmp_path) as writer:
        writer.write_scalars(1, {"teacher/8+4/fd/digits:train": 2.0})
    assert "illegal" not in caplog.text
    assert [e.value for e in read(tmp_path).Scalars("teacher/8_4/fd/digits_train")] == [2]


@pytest.mark.parametrize("killed", ["progressive/2", "2 steps"])
def test_a_killed_run_has_no_update_twice(tmp_path, killed):
    """Killed at 8 after a save at 4. The run before it, which went further, stays whole, and so
    does one whose name only begins alike."""
    values = itertools.count()
    others = ("teacher", f"{killed}0")
    with MetricWriter(tmp_path) as writer:
        for name, steps in (*((o, (4, 8, 12)) for o in others), (killed, (2, 4, 6, 8))):
            for step in steps:
                writer.write_scalars(step, {f"{name}/loss": next(values)})
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"\x20\0\0\0\0\0\0\0cut short")
    with MetricWriter(tmp_path) as writer:
        writer.rewind(killed, 4)
        for step in (6, 8):
            writer.write_scalars(step, {f"{killed}/loss": 100 + step})
    assert len(list(tmp_path.iterdir())) == 2  # files of one second have two names
    events = read(tmp_path)
    found = [(e.step, e.value) for e in events.Scalars(f"{killed.replace(' ', '_')}/loss")]
    assert found == [(2, 6), (4, 7), (6, 106), (8, 108)]
    for name in others:
        assert [e.step for e in events.Scalars(f"{name.replace(' ', '_')}/loss")] == [4, 8, 12]


def test_a_writer_that_writes_nothing_says_so_for_each_kind():
    with Writer() as writer, pytest.raises(NotImplementedError, match="Writer does not write text"):
        writer.write_texts(0, {})
