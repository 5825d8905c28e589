"""Data sets published as archives: their addresses and formats, and fetching them."""

import dataclasses
import gzip
import hashlib
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from pdistill.data.tfds_writer import PrepareError
from pdistill.runtime.download import download

CIFAR10 = ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"])
CIFAR100 = (["train.bin"], ["test.bin"])


class Contents(NamedTuple):
    """The arrays and names that archives hold.

    Attributes:
      splits: {split: {feature: array [N, ...]}}; "image" is uint8 [N, H, W, C], "label" uint8 [N].
      names: {feature: names of its labels}, where archives have them.
    """

    splits: Mapping[str, Mapping[str, np.ndarray]]
    names: Mapping[str, Sequence[str]] = {}


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set that its authors publish as archives.

    Attributes:
      address: URL of the folder with the archives.
      md5: MD5 of each archive, by its file name.
      read: (path of each archive, in that order) -> contents.
      features: description of an example, if TFDS has none.
    """

    address: str
    md5: Mapping[str, str]
    read: Callable[..., Contents]
    features: Mapping[str, Any] | None = None


def _read_cifar10(archive: Path) -> Contents:
    return _read_cifar(archive, "cifar-10-batches-bin", CIFAR10, {"label": "batches.meta.txt"})


def _read_cifar100(archive: Path) -> Contents:
    names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return _read_cifar(archive, "cifar-100-binary", CIFAR100, names)


def _read_cifar(
    archive: Path, folder: str, files: Sequence[Sequence[str]], names: Mapping[str, str]
) -> Contents:
    """Reads the binary version, whose records are labels and 32x32 red, green, blue.

    Args:
      folder: the one in the archive. files: names of those of train, and of test.
      names: {label: file with its names}, in the order that labels have in a record.
    """
    splits, num = {}, len(names)
    with tarfile.open(archive) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    for split, parts in zip(("train", "test"), files, strict=True):
        records = np.frombuffer(b"".join(content[f"{folder}/{part}"] for part in parts), np.uint8)
        records = records.reshape(-1, num + 3072)
        images = records[:, num:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = {"image": images} | dict(zip(names, records.T[:num], strict=True))
    lines = {label: content[f"{folder}/{file}"].decode().split() for label, file in names.items()}
    return Contents(splits, lines)


def _read_idx(*archives: Path) -> Contents:
    """Reads images and labels of train, then of test, after headers with big-endian sizes."""
    x, y, x_test, y_test = (gzip.decompress(path.read_bytes()) for path in archives)

    def arrays(images: bytes, labels: bytes) -> dict[str, np.ndarray]:
        shape = (*np.frombuffer(images, ">i4", count=3, offset=4), 1)
        pixels = np.frombuffer(images, np.uint8, offset=16)
        return {"image": pixels.reshape(shape), "label": np.frombuffer(labels, np.uint8, offset=8)}

    return Contents({"train": arrays(x, y), "test": arrays(x_test, y_test)})


def _read_svhn(*archives: Path) -> Contents:
    """Reads MATLAB's X [32, 32, 3, N] and y [N, 1] of train, then of test; its 10 is digit 0."""
    splits = {}
    for split, path in zip(("train", "test"), archives, strict=True):
        arrays = scipy.io.loadmat(path)
        splits[split] = {"image": np.moveaxis(arrays["X"], 3, 0), "label": arrays["y"][:, 0] % 10}
    return Contents(splits)


PUBLISHED = {
    "cifar10": Published(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        _read_cifar10,
    ),
    "cifar100": Published(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
        _read_cifar100,
    ),
    "fashion_mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        _read_idx,
    ),
    "mnist": Published(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        _read_idx,
    ),
    "svhn": Published(  # TFDS's svhn_cropped without its split "extra"
        "http://ufldl.stanford.edu/housenumbers/",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        _read_svhn,
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        },
    ),
}


def image_shape(name: str) -> tuple[int, ...]:
    """The shape [H, W, C] of a published data set's images, which need not be there."""
    features = PUBLISHED[name].features or tfds.builder(name).info.features
    return features["image"].shape


def fetch(source: Published, scratch: Path, archive: Path | None = None) -> list[Path]:
    """Gets and verifies the archives of `source`, from `archive` or downloaded into `scratch`.

    Raises:
      PrepareError: an archive is out of reach or not the published one.
    """
    paths = [
        _local(file, source, archive) if archive else _download(file, source, scratch)
        for file in source.md5
    ]
    for path, md5 in zip(paths, source.md5.values(), strict=True):
        _verify(path, md5)
    return paths


def _local(file: str, source: Published, archive: Path) -> Path:
    """Finds the published `file` in the folder `archive`; a lone file may be `archive` itself."""
    path = archive if len(source.md5) == 1 and not archive.is_dir() else archive / file
    if not path.is_file():
        raise PrepareError(f"there is no file {path}; --archive must lead to {list(source.md5)}")
    return path


def _download(file: str, source: Published, folder: Path) -> Path:
    """Fetches the published `file` into `folder`."""
    url, path = source.address + file, folder / file
    try:
        download(url, path)
    except OSError as error:
        raise PrepareError(
            f"cannot download {url}: {error}; a copy made elsewhere can be given as --archive=PATH"
        ) from error
    return path


def _verify(path: Path, md5: str) -> None:
    """Raises PrepareError unless the file is, byte for byte, the published one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise PrepareError(
            f"{path.name} is truncated or not the published file: its {path.stat().st_size:,} "
            f"bytes have the MD5 {found}, not {md5}; get it again"
        )
