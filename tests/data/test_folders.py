"""Splits, classes and the held-out split of a folder; `prepare` twice at once, or killed."""

import numpy as np
import pytest
from PIL import Image

from pdistill.cli.prepare import main
from pdistill.data import load_dataset
from pdistill.data.folders import read_folder
from pdistill.data.sources import data_dir
from pdistill.data.tfds_writer import new_folder
from pdistill.runtime.temporary import discard


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def pictures(folder, files):
    """Writes 2x2 pictures; the value of a pixel is the file's place."""
    for value, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


def prepare(folder, *arguments, name="mine"):
    main([f"--images={folder}", f"--name={name}", "--resolution=2", *arguments])


def contents(split, name="mine"):
    """{value of a picture: its label}."""
    dataset = load_dataset(name, split)
    return dict(zip(dataset.images[:, 0, 0, 0].tolist(), dataset.labels.tolist(), strict=True))


def fails(folder, *arguments):
    with pytest.raises(SystemExit) as error:
        prepare(folder, *arguments)
    return str(error.value.code)


def test_numbered_classes_are_in_natural_order_and_printed(tmp_path, capsys):
    names = ["10", "9", "1", "2"]
    pictures(tmp_path / "in", [f"{name}/{i}.png" for name in names for i in range(2)])
    prepare(tmp_path / "in")
    assert contents("train") == {0: 3, 1: 3, 2: 2, 3: 2, 4: 0, 5: 0, 6: 1, 7: 1}
    assert "classes: 0 1, 1 2, 2 9, 3 10" in capsys.readouterr().err.splitlines()


def test_classes_with_several_numbers(tmp_path, capsys):
    names = ["v2.10", "v2.9", "v10.1", "v02.9", "b"]
    pictures(tmp_path / "in", [f"{name}/0.png" for name in names])
    prepare(tmp_path / "in")
    assert "0 b, 1 v02.9, 2 v2.9, 3 v2.10, 4 v10.1" in capsys.readouterr().err


def test_many_classes_are_printed_in_part(tmp_path, capsys):
    pictures(tmp_path / "in", [f"c{i}/0.png" for i in range(120)])
    prepare(tmp_path / "in", "--held_out=0")
    assert "classes: 0 c0, 1 c1, " in (printed := capsys.readouterr().err)
    assert ", 98 c98, ..., 119 c119\n" in printed


def test_names_of_splits(tmp_path):
    pictures(tmp_path / "in", ["Training/a/0.png", "valid/a/1.png", "TEST/a/2.png"])
    prepare(tmp_path / "in")
    assert [set(contents(split)) for split in ("train", "validation", "test")] == [{0}, {1}, {2}]


def test_what_is_hidden_or_has_no_pictures_is_no_class_and_no_split(tmp_path, capsys):
    files = ["train/a/0.png", "test/a/1.png", ".git/x/2.png", "train/.thumbs/3.png"]
    pictures(tmp_path / "in", files)
    (tmp_path / "in/annotations").mkdir()
    (tmp_path / "in/annotations/boxes.json").write_text("{}")
    prepare(tmp_path / "in")
    assert (contents("train"), contents("test")) == ({0: 0}, {1: 0})
    assert "classes: 0 a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "messages"),
    [
        (  # a stray folder beside splits
            ["train/a/0.png", "test/a/1.png", "more/a/2.png"],
            ("1 images beside its splits", "such as more/a/2.png", "one named train"),
        ),
        (["train/a/0.png", "1.png"], ("beside its splits", "such as 1.png")),
        (["train/a/0.png", "val/a/1.png", "valid/a/2.png"], ("at most one test and one val",)),
        (["test/a/0.png", "val/a/1.png"], ("one must be train",)),
        (  # tiny-imagenet
            ["train/n01/0.png", "train/n02/1.png", "val/images/2.png"],
            ("train has 2 of 3, without images", "--no_labels"),
        ),
        (
            ["train/a/0.png", "train/b/1.png", "test/a/2.png"],
            ("test has 1 of 2, without b", "--no_labels"),
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, root, files, messages):
    pictures(tmp_path / "in", files)
    error = fails(tmp_path / "in")
    assert all(message in error for message in messages), error
    assert list(root.iterdir()) == []


def test_different_classes_do_not_matter_without_labels(tmp_path):
    pictures(tmp_path / "in", ["train/n01/0.png", "train/n02/1.png", "val/images/2.png"])
    prepare(tmp_path / "in", "--no_labels")
    assert (contents("train"), contents("validation")) == ({0: 0, 1: 0}, {2: 0})


COUNTS = {"a": 50, "b": 35, "c": 5}
FILES = [f"{name}/{i}.png" for name, count in COUNTS.items() for i in range(count)]


def test_a_tenth_is_held_out_evenly_and_always_the_same(tmp_path, capsys):
    pictures(tmp_path / "in", FILES)
    prepare(tmp_path / "in")
    assert "images: train 81, test 9" in capsys.readouterr().err
    train, test = contents("train"), contents("test")
    assert set(train) | set(test) == set(range(90))
    assert not set(train) & set(test)
    counts = np.bincount(list(test.values()), minlength=3)
    assert (np.abs(counts - np.array(list(COUNTS.values())) / 10) < 1).all()
    assert sorted(test) == [9, 36, 41, 44, 47, 51, 58, 71, 86]
    pictures(tmp_path / "other/train", FILES)  # a lone split
    prepare(tmp_path / "other", name="again")
    assert contents("test", "again") == test


def test_damaged_pictures_leave_others_in_each_split(tmp_path, monkeypatch, capsys):
    """Whichever of three they are, and one picture is read to find out, not all held-out ones."""
    for held_out, damaged in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2)):  # (2, 0): all of train
        name = f"set_{held_out}_{damaged}"
        pictures(tmp_path / name, ["a/0.png", "a/1.png", "a/2.png"])
        (tmp_path / name / f"a/{damaged}.png").write_text("")
        prepare(tmp_path / name, f"--held_out={held_out}", name=name)
        assert len(contents("train", name)) == len(contents("test", name)) == 1, name
    pictures(tmp_path / "one", ["a/0.png", "a/1.png", "a/2.png"])
    for damaged in (0, 2):
        (tmp_path / f"one/a/{damaged}.png").write_text("")
    capsys.readouterr()
    prepare(tmp_path / "one", "--held_out=1", name="one")
    assert contents("train", "one") == {1: 0}
    assert "train 3; there is no held-out split" in capsys.readouterr().err
    read = []
    monkeypatch.setattr("pdistill.data.folders.is_readable", lambda path: not read.append(path))
    assert len(read_folder(tmp_path / "one", held_out=2).files["test"]) == 2
    assert len(read) == 1


def test_no_device_is_started_for_pictures(tmp_path, monkeypatch):
    """As the question which process this is would do; also for a line about a damaged one."""
    pictures(tmp_path / "in", ["a/0.png", "a/1.png"])
    (tmp_path / "in/a/0.png").write_text("")
    monkeypatch.setattr("jax.process_index", lambda: pytest.fail("a device is started"))
    prepare(tmp_path / "in")
    assert contents("train") == {1: 0}


def test_the_number_held_out(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "in", FILES)
    prepare(tmp_path / "in", "--held_out=20")
    assert (len(contents("train")), len(contents("test"))) == (70, 20)
    prepare(tmp_path / "in", "--held_out=0", name="whole")
    assert len(contents("train", "whole")) == 90
    assert "train 90; there is no held-out split" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'test'"):
        load_dataset("whole", "test")
    monkeypatch.setattr("pdistill.data.folders.HELD_OUT", 4)
    prepare(tmp_path / "in", name="large")
    assert len(contents("test", "large")) == 4
    for number in (90, -1):
        assert "from 0 to 89" in fails(tmp_path / "in", f"--held_out={number}", "--name=x")
    pictures(tmp_path / "split", ["train/0.png", "val/1.png"])
    assert "leave --held_out away" in fails(tmp_path / "split", "--held_out=1", "--name=x")


# --- Twice at once, or killed --------------------------------------------------------------------


def test_a_second_one_at_the_same_time_is_told_at_once(tmp_path, root):
    pictures(tmp_path / "in", ["0.png"])
    with new_folder(root, "mine", "1.0.0") as scratch:
        (scratch / "half").write_text("written")
        assert f"mine is being prepared in {root} by another" in fails(tmp_path / "in")
        assert (scratch / "half").exists()
        prepare(tmp_path / "in", name="other")
        (scratch / "mine/1.0.0").mkdir(parents=True)
    assert sorted(path.name for path in root.iterdir()) == ["mine", "other"]


def test_what_a_killed_one_left_is_gone_after_the_next(tmp_path, root):
    pictures(tmp_path / "in", ["0.png"])
    (root / "incomplete.mine/mine").mkdir(parents=True)
    (root / "incomplete.mine/mine/half").write_text("written")
    (root / "incomplete.mine.lock").touch()
    prepare(tmp_path / "in")
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert contents("train") == {0: 0}


def test_a_signal_leaves_nothing(root):
    """The program's last act at one is `discard`, wherever the main thread is."""
    folder = new_folder(root, "mine", "1.0.0")
    (folder.__enter__() / "half").write_text("written")
    discard()
    assert list(root.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        folder.__exit__(None, None, None)


def test_an_empty_data_dir_is_none(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(data_dir()) == "/somewhere/tensorflow_datasets"
