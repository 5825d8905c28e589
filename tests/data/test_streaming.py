"""Data on disk: the same batches as from memory, in bounded memory, and clear messages."""

import hashlib
import io
import itertools
import json
import shutil
import tarfile
import threading
import time

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_experiment import leaves, tiny

from pdistill import experiment
from pdistill.data import Pipeline, load_dataset
from pdistill.data.pipeline import AHEAD
from pdistill.data.records import BLOCK, DataError, Labels, Records
from pdistill.data.sources import Dataset, describe
from pdistill.data.tfds_writer import png, write
from pdistill.evaluation import Reference
from pdistill.runtime.files import read_jsonl

NUM, SHAPE = 300, (8, 8, 3)  # more than are read one by one


def images_and_labels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (NUM, *SHAPE), np.uint8), rng.integers(0, 5, NUM)


def prepare(root, name="noise"):
    """Writes a data set as `prepare` does; returns its folder."""
    images, labels = images_and_labels()
    folder = root / name / "1.0.0"
    features = {
        "image": tfds.features.Image(shape=SHAPE),
        "label": tfds.features.ClassLabel(num_classes=5),
        "id": tfds.features.Text(),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(name, tfds.core.Version("1.0.0"), str(folder), ""),
        features=tfds.features.FeaturesDict(features),
    )
    write(
        info,
        {"train": range(NUM)},
        lambda _, i: {"image": png(images[i]), "label": labels[i], "id": str(i)},
    )
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(root)
    return root


@pytest.fixture
def data(root, monkeypatch):
    """(a data set on disk, the same in memory)"""
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    return load_dataset("noise", in_memory=False), load_dataset("noise")


def check_same(on_disk, in_memory):
    assert isinstance(on_disk.images, Records)
    assert isinstance(in_memory.images, np.ndarray)
    assert len(on_disk) == len(in_memory)
    assert (on_disk.name, on_disk.image_shape) == (in_memory.name, in_memory.image_shape)
    rows = np.array([len(in_memory) - 1, 0, 3, 3])
    chex.assert_trees_all_equal(on_disk.examples(rows), in_memory.examples(rows))
    chex.assert_trees_all_equal(on_disk.examples(slice(None)), in_memory.examples(slice(None)))
    np.testing.assert_array_equal(on_disk.labels, in_memory.labels)


# --- What is read -------------------------------------------------------------------------------


def test_disk_has_what_was_prepared(data):
    check_same(*data)
    images, labels = images_and_labels()
    ours = {(image.tobytes(), label) for image, label in zip(*data[1].examples(slice(None)))}  # noqa: B905
    assert ours == {(image.tobytes(), label) for image, label in zip(images, labels)}  # noqa: B905


def test_rows_are_taken_as_of_an_array(data):
    on_disk, in_memory = (d.images for d in data)
    assert (on_disk.shape, on_disk.dtype) == (in_memory.shape, in_memory.dtype)
    for rows in (slice(2, 9, 3), np.array([[1, 2], [0, 299]]), np.array([], int), 7):
        np.testing.assert_array_equal(on_disk[rows], in_memory[rows])
    with pytest.raises(IndexError, match="from 0 to 300 of 300 images"):
        on_disk[np.array([0, 300])]
    with pytest.raises(TypeError, match="noise:train is on disk: take rows of it"):
        np.asarray(on_disk)


def test_parts_and_sizes_stay_on_disk(data):
    for change in (
        lambda d: d.of_labels([1, 4]),
        lambda d: d.at(4),
        lambda d: d.at(9).of_labels([0]).of_labels([0, 2]),
    ):
        check_same(*map(change, data))
    check_same(*(load_dataset("noise@4", "train[10%:50%]", in_memory=m) for m in (False, True)))
    with pytest.raises(ValueError, match="cannot be averaged to resolution 3"):
        data[0].at(3)


def test_a_reference_on_disk_is_the_same(data):
    on_disk, in_memory = (Reference(d.name, d.images, d.labels) for d in data)
    assert on_disk._digest == in_memory._digest


# --- Batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [NUM, 7], ids=["aligned", "of its own order"])
def test_batches_are_those_of_data_in_memory(data, num):
    """All processes' parts of them, and from any update on."""
    rows = {"value": np.arange(num), "label": np.arange(num)}
    on_disk, in_memory = (d.with_column("number", rows, aligned=num == NUM) for d in data)
    pipelines = Pipeline(on_disk, 12, seed=3, resident=False), Pipeline(in_memory, 12, seed=3)
    leaves = in_memory.arrays()
    for columns in (slice(None), np.array([0, 1, 6, 11])):
        with pipelines[0].iterator(2, columns) as streamed:
            streamed.set_state({"next_index": 20})
            resident = pipelines[1].iterator(2, columns)
            resident.set_state({"next_index": 20})
            for _ in range(5):
                index = next(resident)
                own = {"number/value", "number/label"} if num == 7 else set()
                expected = {
                    name: array[index["number/index" if name in own else "index"]]
                    for name, array in leaves.items()
                }
                chex.assert_trees_all_equal(next(streamed), expected)
            streamed.set_state({"next_index": 20})  # what was read ahead is not what follows
            rows = np.stack([pipelines[1].rows(20 + i)[columns] for i in range(2)])
            np.testing.assert_array_equal(next(streamed)["label"], in_memory.labels[rows])


class Counting:
    """A source of a million grey images, whose labels are not to be read, and what was decoded."""

    name = "many:train"

    def __init__(self):
        self.decoded = []

    def __len__(self):
        return 10**6

    @property
    def labels(self):
        raise AssertionError("labels come with the images")

    def read(self, rows):
        return [row.to_bytes(4, "little") for row in rows]

    def decode(self, row, encoded):
        assert int.from_bytes(encoded, "little") == row
        self.decoded.append(row)
        return np.full((2, 2, 1), row % 251, np.uint8), row % 7


def many():
    source = Counting()
    records = Records(source)
    source.decoded.clear()
    return source, Dataset(source.name, records, Labels(records), 7)


def test_no_more_is_read_than_a_few_batches_ahead():
    source, dataset = many()
    pipeline = Pipeline(dataset, 64, seed=0, resident=False)
    with pipeline.iterator(2) as batches:
        for step in range(3):
            batch = next(batches)
            rows = [pipeline.rows(2 * step + i) for i in range(2)]
            np.testing.assert_array_equal(batch["label"], np.array(rows) % 7)
            wait_for(lambda: len(source.decoded) == (step + 1 + AHEAD) * 128)  # noqa: B023
            time.sleep(0.05)
            assert len(source.decoded) == (step + 1 + AHEAD) * 128
    assert len(dataset.images[: 10 * BLOCK]) == 10 * BLOCK


def wait_for(happened):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_threads_end_with_the_batches_and_the_data():
    before = set(threading.enumerate())
    _, dataset = many()
    pipeline = Pipeline(dataset, 64, seed=0, resident=False)
    with pipeline.iterator() as batches:
        next(batches)
        ours = set(threading.enumerate()) - before
        assert ours
    del dataset, pipeline, batches
    wait_for(lambda: not any(thread.is_alive() for thread in ours))


def test_a_run_goes_on_with_the_batches_that_would_have_followed(data, tmp_path):
    """To the bit, from a save when more was read ahead; measured against images on disk."""
    config = tiny()
    config.data = {"name": "noise", "flip": True, "resident": False}
    config.stages = config.stages[:1]
    config.stages[0]["measured_at"] = (1,)
    config.evaluation.update(metrics=("fd_pixels",), references=("train",), num_samples=16)
    experiment.run(config, tmp_path)
    [row] = read_jsonl(tmp_path / "results.jsonl")
    assert row["reference"] == "noise:train"
    teacher = tmp_path / "teacher"
    whole, log = leaves(teacher), read_jsonl(teacher / "log.jsonl")
    shutil.rmtree(teacher / "model")
    shutil.rmtree(teacher / "checkpoints" / "8")
    experiment.run(config, tmp_path)
    chex.assert_trees_all_equal(leaves(teacher), whole)
    assert [row["loss"] for row in read_jsonl(teacher / "log.jsonl")] == [r["loss"] for r in log]


# --- Files that are not whole -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return prepare(tmp_path)


def test_a_damaged_record_is_named(folder):
    """When it is read, also among many and where a batch is read ahead."""
    [shard] = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    start = len(content) // 4
    content[start : start + 20] = bytes(20)
    shard.write_bytes(content)
    data = load_dataset("noise", in_memory=False)
    message = rf"record \d+ of noise:train, in {shard}, is damaged: .*hash mismatch.*; delete"
    with pytest.raises(DataError, match=message):
        data.in_memory()
    batches = Pipeline(data, NUM, seed=0, resident=False).iterator()
    with batches, pytest.raises(DataError, match=message):
        next(batches)
    few = Pipeline(data, 50, seed=0, resident=False).iterator()
    with few, pytest.raises(DataError, match=message):
        list(itertools.islice(few, 6))


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_shard_that_is_cut_short_is_named_at_once(folder, kept):
    [shard] = folder.glob("*array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=f"{shard} is not whole: it has 0 records and .* 300; del"):
        describe("noise")


def test_a_half_prepared_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "incomplete.mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"mine is half prepared: .*incomplete.mine is"):
        load_dataset("mine")


# --- Folders of tars ----------------------------------------------------------------------------


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(i, image, label, suffix="cls"):
    """A picture and its label, as number or in JSON."""
    text = str(label) if suffix == "cls" else json.dumps({"caption": "a", "label": int(label)})
    return {f"./{i:03}.png": png(image), f"./{i:03}.{suffix}": text.encode()}


def write_tars(folder, num=30):
    images, labels = images_and_labels()
    for shard in range(3):
        members = {"./": b"", "./000.a.txt": b"of no picture"}
        for i in range(shard * 10, shard * 10 + 10):
            members |= sample(i, images[i], labels[i], "json" if shard else "cls")
        write_tar(folder / f"part-{shard:04}.tar", members)
    return images[:num], labels[:num]


def test_a_folder_of_tars(tmp_path):
    images, labels = write_tars(tmp_path / "train")
    write_tar(tmp_path / "val" / "0.tar", sample(0, images[3], 6))
    on_disk, in_memory = (load_dataset(str(tmp_path), in_memory=m) for m in (False, True))
    check_same(on_disk, in_memory)
    chex.assert_trees_all_equal((in_memory.images, in_memory.labels), (images, labels))
    about = describe(f"{tmp_path}@4")
    assert (about.splits, about.shape) == ({"train": 30, "validation": 1}, (4, 4, 3))
    assert about.num_labels == in_memory.num_labels == 7
    assert in_memory.labelled
    part = load_dataset(f"{tmp_path}", "train[50%:]", in_memory=False)
    np.testing.assert_array_equal(part.images[:], images[15:])
    assert load_dataset(str(tmp_path), "validation").labels.tolist() == [6]
    with pytest.raises(ValueError, match=r"Unknown split 'test'.*'train', 'validation'"):
        load_dataset(str(tmp_path), "test")


def test_tars_that_have_changed_are_read_anew(tmp_path):
    """Grey pictures, without labels."""
    image = images_and_labels()[0][0][..., :1]
    for value in (image, 255 - image):
        write_tar(tmp_path / "0.tar", {"a.png": png(value), "b.png": png(value)})
        found = load_dataset(str(tmp_path))
        np.testing.assert_array_equal(found.images[1], value)
        assert (found.num_labels, found.labels.tolist()) == (1, [0, 0])
        assert not found.labelled


def test_one_picture_in_colour_among_many_grey_ones(tmp_path, monkeypatch):
    """Also where the few whose headers tell the size are all grey."""
    monkeypatch.setattr("pdistill.data.tars.SIDES_READ", 2)
    grey = np.full((4, 4, 1), 99, np.uint8)
    members = {f"{i}.png": png(grey) for i in range(7)}
    write_tar(tmp_path / "0.tar", members)
    assert load_dataset(str(tmp_path)).image_shape == (4, 4, 1)
    colours = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_tar(tmp_path / "0.tar", members | {"5.png": png(colours)})
    found = load_dataset(str(tmp_path)).images
    np.testing.assert_array_equal(found[5], colours)
    np.testing.assert_array_equal(found[0], grey.repeat(3, axis=2))


def test_pictures_that_are_no_samples_are_counted(tmp_path, capsys):
    """A second one of a sample, and those with a dot in their names."""
    image = png(images_and_labels()[0][0])
    names = ["a.png", "a.0.png", "a.1.PNG", "b.jpg", "b.webp", "c.0.txt", ".hidden.png"]
    write_tar(tmp_path / "0.tar", dict.fromkeys(names, image))
    assert len(load_dataset(str(tmp_path))) == 2
    said = "left out 3 pictures beyond one a sample, KEY.SUFFIX, such as a.0.png"
    assert said in capsys.readouterr().err


def test_numbers_of_shards(tmp_path):
    """They may be of a whole, or WordNet's names of classes, which are no numbers of shards."""
    image = png(images_and_labels()[0][0])

    def load(*names):
        for name in names:
            write_tar(tmp_path / name, {f"{name[-9:-4]}.png": image})
        return len(load_dataset(str(tmp_path / names[0].split("/")[0])))

    first, *others = [f"of/s-{i:05}-of-00003.tar" for i in range(3)]
    for name, lacking in zip((first, others[0]), (1, 2), strict=True):
        with pytest.raises(DataError, match=f"lacks the shard s-0000{lacking}-of-00003.tar; get"):
            load(name)
    assert load(others[1]) == 3
    assert load(*[f"one/s-{i}-of-2.tar" for i in (1, 2)]) == 2
    assert load("classes/n01440764.tar", "classes/n01443537.tar") == 2
    with pytest.raises(DataError, match=r"lacks the shard 101.tar"):
        load("part/100.tar", "part/102.tar", "part/103.tar")
    with pytest.raises(DataError, match=r"lacks the shard 1.tar"):
        load("few/0.tar", "few/9.tar")
    for first, *later in (("00128", "00140"), ("00100", "05000"), ("n10", "n11", "n20", "n21")):
        with pytest.raises(DataError, match="lacks the shard"):
            load(*[f"{first}-on/{number}.tar" for number in (first, *later)])


def test_tars_beside_the_training_split_are_refused(tmp_path):
    for path in ("train/0.tar", "more.tar"):
        write_tars((tmp_path / path).parent)
    with pytest.raises(DataError, match=r"has 3 tars beside its folder train, such as part-0000"):
        load_dataset(str(tmp_path))


def test_a_digest_is_kept_until_a_file_changes(tmp_path, monkeypatch, bars):
    """It is of the pictures' own bytes, whoever chooses or resizes them, and not of labels."""
    monkeypatch.setenv("PDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    images, name = images_and_labels()[0][:3], str(tmp_path / "x")

    def written(*labels):
        members = [sample(i, images[i], label) for i, label in enumerate(labels)]
        write_tar(tmp_path / "x/0.tar", members[0] | members[1])
        return load_dataset(name)

    def read():
        return bars.count(f"digest of {name}:train")

    files = written(0, 1).records.files
    for in_memory in (True, False):
        assert load_dataset(name, in_memory=in_memory).identity() == {"files": files}
    assert read() == 0  # for which data are not read, or not again
    more = shutil.copy(tmp_path / "x/0.tar", tmp_path / "x/1.tar")
    assert load_dataset(name, in_memory=False).identity() != {"files": files}
    more.unlink()
    first = written(0, 1).digest()
    assert read() == 1
    same = load_dataset(f"{name}@4", in_memory=False)
    assert same.digest() == first
    expected = {"files": files, "content": first}
    assert same.identity() == load_dataset(name).identity() == expected
    [kept] = (tmp_path / "cache/digests").iterdir()
    assert (kept.read_text(), read()) == (first, 1)
    chosen = same.choose(np.array([1])).digest()
    assert chosen == load_dataset(name, "train[1:]").digest() != first
    assert written(3, 2).digest() == first
    assert read() == 3
    images[1, 0, 0] ^= 1
    assert written(3, 2).digest() != first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    assert load_dataset(name).digest() == written(3, 2).digest()


def test_digests_of_prepared_sets_are_of_pictures_alone(data):
    on_disk, in_memory = data
    assert on_disk.digest() == in_memory.digest()
    encoded = [png(image) for image in in_memory.images]
    lengths = [len(each).to_bytes(8, "little") for each in encoded]
    parts = itertools.chain(*zip(lengths, encoded, strict=True))
    assert on_disk.digest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_captions_of_tars(tmp_path):
    images, _ = images_and_labels()
    texts = {
        "txt": (b"\xef\xbb\xbfa text\n", ("a text",)),
        "json": (b'{"caption": ["a list", "of two"]}', ("a list", "of two")),
    }
    members = {}
    for i, (suffix, (content, _)) in enumerate(texts.items()):
        members |= {f"{i}.png": png(images[i]), f"{i}.{suffix}": content}
    members["0.json"] = b'{"caption": "not this one"}'
    members["1.txt"] = b"\xef\xbb\xbf \n"  # blank
    write_tar(tmp_path / "0.tar", members)
    for in_memory in (False, True):
        dataset = load_dataset(str(tmp_path), "train", in_memory)
        assert list(dataset.captions) == [desired for _, desired in texts.values()]
    assert load_dataset(str(tmp_path), "train[1:]").captions[0] == ("a list", "of two")


def test_captions_that_some_samples_of_tars_lack(tmp_path):
    """The pictures can be read; nothing but the captions cannot."""
    image = png(images_and_labels()[0][0])
    members = {"a.png": image, "a.txt": b"a", "b.png": image, "c.png": image}
    members["c.json"] = b'{"text": 1, "label": -1}'  # something else
    write_tar(tmp_path / "0.tar", members)
    dataset = load_dataset(str(tmp_path))
    assert len(dataset) == 3
    with pytest.raises(DataError, match=r"2 of 3 samples .* have no caption, such as b.png in .*0"):
        dataset.captions[0]
    write_tar(tmp_path / "0.tar", {"a.png": image, "b.png": image})
    assert load_dataset(str(tmp_path)).captions is None


def cut(folder):
    path = folder / "part-0001.tar"
    path.write_bytes(path.read_bytes()[:-9000])


def cut_at_a_member(folder):
    path = folder / "part-0001.tar"
    path.write_bytes(path.read_bytes()[:3584])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "part-0001.tar is not whole, or no uncompressed tar: .*get it again"),
        (cut_at_a_member, "part-0001.tar is not whole, .*: it has no end"),
        (lambda folder: (folder / "part-0001.tar").unlink(), "lacks the shard part-0001.tar; get"),
        (lambda folder: write_tar(folder / "a.tar", {}), None),
        (lambda folder: write_tar(folder / "a.tar", {"x.png": png(np.zeros(SHAPE, np.uint8))}),
         "1 of 31 samples of .* have no label"),
        (lambda folder: write_tar(folder / "a.tar", sample(0, np.zeros((4, 8, 3), np.uint8), 1)),
         "pictures of several sizes, such as 8x4 and 8x8.*prepare --images"),
        (lambda folder: write_tar(folder / "a.tar", {"x.cls": b"cat", "x.png": b""}),
         "a.tar: the label in x.cls is no number from 0 on: b'cat'"),
        (lambda folder: write_tar(folder / "a.tar", {"x.cls": b"1", "x.png": b"?"}),
         "image 0 of .*:train, in .*a.tar, cannot be read: cannot identify"),
    ],
)  # fmt: skip
def test_tars_that_are_not_whole(tmp_path, spoil, message):
    write_tars(tmp_path)
    spoil(tmp_path)
    if message is None:  # an empty one is
        assert len(load_dataset(str(tmp_path))) == 30
        return
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_a_folder_without_tars(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no .tar files in .*"):
        load_dataset(str(tmp_path / "nothing"))
