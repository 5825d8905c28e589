import dataclasses
import functools
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.hashing import Hasher

from pdistill.cli import prepare as command
from pdistill.cli.prepare import main
from pdistill.data import load_dataset
from pdistill.data.published import PUBLISHED
from pdistill.data.resize import resize_square
from pdistill.evaluation import load_reference
from pdistill.networks import Codec
from pdistill.networks.codecs.autoencoder_tiny import AutoencoderTiny

CIFAR = "cifar-10-binary.tar.gz"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where data sets are prepared and read; not there yet."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def noise(num, *shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, *shape), np.uint8), rng.integers(0, 10, num, np.uint8)


def records(images, labels):
    """The bytes of a CIFAR-10 batch file."""
    return np.c_[labels, images.transpose(0, 3, 1, 2).reshape(len(images), -1)].tobytes()


def publish(monkeypatch, name, folder, contents):
    """Writes files, and makes them what is published as the data set `name`."""
    folder.mkdir()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    new = dataclasses.replace(PUBLISHED[name], address=folder.as_uri() + "/", md5=md5)
    monkeypatch.setitem(PUBLISHED, name, new)


def tar_of(contents):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


CIFAR_NAMES = b"airplane automobile bird cat deer dog frog horse ship truck".replace(b" ", b"\n")


def publish_cifar(monkeypatch, folder, train, test):
    """Publishes an archive with a fifth of `train` in each of its batches."""
    arrays = {f"data_batch_{i + 1}.bin": [a[i::5] for a in train] for i in range(5)}
    contents = {file: records(*batch) for file, batch in {"test_batch.bin": test, **arrays}.items()}
    contents["batches.meta.txt"] = CIFAR_NAMES + b"\n\n"
    archive = tar_of({f"cifar-10-batches-bin/{file}": c for file, c in contents.items()})
    publish(monkeypatch, "cifar10", folder, {CIFAR: archive})


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """((train images, labels), (test images, labels)), published at a file: address."""
    images, labels = noise(80, 32, 32, 3)
    arrays = (images[:50], labels[:50]), (images[50:], labels[50:])
    publish_cifar(monkeypatch, tmp_path / "published", *arrays)
    return arrays


def stock_order(split, num):
    """The order that TFDS gives to examples whose keys are 0, 1, ..."""
    return sorted(range(num), key=Hasher(split).hash_key)


def assert_same(dataset, images, labels):
    order = stock_order(dataset.name.split(":")[1], len(images))
    np.testing.assert_array_equal(dataset.images, images[order])
    np.testing.assert_array_equal(dataset.labels, labels[order])
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int32)


# --- Published archives -------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [None, "", CIFAR], ids=["download", "folder", "file"])
def test_cifar10(root, cifar, tmp_path, archive):
    train, test = cifar
    if archive is not None:
        main(["cifar10", f"--archive={tmp_path / 'published' / archive}"])
    else:
        main(["cifar10"])
    fives = [np.concatenate([array[i::5] for i in range(5)]) for array in train]
    assert_same(load_dataset("cifar10", "train"), *fives)
    assert_same(load_dataset("cifar10", "test"), *test)
    assert load_dataset("cifar10", "train[:20%]").num_labels == 10
    assert [path.name for path in root.iterdir()] == ["cifar10"]


def test_stock_tfds_reads_it(root, cifar):
    main(["cifar10"])
    images, labels = cifar[1]
    by_name = tfds.builder("cifar10", data_dir=root)
    for builder in (by_name, tfds.builder_from_directory(by_name.data_path)):
        assert builder.info.splits["test"].num_examples == 30
        assert builder.info.features["label"].names[3] == "cat"
        source = builder.as_data_source("test")
        for example, index in zip(source, stock_order("test", 30), strict=True):
            assert example["id"].decode() == f"test_{index:05d}"
            assert example["label"] == labels[index]
            np.testing.assert_array_equal(example["image"], images[index])


@pytest.mark.parametrize(("name", "last"), [("fashion_mnist", "Ankle boot"), ("mnist", "9")])
def test_mnist_and_fashion_mnist(root, tmp_path, monkeypatch, name, last):
    contents, splits = {}, {}
    for split, prefix, num in (("train", "train", 30), ("test", "t10k", 20)):
        images, labels = splits[split] = noise(num, 28, 28, 1)
        header = np.array([0x803, num, 28, 28], ">i4").tobytes()
        contents[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes())
        header = np.array([0x801, num], ">i4").tobytes()
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(header + labels.tobytes())
    assert list(contents) == list(PUBLISHED[name].md5)
    publish(monkeypatch, name, tmp_path / "published", contents)
    main([name])
    for split, arrays in splits.items():
        assert_same(load_dataset(name, split), *arrays)
    names = tfds.builder(name, data_dir=root).info.features["label"].names
    assert names[9] == last


def test_cifar100(root, tmp_path, monkeypatch):
    """A record begins with the coarse label; the label is the fine one."""
    images, coarse = noise(60, 32, 32, 3)
    fine = np.random.default_rng(1).integers(0, 100, 60, np.uint8)
    rows = np.c_[coarse, fine, images.transpose(0, 3, 1, 2).reshape(60, -1)]
    names = {"fine": [f"f{i}" for i in range(100)], "coarse": [f"c{i}" for i in range(20)]}
    contents = {"train.bin": rows[:40].tobytes(), "test.bin": rows[40:].tobytes()} | {
        f"{kind}_label_names.txt": "\n".join([*lines, ""]).encode() for kind, lines in names.items()
    }
    archive = tar_of({f"cifar-100-binary/{file}": c for file, c in contents.items()})
    publish(monkeypatch, "cifar100", tmp_path / "published", {"cifar-100-binary.tar.gz": archive})
    main(["cifar100"])
    assert_same(load_dataset("cifar100", "train"), images[:40], fine[:40])
    assert_same(load_dataset("cifar100", "test"), images[40:], fine[40:])
    builder = tfds.builder("cifar100", data_dir=root)
    assert builder.info.features["label"].names == names["fine"]
    order = stock_order("test", 20)
    examples = list(builder.as_data_source("test"))
    assert [example["coarse_label"] for example in examples] == coarse[40:][order].tolist()


def test_svhn(root, tmp_path, monkeypatch):
    images, labels = noise(50, 32, 32, 3)
    contents = {}
    for split, part in (("train", slice(30)), ("test", slice(30, 50))):
        file = io.BytesIO()
        y = np.where(labels[part] == 0, 10, labels[part])[:, None]  # as MATLAB counts
        scipy.io.savemat(file, {"X": images[part].transpose(1, 2, 3, 0), "y": y})
        contents[f"{split}_32x32.mat"] = file.getvalue()
    assert list(contents) == list(PUBLISHED["svhn"].md5)
    assert PUBLISHED["svhn"].features["image"].shape == (32, 32, 3)
    publish(monkeypatch, "svhn", tmp_path / "published", contents)
    main(["svhn"])
    assert (labels == 0).any()
    assert_same(load_dataset("svhn", "train"), images[:30], labels[:30])
    assert_same(load_dataset("svhn", "test"), images[30:], labels[30:])
    assert load_dataset("svhn", "test").num_labels == 10


def fails(capsys, *argv):
    """The one line that the command prints as it fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(argv)
    return str(error.value.code)  # what is not a number, sys.exit prints and makes it a 1


def test_other_archive(root, cifar, tmp_path, capsys):
    path = tmp_path / "published" / CIFAR
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    for argv in (["cifar10"], ["cifar10", f"--archive={path}"]):
        message = fails(capsys, *argv)
        assert CIFAR in message
        assert f"truncated or not the published file: its {len(content) - 100:,} bytes" in message
        assert hashlib.md5(content).hexdigest() in message
        assert list(root.iterdir()) == []


def test_archive_out_of_reach(root, cifar, tmp_path, capsys):
    path = tmp_path / "published" / CIFAR
    path.unlink()
    message = fails(capsys, "cifar10")
    assert f"cannot download {path.as_uri()}" in message
    assert "No such file" in message
    assert "--archive=PATH" in message
    for archive in (path, path.parent):
        assert f"there is no file {path}" in fails(capsys, "cifar10", f"--archive={archive}")
    assert list(root.iterdir()) == []


def test_nothing_is_left_of_a_failure_while_writing(root, cifar, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pdistill.data.prepare.png", full)
    assert "No space left on device" in fails(capsys, "cifar10")
    assert list(root.iterdir()) == []


def test_nothing_is_overwritten(root, cifar, capsys):
    def found():  # the access times of folders change as they are looked at
        stats = {path: path.stat() for path in root.rglob("*")}
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}

    main(["cifar10"])
    before = found()
    assert f"{root / 'cifar10/3.0.2'} is there already" in fails(capsys, "cifar10")
    assert found() == before


@functools.cache
def real_cifar_test():
    """The 10,000 test images in the order of the stock copy, their labels and their numbers."""
    data_dir = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[3] / "shared/tfds"))
    if not (folder := data_dir / "cifar10/3.0.2").is_dir():
        pytest.skip(f"no CIFAR-10 in {data_dir}; set TFDS_DATA_DIR to a folder that has it")
    source = tfds.builder_from_directory(folder).as_data_source("test")
    examples = source.__getitems__(range(len(source)))
    numbers = np.array([int(example["id"].decode().removeprefix("test_")) for example in examples])
    labels = np.array([example["label"] for example in examples], np.uint8)
    return np.stack([example["image"] for example in examples]), labels, numbers


def test_records_are_those_of_the_published_file():
    """Its MD5 comes out when the published test_batch.bin is made of the stock TFDS copy."""
    images, labels, numbers = real_cifar_test()
    order = np.argsort(numbers)
    content = records(images[order], labels[order])
    assert hashlib.md5(content).hexdigest() == "803d5f7f4d78ea53de84dbe85f74fb6d"


def test_prepared_cifar10_is_the_stock_copy(tmp_path, monkeypatch):
    """Of the first 1,000 images: the same pixels and labels, and the order among them too."""
    images, labels, numbers = real_cifar_test()
    order = np.argsort(numbers)[:1000]
    first = images[order], labels[order]
    publish_cifar(monkeypatch, tmp_path / "published", [array[:10] for array in first], first)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    main(["cifar10"])
    ours = load_dataset("cifar10", "test")
    np.testing.assert_array_equal(ours.images, images[numbers < 1000])
    np.testing.assert_array_equal(ours.labels, labels[numbers < 1000])


# --- Folders of images --------------------------------------------------------------------------


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def blocks(pixels, factor):
    """The means of factor x factor pixels."""
    height, width, channels = pixels.shape
    shape = (height // factor, factor, width // factor, factor, channels)
    return pixels.reshape(shape).mean(axis=(1, 3))


@pytest.mark.parametrize("factor", [2, 4, 8])  # whose means, and their ties, are exact in float32
@pytest.mark.parametrize("margins", [(0, 6), (5, 0)], ids=["wide", "high"])
def test_area_is_the_mean_of_blocks_of_the_central_square(factor, margins):
    pixels = noise(1, 8 * factor + margins[0], 8 * factor + margins[1], 3)[0][0]
    top, left = (margin // 2 for margin in margins)
    square = pixels[top:, left:][: 8 * factor, : 8 * factor]
    ours = resize_square(Image.fromarray(pixels), 8, "area")
    np.testing.assert_array_equal(ours, np.rint(blocks(square, factor)))


@pytest.mark.parametrize(("size", "resolution"), [(50, 32), (75, 64), (21, 6), (5, 8)])
def test_area_shares_a_pixel_among_cells_that_cut_it(size, resolution):
    """With each pixel repeated often enough, cells do not cut pixels."""
    pixels = noise(1, size, size, 3)[0][0]
    repeated = pixels.repeat(resolution, axis=0).repeat(resolution, axis=1)
    desired = blocks(repeated, size)
    ours = resize_square(Image.fromarray(pixels), resolution, "area")
    np.testing.assert_allclose(ours, desired, rtol=0, atol=0.5001)  # rounded, to the nearest


@pytest.mark.parametrize(("size", "resolution"), [(256, 128), (75, 32), (20, 32)])
def test_bilinear_is_antialiased_as_in_pil(size, resolution):
    image = Image.fromarray(noise(1, size, size, 3)[0][0])
    desired = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    ours = resize_square(image, resolution, "bilinear").astype(int)
    np.testing.assert_allclose(ours, np.asarray(desired), rtol=0, atol=1)  # PIL rounds twice


def test_folders_are_classes_and_splits(root, tmp_path):
    folder = tmp_path / "photos"
    images = noise(12, 8, 8, 3)[0]
    for index, pixels in enumerate(images):
        split, label = ("train", "val")[index % 2], ("dog", "cat", "emu")[index % 3]
        save(folder / split / label / f"deeper/{index}.PNG", pixels)
    (folder / "train/emu/readme.txt").write_text("not an image")
    main([f"--images={folder}", "--name=photos", "--resolution=4"])
    for split, kept in (("train", slice(0, None, 2)), ("validation", slice(1, None, 2))):
        dataset = load_dataset("photos", split)
        assert dataset.num_labels == 3
        assert dataset.labels.dtype == np.int32
        desired = [
            (*np.rint(blocks(pixels, 2)).ravel(), (1, 0, 2)[index % 3])
            for index, pixels in list(enumerate(images))[kept]
        ]
        rows = np.c_[dataset.images.reshape(6, -1), dataset.labels]
        np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(desired, axis=0))
    features = tfds.builder("photos", data_dir=root).info.features  # stock, and without any code
    assert features["label"].names == ["cat", "dog", "emu"]


def test_flat_folder_has_no_labels(root, tmp_path):
    grey = noise(1, 4, 4)[0][0]
    save(tmp_path / "flat/one.png", grey)
    main([f"--images={tmp_path / 'flat'}", "--name=flat", "--resolution=4"])
    dataset = load_dataset("flat")
    np.testing.assert_array_equal(dataset.images, grey[None, ..., None])
    assert (dataset.labels.tolist(), dataset.num_labels) == ([0], 1)


@pytest.mark.parametrize(
    ("sizes", "resolution"),
    [
        ([(28, 28)] * 3, 28),
        ([(30, 50), (19, 12), (33, 31)], 28),  # shorter sides 30, 12 and 31
        ([(200, 300)], 64),
        ([(3, 5)], 8),
    ],
)
def test_images_keep_about_their_size(root, tmp_path, capsys, sizes, resolution):
    for index, size in enumerate(sizes):
        save(tmp_path / f"images/{index}.png", noise(1, *size)[0][0])
    main([f"--images={tmp_path / 'images'}", "--name=images", "--held_out=0"])
    assert load_dataset("images").images.shape[1:3] == (resolution, resolution)
    assert f"resolution: {resolution}x{resolution} pixels" in capsys.readouterr().err


@pytest.fixture
def encoded(monkeypatch):
    """Sets that --codec encodes, an f8 one of colours here, by their image's shape."""
    codec = Codec(None, AutoencoderTiny(), (0.0,) * 4, (1.0,) * 4)
    shapes = []

    def in_latents(data, *_, **__):
        shapes.append(codec.latent_shape(data.image_shape))

    monkeypatch.setattr(command, "blank_codec", lambda _: codec)
    monkeypatch.setattr(command, "in_latents", in_latents)
    return shapes


@pytest.mark.parametrize(("side", "resolution"), [(28, 24), (7, 8), (200, 64)])
def test_a_codec_fits_the_resolution_that_is_not_given(root, tmp_path, encoded, side, resolution):
    """It is what the codec halves three times, and not 28."""
    for index in range(2):
        save(tmp_path / f"images/{index}.png", noise(1, side, side, 3)[0][0])
    main([f"--images={tmp_path / 'images'}", "--name=images", "--held_out=0", "--codec=f8"])
    assert load_dataset("images").images.shape[1:3] == (resolution, resolution)
    assert encoded == [(resolution // 8, resolution // 8, 4)]


def test_a_published_set_that_no_codec_fits_is_not_fetched(root, encoded, capsys):
    assert "takes images of 3 channels" in fails(capsys, "mnist", "--codec=f8")
    assert not root.exists()
    with pytest.raises(SystemExit, match="no-such-archive"):
        main(["svhn", "--codec=f8", "--archive=no-such-archive"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10", "--resolution=8"], "--resolution is for --images or --emoji, not for a publi"),
        (["cifar10", "--resize=bilinear"], "--resize is for --images or --emoji"),
        (["cifar10", "--held_out=3"], "--held_out is for --images, not for a published set"),
        (["cifar10", "--name=mine"], "--name is for --images or --emoji"),
        (["--emoji=e", "--channels=1"], "--channels is for --images, not for --emoji; leave it"),
        (["--emoji=e", "--captions=none"], "--captions is for --images"),
        (["--emoji=e", "--no_labels"], "--no_labels is for --images"),
        (
            ["--images=i", "--name=a", "--archive=b"],
            "--archive is for a published set, not for --i",
        ),
        (["--images=i", "--name=a", "--emoji_groups=b"], "--emoji_groups is for --emoji"),
        (
            ["--name=a", "--codec=c", "--background=red"],
            "--background is for --images, not for a s",
        ),
        (["cifar10", "--no_flip"], "--no_flip needs --codec"),
        (["cifar10", "--codec=c", "--text_tokens"], "--text_tokens needs --text_encoder"),
        (["cifar10", "--split=test"], "--split needs --codec or --text_encoder"),
    ],
)
def test_options_that_nothing_takes(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_folders_that_are_not_classes(root, tmp_path):
    for index, pixels in enumerate(noise(4, 4, 4, 3)[0]):
        save(tmp_path / f"faces/{index % 2:05d}/{index}.png", pixels)
    main([f"--images={tmp_path / 'faces'}", "--name=faces", "--resolution=4", "--no_labels"])
    assert load_dataset("faces").num_labels == 1
    assert len(load_dataset("faces")) == 4
    assert load_reference("faces:train").labels is None  # not zeros


def test_unreadable_images_are_left_out_and_counted(root, tmp_path, capsys, bars):
    folder = tmp_path / "damaged"
    for index, pixels in enumerate(noise(5, 32, 32, 3)[0]):
        save(folder / f"{index}.png", pixels)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:1000])
    (folder / "3.png").write_text("<html>404</html>")
    main([f"--images={folder}", "--name=damaged", "--resolution=4"])
    assert bars == ["damaged:train"]  # which leaves the lines of others whole
    assert len(load_dataset("damaged")) == 3
    errors = capsys.readouterr().err
    assert f"\nleft out {folder / '1.png'}" in errors
    assert f"\nleft out {folder / '3.png'}" in errors
    assert "train: 2 of 5 images cannot be read" in errors


def test_folders_that_cannot_be_prepared(root, tmp_path, capsys):
    arguments = [f"--images={tmp_path / 'folder'}", "--resolution=4"]
    assert f"there is no folder {tmp_path}/folder; give" in fails(capsys, *arguments, "--name=new")
    (tmp_path / "folder").mkdir()
    assert "there are no images in" in fails(capsys, *arguments, "--name=new")
    save(tmp_path / "folder/a/1.png", noise(1, 4, 4, 3)[0][0])
    assert "'cifar10' is taken" in fails(capsys, *arguments, "--name=cifar10")
    save(tmp_path / "folder/1.png", noise(1, 4, 4, 3)[0][0])
    assert "--no_labels" in fails(capsys, *arguments, "--name=new")
    for path in (tmp_path / "folder").rglob("*.png"):
        path.write_text("")
    message = fails(capsys, *arguments, "--name=new", "--no_labels")
    assert "none of the 2 images of train can be read" in message
    assert not root.exists() or list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "either one of cifar10, cifar100, fashion_mnist, mnist, svhn or --images"),
        (["cifar10", "--images=."], "either one of"),
        (["--images=.", "--name=new", "--resolution=0"], "--resolution must be from 1 to 4096"),
        (["--emoji=.", "--resolution=100000"], "--resolution must be from 1 to 4096; got 100000"),
        (["--images=."], "--name=NAME"),
    ],
)
def test_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# --- Reading what others prepared ---------------------------------------------------------------


def write(root, image, examples, version="1.0.0"):
    """Writes a data set "others" with the feature `image`, by TFDS alone."""
    folder = root / "others" / version
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity("others", tfds.core.Version(version), str(folder), "")
    features = tfds.features.FeaturesDict({"image": image})
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [{"image": example} for example in examples]})
    writer.close_all()


def test_newest_version_is_read(root):
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        pixels = np.full((4, 4, 3), int(version.split(".")[1]), np.uint8)
        write(root, tfds.features.Image(shape=(4, 4, 3)), [Image.fromarray(pixels)], version)
    assert (load_dataset("others").images == 10).all()


def test_blocks_and_greys_without_a_channel(root):
    images = noise(1500, 2, 3)[0]  # more than are read at a time
    write(root, tfds.features.Tensor(shape=(2, 3), dtype=np.uint8), images)
    np.testing.assert_array_equal(load_dataset("others").images, images[..., None])
    np.testing.assert_array_equal(
        load_dataset("others", "train[10:20]").images[..., 0], images[10:20]
    )


def test_images_of_several_sizes(root):
    images = [Image.fromarray(np.zeros((4, width, 3), np.uint8)) for width in (4, 5)]
    write(root, tfds.features.Image(), images)
    with pytest.raises(ValueError, match=r"image 1 .*\(4, 5, 3\).*\(4, 4, 3\).*prepare --images"):
        load_dataset("others")


def test_images_that_are_not_uint8(root):
    write(
        root,
        tfds.features.Tensor(shape=(2, 3, 1), dtype=np.float32),
        [np.ones((2, 3, 1), np.float32)],
    )
    with pytest.raises(ValueError, match=r"float32.*must be uint8"):
        load_dataset("others")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cifar10", "python -m pdistill.data.prepare cifar10"),
        ("fashion_mnist", "python -m pdistill.data.prepare fashion_mnist"),
        ("kmnist", "tfds build kmnist --file_format=array_record"),
        ("kmnist", "python -m pdistill.data.prepare --images=FOLDER --name=NAME"),
    ],
)
def test_missing_data_set_says_what_to_run(root, name, command):
    with pytest.raises(FileNotFoundError, match="TFDS_DATA_DIR") as error:
        load_dataset(name)
    assert f"`{command}" in str(error.value)
