import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from pdistill.data import load_dataset
from pdistill.data.sources import absolute_name, beside

# --- Digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_each_in_one_split():
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert (train.name, test.name) == ("digits:train", "digits:test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_shape == test.image_shape == (8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.num_labels == 10

    bunch = load_digits()
    levels = np.array([round(level * 255 / 16) for level in range(17)])
    desired = np.c_[levels[bunch.images.astype(int)].reshape(1797, 64), bunch.target]
    ours = [np.c_[split.images.reshape(-1, 64), split.labels] for split in (train, test)]
    # The images all differ, so equal sorted lists mean that each is in one place, once.
    assert len(np.unique(desired, axis=0)) == 1797
    np.testing.assert_array_equal(
        np.unique(np.concatenate(ours), axis=0), np.unique(desired, axis=0)
    )


def test_split_of_digits_is_fixed():
    """With another one, new rows of results.jsonl could not be compared with old ones."""
    assert load_dataset("digits").labels[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]
    assert load_dataset("digits", "test").labels[:10].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1]


def test_images_at_their_own_size_stay():
    digits = load_dataset("digits", "test")
    assert digits.at(8) is digits
    assert digits.at(4).image_shape == (4, 4, 1)


def test_unknown_split_of_digits():
    with pytest.raises(ValueError, match="splits train and test; got 'validation'"):
        load_dataset("digits", "validation")


# --- TensorFlow Datasets ------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty TFDS_DATA_DIR; set after TFDS was imported, as it would be in a notebook."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def describe(data_dir, name, file_format="array_record"):
    """Writes what stands beside the records of a prepared data set, but no records."""
    builder = tfds.builder(name, data_dir=data_dir)
    directory = Path(builder.data_path)
    directory.mkdir(parents=True)
    builder.info.features.save_config(directory)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"filepathTemplate": template, "numBytes": "1", "shardLengths": ["1"]}
    info = {
        "name": name,
        "version": str(builder.version),
        "fileFormat": file_format,
        "splits": [{"name": key, **split} for key in ("train", "test")],
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


@pytest.mark.parametrize("name", ["nonesuch", "cifar10:9.9.9"])
def test_unknown_data_set(data_dir, name):
    with pytest.raises(ValueError, match=name):
        load_dataset(name)


def test_data_set_that_is_not_there(data_dir):
    with pytest.raises(FileNotFoundError, match="TFDS_DATA_DIR") as error:
        load_dataset("cifar10")
    assert str(data_dir / "cifar10") in str(error.value)


def test_tfrecord_copy(data_dir):
    directory = describe(data_dir, "cifar10", "tfrecord")
    with pytest.raises(FileNotFoundError, match=r"TFRECORD.*array_record") as error:
        load_dataset("cifar10")
    assert str(directory) in str(error.value)


def test_copy_without_its_records(data_dir):
    directory = describe(data_dir, "cifar10")
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10")
    assert str(directory) in str(error.value)


def test_empty_folder_is_not_called_a_tfrecord_copy(data_dir):
    directory = describe(data_dir, "cifar10")
    for path in directory.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="not prepared") as error:
        load_dataset("cifar10")
    assert str(directory) in str(error.value)


def test_unknown_split_of_tfds(data_dir):
    describe(data_dir, "cifar10")
    with pytest.raises(ValueError, match=r"'validation'.*'train', 'test'"):
        load_dataset("cifar10", "validation")


def test_data_set_without_images(data_dir):
    describe(data_dir, "ag_news_subset")
    with pytest.raises(ValueError, match=r"ag_news_subset has no 'image' feature; it has .*title"):
        load_dataset("ag_news_subset")


def test_cifar10(monkeypatch):
    shared = Path(__file__).parents[3] / "shared/tfds"
    data_dir = Path(os.environ.get("TFDS_DATA_DIR", shared))
    if not (data_dir / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 in {data_dir}; set TFDS_DATA_DIR to a folder that has it")
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    test = load_dataset("cifar10", "test")
    assert test.name == "cifar10:test"
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.images.dtype == np.uint8
    assert test.labels.dtype == np.int32
    assert test.num_labels == 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The figures that are quoted everywhere, in 1/255: 0.4942, 0.4851, 0.4504.
    np.testing.assert_allclose(
        test.images.mean(axis=(0, 1, 2)) / 255, [0.4942, 0.4851, 0.4504], rtol=0, atol=5e-5
    )


def test_relative_folders_are_those_of_their_project(tmp_path, monkeypatch):
    """What is made of a folder of tars is kept by its whole path, inside of the data's folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    latents = tmp_path / "data/latents"
    for name, place in (
        ("./x:train[:9%]", tmp_path / "a/b/x:train[:9%]"),
        ("../x@8:train", tmp_path / "a/x@8:train"),
        ("~/x:train", tmp_path / "home/x:train"),
        ("/x:train", "/x:train"),
    ):
        assert absolute_name(name) == str(place)
        assert beside("latents", name) == latents / str(place)[1:]
    assert beside("latents", "mine:train") == latents / "mine:train"
