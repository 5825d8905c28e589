"""Data sets published as archives: their addresses and formats, and fetching them."""

import dataclasses
import gzip
import hashlib
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pdistill.data.tfds_writer import PrepareError
from pdistill.runtime.download import download

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C], labels uint8 [N]


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set that its authors publish as archives, and TFDS describes.

    Attributes:
      address: URL of the folder with the archives.
      md5: MD5 of each archive, by its file name.
      read: (path of each archive, in that order) -> {split: arrays}.
      label_names: names of the labels, if TFDS has none.
    """

    address: str
    md5: Mapping[str, str]
    read: Callable[..., dict[str, Arrays]]
    label_names: Sequence[str] = ()


def _read_cifar(archive: Path) -> dict[str, Arrays]:
    """Reads the binary version, whose records are a label and 32x32 red, green, blue."""
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    splits = {}
    with tarfile.open(archive) as tar:
        for split, names in files.items():
            members = [tar.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
            records = np.frombuffer(b"".join(member.read() for member in members), np.uint8)
            records = records.reshape(-1, 3073)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits[split] = (images, records[:, 0])
    return splits


def _read_idx(*archives: Path) -> dict[str, Arrays]:
    """Reads images and labels of train, then of test, after headers with big-endian sizes."""
    x, y, x_test, y_test = (gzip.decompress(path.read_bytes()) for path in archives)

    def arrays(images: bytes, labels: bytes) -> Arrays:
        shape = (*np.frombuffer(images, ">i4", count=3, offset=4), 1)
        pixels = np.frombuffer(images, np.uint8, offset=16)
        return pixels.reshape(shape), np.frombuffer(labels, np.uint8, offset=8)

    return {"train": arrays(x, y), "test": arrays(x_test, y_test)}


PUBLISHED = {
    "cifar10": Published(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        _read_cifar,
        [
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ],
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
}


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
