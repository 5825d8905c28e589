"""What is said about programs that compile, and where they came from."""

import io
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from pdistill.runtime import compilations, terminal
from pdistill.runtime.compilations import CACHE_HIT, COMPILATION, LOWERING, TRACING


@pytest.fixture
def open_stream(monkeypatch):
    """Opens standard error, in the test itself, as pytest's does so before; lines come at once."""

    def open_stream():
        compilations.tell_compilations()
        monkeypatch.setattr(compilations, "PATIENCE", 0.02)
        monkeypatch.setattr(compilations, "INTERVAL", 0.02)
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return open_stream


def wait_for(stream, num):
    """Waits for so many lines that something still compiles; clears the stream."""
    before = time.monotonic()
    while stream.getvalue().count("still compiles") < num:
        assert time.monotonic() < before + 60
        time.sleep(0.01)
    stream.truncate(0)
    stream.seek(0)


def begin(event, name="jit(_generate)"):
    monitoring.record_scalar(event, time.time(), fun_name=name)


def end(event, seconds, name="jit(_generate)"):
    monitoring.record_event_duration_secs(event, seconds, fun_name=name)


def test_jax_has_these_events():
    begun, over = [], []

    def begins(name, _, **about):
        begun.append((name, about))

    def ends(name, _, **__):
        over.append(name)

    monitoring.register_scalar_listener(begins)
    monitoring.register_event_duration_secs_listener(ends)
    jax.jit(lambda x: x + 1)(jnp.ones(7))
    monitoring.unregister_scalar_listener(begins)
    monitoring.unregister_event_duration_listener(ends)
    events = [name for name, _ in begun]
    for event in (TRACING, LOWERING, COMPILATION):
        assert event in events
        assert over.count(event) == events.count(event)
    assert (COMPILATION, {"fun_name": "jit(<lambda>)"}) in begun


def test_a_long_compilation_is_told_wherever_it_is(open_stream):
    stream = open_stream()
    begin(COMPILATION)
    wait_for(stream, 2)
    end(COMPILATION, 75.0)
    *still, last = stream.getvalue().splitlines()
    assert set(still) <= {"sampler still compiles, 0:00"}
    assert last == "sampler compiled in 75.0 s"
    with compilations.named("teacher"):
        begin(COMPILATION)
        monitoring.record_event(CACHE_HIT)
        wait_for(stream, 1)
        end(COMPILATION, 1.25)
    *_, last = stream.getvalue().splitlines()
    assert last == "teacher          sampler taken from the cache in 1.2 s"


def test_a_short_one_is_not(open_stream, monkeypatch):
    stream = open_stream()
    monkeypatch.setattr(compilations, "PATIENCE", 60)
    before = threading.active_count()
    jax.jit(lambda x: x + 2)(jnp.ones(7))
    assert stream.getvalue() == ""
    assert threading.active_count() == before


def test_what_a_run_compiles_is_always_told(open_stream, monkeypatch):
    stream = open_stream()
    monkeypatch.setattr(compilations, "INTERVAL", 60)
    now = time.time() % 1  # so that no cache has the program
    scale = jax.jit(lambda x: now * x)
    for _ in range(2):
        with compilations.compiling("teacher"):
            scale(jnp.ones(7))
    first, how, again, none = stream.getvalue().splitlines()
    assert first == again == "teacher          compiles"
    assert re.fullmatch(r"teacher          compiled in \d+\.\d s", how)
    assert none == "teacher          was compiled before"


def test_it_is_told_until_the_program_is_there(open_stream):
    """Also while it is traced, in which small programs compile; not while it computes."""
    stream = open_stream()
    with compilations.compiling("teacher"):
        begin(TRACING, "update")
        begin(COMPILATION, "jit(small)")
        monitoring.record_event(CACHE_HIT)
        end(COMPILATION, 0.1, "jit(small)")
        wait_for(stream, 2)
        end(TRACING, 1.0, "update")
        begin(COMPILATION, "jit(update)")
        wait_for(stream, 2)
        end(COMPILATION, 2.0, "jit(update)")
        time.sleep(0.05)  # of a line that is being written
        stream.truncate(0)
        stream.seek(0)
        time.sleep(0.2)
    [last] = stream.getvalue().splitlines()
    assert re.fullmatch(r"teacher          compiled in \d+\.\d s", last)


def test_an_error_ends_the_lines(open_stream):
    stream = open_stream()
    before = threading.active_count()
    with pytest.raises(KeyError), compilations.compiling("teacher"):
        raise KeyError
    assert threading.active_count() == before
    assert stream.getvalue() == "teacher          compiles\n"


def test_on_a_terminal_the_last_line_stays(open_stream, monkeypatch):
    stream = open_stream()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with compilations.compiling("teacher"):
        end(COMPILATION, 1.0)
    terminal.say("the next")
    shown = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert shown[0].startswith("teacher          compiled in")
    assert shown[1:] == ["the next", ""]
