"""One run at a time has a run directory; what another leaves there does not disturb it."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pdistill.evaluation import Evaluator, Reference
from pdistill.experiment.config import ConfigError
from pdistill.experiment.directory import taken
from pdistill.experiment.rows import open_log
from pdistill.runtime.files import (
    check_writable,
    read_json,
    read_jsonl,
    write_arrays,
    write_atomically,
    write_jsonl,
)
from pdistill.runtime.lock import is_written, writing
from pdistill.runtime.temporary import replacing, sweep

ROOT = Path(__file__).parent.parent
HOLD = """
import sys
from pathlib import Path
from pdistill.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_says_who_has_the_directory(tmp_path):
    """Neither starts again nor touches anything; the end of the first one frees it, however."""
    (tmp_path / "results.jsonl").write_text("{}\n")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as first:  # fmt: skip
        assert first.stdout.readline() == "held\n"
        for new in (False, True):
            with (
                pytest.raises(ConfigError, match=f"{tmp_path} is in use by process {first.pid} on"),
                taken(tmp_path, new=new),
            ):
                pass
        first.kill()
    assert (tmp_path / "results.jsonl").read_text() == "{}\n"
    with taken(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        taken(tmp_path).__enter__()
    with taken(tmp_path):
        pass


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, capsys, there):
    """--new moves the directory that it leads to; one that is not there yet is made."""
    disk, link = tmp_path / "disk", tmp_path / "run"
    link.symlink_to(disk)
    if there:
        disk.mkdir()
        (disk / "old").touch()
    with taken(link, new=True):
        (link / "new").touch()
    assert link.readlink() == disk
    assert (disk / "new").exists()
    assert not (disk / "old").exists()
    assert (tmp_path / "disk.1/old").exists() == there
    assert (f"{link} is moved to {disk}.1" in capsys.readouterr().err) == there
    with taken(link, new=True):
        assert (tmp_path / ("disk.2/new" if there else "disk.1/new")).exists()


def test_two_programs_write_one_file_at_a_time_each_whole(tmp_path):
    """The second begins and ends within the first, as two jobs at one uncached reference may."""
    path = tmp_path / "arrays.npz"
    with replacing(path) as first:
        first.write_bytes(b"half")
        write_arrays(path, {"a": np.arange(3)})
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["a"], np.arange(3))
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_anothers_place(tmp_path):
    for name in "ab":
        with replacing(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / name).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "b"]


def test_rows_make_their_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    for append in (False, True):
        write_jsonl(path, [{"a": 1}], append=append)
    assert read_jsonl(path) == 2 * [{"a": 1}]
    assert path.read_text() == 2 * '{"a": 1}\n'


@pytest.mark.parametrize("in_place", [True, False])
def test_what_must_be_writable(tmp_path, monkeypatch, in_place):
    """The file where it is changed, the folder where it is replaced or new."""
    path, asked = tmp_path / "rows", []
    monkeypatch.setattr("pdistill.runtime.files.check_folder", asked.append)
    monkeypatch.setattr("os.access", lambda *_: False)
    check_writable(path, in_place=in_place)
    assert asked == [tmp_path]
    path.touch()
    if in_place:
        with pytest.raises(PermissionError, match="rows: it may not be changed"):
            check_writable(path, in_place=True)
    else:
        check_writable(path)
        assert asked == 2 * [tmp_path]


def test_json_of_16_mb_is_the_largest(tmp_path):
    path = tmp_path / "card.json"
    path.write_bytes(b"1".ljust(2**24))
    assert read_json(path) == 1
    path.write_bytes(b"1".ljust(2**24 + 1))
    with pytest.raises(ValueError, match="has more than 16,777,216 bytes"):
        read_json(path)


def test_remnants_go_when_they_are_old(tmp_path):
    """After a day."""
    old, fresh = (tmp_path / f"file.tmp-{digit * 12}" for digit in "ab")
    others = [tmp_path / "file.tmp-mine", tmp_path / f"other.tmp-{'c' * 12}"]
    for path, hours in ({old: 24.1, fresh: 23.9} | dict.fromkeys(others, 1000)).items():
        path.touch()
        changed = time.time() - 3600 * hours
        os.utime(path, (changed, changed))
    write_atomically(tmp_path / "file", "text")
    assert not old.exists()
    assert all(path.exists() for path in (fresh, *others))
    sweep([fresh])
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("row", "lacking"),
    [
        ("5", "stage"),
        ('{"stage": "teacher"}', "train_steps"),
        ('{"stage": "teacher", "train_steps": "3"}', "train_steps"),
        ('{"train_steps": 3}', "stage"),
    ],
)
def test_a_row_that_is_of_no_model_is_named(tmp_path, row, lacking):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"\xff\n")
    with pytest.raises(OSError, match=r"results\.jsonl is no text"):
        open_log(path, {}, [])
    sound = '{"stage": "teacher", "train_steps": 3, "metric": "fid"}\n'
    path.write_text(sound + row)
    with pytest.raises(OSError, match=rf"results\.jsonl has a row without a sound {lacking};"):
        open_log(path, {"teacher": 3}, [])
    path.write_text(sound)
    open_log(path, {"teacher": 3}, [])
    assert path.read_text() == sound
    open_log(path, {"teacher": None}, [])  # it will be trained on, and may yet be left as it is
    assert path.read_text() == sound
    open_log(path, {"teacher": 4}, [])
    assert not path.read_text()


def test_ratios_without_mirrors_are_measured_again(tmp_path, capsys):
    """A column has one definition; other rows, and those of data without mirrors, stay."""
    sound = {"stage": "teacher", "train_steps": 3, "reference": "a:train"}
    ratio = sound | {"metric": "nearest_neighbour_ratio", "features": "pixels"}
    rows = [sound | {"metric": "fd_pixels"}, ratio | {"mirrored": True}, ratio]
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    train, held_out = Reference("a:train", images[:20]), Reference("a:test", images[20:])
    for mirrored in (False, True):
        path = tmp_path / f"{mirrored}.jsonl"
        write_jsonl(path, rows)
        evaluator = Evaluator([train], [ratio["metric"]], held_out=held_out, mirrored=mirrored)
        assert open_log(path, {"teacher": 3}, [evaluator]).rows == rows[: 2 if mirrored else 3]
        assert ("do not count mirrors are measured again" in capsys.readouterr().err) == mirrored


def test_what_is_being_written_is_told_by_its_writer(tmp_path, monkeypatch):
    """However long that takes; without locks, by its age."""
    assert not is_written(tmp_path)
    with writing(tmp_path):
        os.utime(tmp_path, (0, 0))
        assert is_written(tmp_path)
    assert not is_written(tmp_path)
    assert not is_written(tmp_path / "finished")
    assert not [*tmp_path.iterdir()]

    def refuse(*_):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with writing(tmp_path):
        assert not is_written(tmp_path)
        os.utime(tmp_path)
        assert is_written(tmp_path)
