"""When a profile begins and ends."""

import jax
import jax.numpy as jnp
import pytest

from pdistill.training.profiling import Profiler


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda path: calls.append(path))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    return calls


def traced(calls, directory, start_at, steps, **kwargs):
    """The steps before which a trace begins and ends, "exit" for the end of the loop."""
    found = []
    with Profiler(directory, start_at, **kwargs) as profiler:
        for step in steps:
            before = len(calls)
            profiler(step, {})
            found += [step] * (len(calls) - before)
        before = len(calls)
    return found + ["exit"] * (len(calls) - before)


@pytest.mark.parametrize(
    ("start_at", "steps", "found"),
    [
        (0, range(20), []),
        (3, range(20), [3, 8]),
        (3, range(0, 40, 10), [10, 20]),  # dispatches of ten updates
        (3, range(3, 20), [3, 8]),  # resumes just there
        (3, range(4, 20), []),  # resumes behind it
        (18, range(20), [18, "exit"]),
        (30, range(20), []),
    ],
)
def test_which_updates_are_traced(calls, tmp_path, start_at, steps, found):
    assert traced(calls, tmp_path, start_at, steps) == found
    assert calls == [str(tmp_path), "stop"][: len(found)]


def test_an_error_ends_the_trace(calls, tmp_path):
    def diverge():
        with Profiler(tmp_path, 1) as profiler:
            profiler(1, {})
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        diverge()
    assert calls == [str(tmp_path), "stop"]


def test_only_the_first_process_is_profiled(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert traced(calls, tmp_path, 3, range(20)) == []


def test_a_trace_is_written(tmp_path):
    with Profiler(tmp_path / "profile", 1, num_updates=1) as profiler:
        for step in range(4):
            profiler(step, jax.jit(jnp.sin)(1.0))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
