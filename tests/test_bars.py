"""Bars on a terminal, beside other lines there, and in a log."""

import io
import re
import threading
import time

import pytest

from pdistill.runtime import bars, terminal
from pdistill.runtime.bars import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_stream(monkeypatch):
    """Puts a stream in place of standard error, in the test itself; lines come at once."""

    def open_stream(stream):
        for name in ("PATIENCE", "ON_TERMINAL", "IN_LOG"):
            monkeypatch.setattr(bars, name, 0.01)
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    yield open_stream
    terminal.end_line()


def shown(stream):
    """The lines that a terminal shows of what was written to it."""
    lines = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    return [line.replace(terminal.CLEAR_TO_END, "") for line in lines]


def wait_for(stream, pattern):
    """Waits until some line begins like this."""
    before = time.perf_counter()
    while not any(re.match(pattern, line) for line in shown(stream)):
        assert time.perf_counter() < before + 60, stream.getvalue()
        time.sleep(0.005)


def test_a_bar_takes_the_place_of_a_line_and_is_gone_at_the_end(open_stream):
    stream = open_stream(Terminal())
    terminal.update("the model is measured")
    with Bar("samples", 4) as bar:
        wait_for(stream, r"samples:   0%.* 0/4 \[00:00<\?, \? images/s\]$")
        bar.update(1)
        wait_for(stream, r"samples:  25%.* 1/4 ")
    assert shown(stream) == [""]


def test_a_bar_leaves_the_lines_of_others_alone(open_stream):
    """It comes back below one that stays."""
    stream = open_stream(Terminal())
    with Bar("samples", 4) as bar:
        wait_for(stream, "samples")
        terminal.update("it compiles")
        bar.update(1)
        time.sleep(0.1)
        assert shown(stream) == ["it compiles"]
        terminal.conclude("it was compiled")
        wait_for(stream, "samples:  25%")
        terminal.update("it compiles")
    assert shown(stream) == ["it was compiled", "it compiles"]


def test_a_log_has_a_line_if_something_was_done(open_stream):
    stream = open_stream(io.StringIO())
    with Bar("samples", 4) as bar:
        time.sleep(0.1)
        assert stream.getvalue() == ""
        bar.update(3)
        wait_for(stream, "samples")
        time.sleep(0.1)
    [line] = stream.getvalue().splitlines()
    assert re.fullmatch(r"samples:  75%\|.*\| 3/4 \[.*", line)


def test_the_first_images_are_in_no_rate(open_stream, monkeypatch):
    """Ten a second, after ten that took a compilation of a thousand seconds."""
    stream, now = open_stream(io.StringIO()), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Bar("samples", 50) as bar:
        for seconds in (1000, 1, 1):
            now[0] += seconds
            bar.update(10)
        wait_for(stream, r"samples:  60%\|.*\| 30/50 \[16:42<00:02, 10\.00 images/s\]$")


def test_what_is_not_counted_has_its_time(open_stream):
    stream = open_stream(Terminal())
    with Bar("computes fid"):
        wait_for(stream, r"computes fid, 0:00$")
    assert shown(stream) == [""]


def test_nothing_is_said_of_what_is_short_or_has_no_name(open_stream, monkeypatch):
    stream, before = open_stream(Terminal()), threading.active_count()
    with Bar(None, 4) as bar:
        bar.update(1)
        time.sleep(0.1)
    monkeypatch.setattr(bars, "PATIENCE", 60)
    with Bar("samples", 4) as bar:
        bar.update(4)
    assert stream.getvalue() == ""
    assert threading.active_count() == before
