import errno
import io
import logging
import resource
import warnings

import jax
import pytest

from pdistill.runtime import terminal
from pdistill.runtime.arrays import CheckpointError, save_params
from pdistill.runtime.terminal import format_count, plain_errors, plain_messages


@pytest.mark.parametrize(
    ("number", "ending"),
    [(errno.ENOSPC, "; make room and start the same command again"), (errno.EACCES, "")],
)
def test_a_full_disk_says_what_to_do(number, ending):
    message = rf"^error: \[Errno {number}\] not here{ending}$"
    with pytest.raises(SystemExit, match=message), plain_errors(OSError):
        raise OSError(number, "not here")


def test_a_full_disk_is_one_line(tmp_path, caplog):
    """Of a real save, whose threads have errors of their own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    params = {"a": jax.random.normal(jax.random.key(0), (50_000,))}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with (
            pytest.raises(SystemExit, match=f"^error: cannot write {tmp_path}"),
            plain_errors(CheckpointError),
        ):
            save_params(tmp_path / "params", params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not caplog.records


def test_warnings_are_a_line_and_logs_of_libraries_none(monkeypatch, caplog):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    told = []
    plain_messages(told.append)
    logging.getLogger("absl").warning("OpenCV is not installed.")
    for _ in range(2):
        with warnings.catch_warnings():  # makes Python forget what it has shown
            warnings.simplefilter("default")
            warnings.warn("there are few images", stacklevel=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("there are few images", UserWarning, "", 1)
    assert told == ["warning: there are few images"]
    assert not caplog.records


def test_other_errors_are_bugs():
    with pytest.raises(KeyError), plain_errors(OSError):
        raise KeyError("name")


def test_counts_are_words():
    assert [format_count(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert format_count("8+4+2", "step") == "8+4+2 steps"


def test_a_conclusion_is_whole_and_in_the_place_of_the_line_before(monkeypatch):
    """However wide the terminal is: it will not be written over."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "20")
    terminal.update("measures " * 9)
    assert terminal.open_line() == "measures " * 9
    terminal.conclude("measured " * 9)
    assert terminal.open_line() is None
    assert stream.getvalue().split("\r")[-1] == f"{'measured ' * 9}{terminal.CLEAR_TO_END}\n"
