import errno
import io
import resource

import jax
import pytest

from pdistill.runtime.arrays import CheckpointError, save_params
from pdistill.runtime.terminal import plain_errors, progress


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


def test_other_errors_are_bugs():
    with pytest.raises(KeyError), plain_errors(OSError):
        raise KeyError("name")


def test_a_bar_in_a_log_moves_rarely(monkeypatch):
    """Where it cannot overwrite itself, ten times a second would be a thousand lines of junk."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert progress("images", 3).mininterval == 10
