"""Captions of a folder's pictures, from the command a user types to `Dataset.captions`."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_text import save_encoder

from pdistill.cli.prepare import main
from pdistill.data import load_dataset
from pdistill.data.records import Captions, DataError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def pictures(folder, *files):
    """Writes 2x2 pictures; the value of a pixel is the file's place."""
    for value, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


def prepare(folder, *arguments):
    main([f"--images={folder}", "--name=mine", "--resolution=2", *arguments])


def contents(split="train"):
    """{value of a picture: its captions}."""
    dataset = load_dataset("mine", split)
    return dict(zip(dataset.images[:, 0, 0, 0].tolist(), dataset.captions, strict=True))


def fails(folder, *arguments):
    with pytest.raises(SystemExit) as error:
        prepare(folder, *arguments)
    return str(error.value.code)


def test_texts_beside_pictures(tmp_path, capsys):
    folder = tmp_path / "in"
    pictures(folder, "a/x.png", "a/y.b.png", "b/x.png")
    (folder / "a/x.txt").write_text("\ufeff a crème\n brûlée\n", "utf-8")
    (folder / "a/x.caption").write_text("not this one")
    (folder / "a/y.b.caption").write_text("a cat")
    (folder / "b/x.txt").write_text("a dog")
    prepare(folder, "--held_out=0")
    assert contents() == {0: ("a crème brûlée",), 1: ("a cat",), 2: ("a dog",)}
    assert "captions: 3, such as 'a crème brûlée'" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["text", "caption", "prompt"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_tables(tmp_path, field, suffix):
    """Of each split; a list, or a row more, is several, and a text beside a picture comes first."""
    folder = tmp_path / "in"
    pictures(folder, "train/0.png", "train/a/1.png", "test/0.png")
    rows = [("0.png", "zero, or none"), ("a/1.png", "one"), ("gone.png", "nothing")]
    rows.append(("0.png", "nought"))
    for split in ("train", "test"):
        path = folder / split / f"metadata.{suffix}"
        if suffix == "csv":
            path.write_text(f"file_name,{field}\n" + "".join(f'{f},"{c}"\n' for f, c in rows))
        else:
            lists = [(file, [text, f"not {text}"]) for file, text in rows]
            path.write_text("\n".join(json.dumps({"file_name": f, field: c}) for f, c in lists))
    (folder / "train/a/1.txt").write_text("one of its own")
    prepare(folder, "--no_labels")
    zero = ("zero, or none", "nought")
    if suffix == "jsonl":
        zero = ("zero, or none", "not zero, or none", "nought", "not nought")
    assert contents() == {0: zero, 1: ("one of its own",)}
    assert contents("test") == {2: zero}


def test_a_table_of_a_folder_whose_pictures_are_held_out(tmp_path):
    folder = tmp_path / "in"
    names = [f"{i}.png" for i in range(20)]
    pictures(folder, *names)
    rows = [json.dumps({"file_name": name, "text": f"picture {name}"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    prepare(folder)
    for split, num in (("train", 18), ("test", 2)):
        found = contents(split)
        assert found == {value: (f"picture {value}.png",) for value in found}
        assert len(found) == num


def test_captions_that_some_pictures_lack(tmp_path, root):
    folder = tmp_path / "in"
    pictures(folder, "a.png", "b.png", "c.png")
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text(" \n")
    message = fails(folder)
    assert f"2 of 3 pictures have no caption, such as {folder / 'b.png'}: " in message
    assert "b.txt" in message
    assert "--captions=none" in message
    assert list(root.iterdir()) == []
    prepare(folder, "--captions=none")
    assert load_dataset("mine").captions is None


def test_a_table_of_other_pictures(tmp_path):
    pictures(tmp_path / "in", "a.png")
    (tmp_path / "in/metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}')
    assert "1 of 1 pictures have no caption" in fails(tmp_path / "in")


TABLES = {
    "metadata.jsonl": '{"file_name": "a.png", "objects": [1]}\n',
    "metadata.csv": "file_name,label\na.png,1\n",
}


@pytest.mark.parametrize("name", [None, *TABLES])
@pytest.mark.parametrize("beside", [False, True])
def test_a_table_without_captions(tmp_path, capsys, name, beside):
    """It says that it has none, and those beside the pictures are read."""
    pictures(tmp_path / "in", "a.png")
    if name:
        (tmp_path / "in" / name).write_text(TABLES[name])
    if beside:
        (tmp_path / "in/a.txt").write_text("an a")
    prepare(tmp_path / "in")
    captions = load_dataset("mine").captions
    assert (captions and captions[:]) == ([("an a",)] if beside else None)
    said = [line for line in capsys.readouterr().err.splitlines() if "has no captions" in line]
    assert [f"{name} has no captions, which stand in text, caption or" in s for s in said] == (
        [True] if name else []
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", b"\xff", "a.txt is not in UTF-8"),
        ("metadata.jsonl", b'{"text": "a"}', 'metadata.jsonl, row 1: there is no "file_name"'),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "a"}\n{', "in or after row 1: "),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}', "row 1: its caption is no text"),
        ("metadata.jsonl", b"[1]", "metadata.jsonl, in or after row 1: "),
        ("metadata.csv", b"file_name,text\na.png,\xff\n", "metadata.csv, in or after row 0: "),
        ("metadata.csv", b"file_name,text\nb.png,b\na.png,a cat, sitting\n",
         "row 1: a.png has more fields than the first line; put a text that has a comma into"),
        ("metadata.csv", b"file_name;text\na.png;a\n", "it has 'file_name;text'. Mend it, or"),
        ("metadata.csv", b"file_name\ttext\na.png\ta\n", "it has 'file_name\\ttext'. Mend it, or"),
        ("metadata.csv", b"image,text\na.png,a\n", "name the fields, file_name among them"),
        ("metadata.csv", b"file_name,Captions\na.png,a\n", "has 'Captions'; write caption"),
    ],
)  # fmt: skip
def test_captions_that_cannot_be_read(tmp_path, name, text, message):
    pictures(tmp_path / "in", "a.png")
    (tmp_path / "in" / name).write_bytes(text)
    assert message in fails(tmp_path / "in")


def test_embeddings_of_no_captions(tmp_path, root):
    """Are refused before anything is written; those of a set that is there have their own way."""
    pictures(tmp_path / "in", "a.png")
    encoder = f"--text_encoder={save_encoder(tmp_path / 'bert', 'bert')}"
    assert "in has no captions for --text_encoder: write x.txt" in fails(tmp_path / "in", encoder)
    assert "leave --captions=none out" in fails(tmp_path / "in", encoder, "--captions=none")
    with pytest.raises(SystemExit, match="cifar10 has none"):
        main(["cifar10", encoder])
    assert list(root.iterdir()) == []
    prepare(tmp_path / "in", "--held_out=0")
    with pytest.raises(SystemExit, match=r"mine:train has no captions .* under another name"):
        main(["--name=mine", encoder])
    assert "leave out --images to add embeddings to it" in fails(tmp_path / "in", encoder)


def test_a_data_set_of_others_with_an_image_without_a_caption(tmp_path, monkeypatch):
    """As TFDS may have prepared it."""
    pictures(tmp_path / "in", "a.png", "b.png")
    monkeypatch.setattr(
        "pdistill.data.prepare.read_captions",
        lambda _, found, __: {
            path: ("an a",) if path.stem == "a" else () for path in found.paths()
        },
    )
    prepare(tmp_path / "in", "--held_out=0")
    data = load_dataset("mine")
    row = int(np.argmax(data.images[:, 0, 0, 0]))
    with pytest.raises(DataError, match=f"image {row} of mine:train has no caption"):
        list(data.captions)


def test_captions_follow_the_rows_of_a_data_set(tmp_path):
    folder = tmp_path / "in"
    pictures(folder, *[f"{i % 3}/{i}.png" for i in range(12)])
    for i in range(12):
        (folder / f"{i % 3}/{i}.txt").write_text(f"picture {i}")
    prepare(folder, "--held_out=0")
    for in_memory in (True, False):
        dataset = load_dataset("mine", in_memory=in_memory).of_labels([0, 2]).at(4)
        assert isinstance(dataset.captions, Captions)
        values = dataset.images[:][:, 1, 1, 0]
        assert sorted(values % 3) == [0] * 4 + [2] * 4
        texts = [(f"picture {value}",) for value in values]
        assert list(dataset.captions) == dataset.captions[:] == texts
        assert (dataset.captions[-1], dataset.captions[2:4]) == (texts[-1], texts[2:4])
        with pytest.raises(IndexError):
            dataset.captions[8]
