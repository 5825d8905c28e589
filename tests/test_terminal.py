import errno
import io

import pytest

from pdistill.runtime.terminal import plain_errors, progress


@pytest.mark.parametrize(
    ("number", "ending"),
    [(errno.ENOSPC, "; make room and start the same command again"), (errno.EACCES, "")],
)
def test_a_full_disk_says_what_to_do(number, ending):
    message = rf"^error: \[Errno {number}\] not here{ending}$"
    with pytest.raises(SystemExit, match=message), plain_errors(OSError):
        raise OSError(number, "not here")


def test_other_errors_are_bugs():
    with pytest.raises(KeyError), plain_errors(OSError):
        raise KeyError("name")


def test_a_bar_in_a_log_moves_rarely(monkeypatch):
    """Where it cannot overwrite itself, ten times a second would be a thousand lines of junk."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert progress("images", 3).mininterval == 10
