"""Puts data sets on disk as TensorFlow Datasets would, without TensorFlow.

    python -m pdistill.data.prepare cifar10 [--archive=PATH] [--data_dir=DIR]
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.data.prepare --images=FOLDER --name=NAME --resolution=64 [--resize=bilinear]

What is written is a TFDS data set in array_record format: `load_dataset` and stock TFDS read it.
"""

import argparse
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.client
import io
import math
import os
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from scipy import sparse
from tqdm import tqdm

from pdistill.data.sources import data_dir

BLOCK = 256  # examples in memory at a time
SHARD_BYTES = 2**25  # of pixels; as PNG they take less
MAX_SHARDS = 512  # of a split; readers keep all of them open
SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
KERNELS = {  # the weight of a pixel at `distance` from the centre of a cell `scale` pixels wide
    "area": lambda distance, scale: np.clip((scale + 1) / 2 - distance, 0, min(scale, 1)),
    "bilinear": lambda distance, scale: np.clip(1 - distance / max(scale, 1), 0, None),
}

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C], labels uint8 [N]


class PrepareError(RuntimeError):
    """A message for the person at the command line: which file or address, and what is wrong."""


# --- Published archives -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set that its authors publish as archives, and TFDS describes.

    Attributes:
      address: of the folder with the archives. md5: of each archive, by its file name.
      read: from their paths, in that order, to the splits. label_names: where TFDS has none.
    """

    address: str
    md5: Mapping[str, str]
    read: Callable[..., dict[str, Arrays]]
    label_names: Sequence[str] = ()


def _read_cifar(archive: Path) -> dict[str, Arrays]:
    """A record of the binary version is a label and 32x32 red, green, blue: 3,073 bytes."""
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
    """Images and labels of train, then of test: bytes after a header with big-endian sizes."""
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


def prepare(name: str, root: Path, archive: Path | None = None) -> Path:
    """Prepares `name`, one of PUBLISHED, in the folder `root`; returns where.

    Args:
      archive: the archive, or a folder that holds the archives, instead of downloading.

    Raises:
      PrepareError: it is there already, or an archive is out of reach or not the published one.
    """
    source = PUBLISHED[name]

    def make(split: str, index: int) -> dict[str, Any]:
        images, labels = splits[split]
        example = {"image": _png(images[index]), "label": int(labels[index])}
        return example | ({"id": f"{split}_{index:05d}"} if "id" in info.features else {})

    with _new_folder(root, name, str(tfds.builder_cls(name).VERSION)) as scratch:
        paths = [
            _local(file, source, archive) if archive else _download(file, source, scratch)
            for file in source.md5
        ]
        for path, md5 in zip(paths, source.md5.values(), strict=True):
            _verify(path, md5)
        info = tfds.builder(name, data_dir=scratch, file_format="array_record").info
        if source.label_names:
            info.features["label"].names = source.label_names
        splits = source.read(*paths)
        _write(info, {split: range(len(labels)) for split, (_, labels) in splits.items()}, make)
    return root / info.full_name


def _local(file: str, source: Published, archive: Path) -> Path:
    """The published `file` in the folder `archive`; a lone file may be `archive` itself."""
    path = archive if len(source.md5) == 1 and not archive.is_dir() else archive / file
    if not path.is_file():
        raise PrepareError(f"there is no file {path}; --archive must lead to {list(source.md5)}")
    return path


def _download(file: str, source: Published, folder: Path) -> Path:
    """Fetches the published `file` into `folder`."""
    url, path = source.address + file, folder / file
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as output:
            size = int(response.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(response, "read", size, desc=file) as reader:
                shutil.copyfileobj(reader, output, 2**20)
    except (OSError, http.client.HTTPException) as error:
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
            f"bytes have the MD5 {found}, not {md5}"
        )


# --- Folders of images --------------------------------------------------------------------------


def prepare_images(
    folder: Path,
    root: Path,
    name: str,
    resolution: int,
    resize: str = "area",
    labelled: bool = True,
) -> Path:
    """Prepares the images in `folder` as the data set `name` in the folder `root`; returns where.

    The splits are the sub-folders train, test and val ("validation" in TFDS), or else there is
    just "train". An image's label is the place of its first folder in there among all of them,
    sorted. Images become RGB and square; those that cannot be read are reported and left out.

    Args:
      resolution, resize: as in `resize_square`. labelled: whether folders are classes.

    Raises:
      PrepareError: a bad name, one that is there already, no images, or some outside classes.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in ("digits", *PUBLISHED):
        raise PrepareError(f"the name {name!r} is taken or not made of a-z, 0-9 and _")
    tops, files = _find_images(folder)
    classes = {_class_of(path) for paths in files.values() for path in paths} if labelled else {""}
    if "" in classes and len(classes) > 1:
        raise PrepareError(f"{folder} has images both in and beside class folders; --no_labels?")
    numbers = {name: number for number, name in enumerate(sorted(classes - {""}))}
    features = {"image": tfds.features.Image(shape=(resolution, resolution, 3))}
    if numbers:
        features["label"] = tfds.features.ClassLabel(names=numbers)

    def make(split: str, path: str) -> dict[str, Any] | None:
        try:
            image = Image.open(tops[split] / path).convert("RGB")
        except Exception as error:  # PIL has no common one for damaged files
            tqdm.write(f"left out {tops[split] / path}: {error}", file=sys.stderr)
            return None
        example = {"image": _png(resize_square(image, resolution, resize))}
        return example | ({"label": numbers[_class_of(path)]} if numbers else {})

    with _new_folder(root, name, "1.0.0") as scratch:
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name, tfds.core.Version("1.0.0"), str(scratch / name / "1.0.0"), __name__
            ),
            description=f"{folder}: central squares, {resize} to {resolution}x{resolution}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if numbers else None,
        )
        _write(info, files, make)
    return root / info.full_name


def _find_images(folder: Path) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """{split: its folder}, and {split: relative paths of the images in there}."""
    subfolders = {path.name for path in folder.glob("*/")}
    if "train" in subfolders and subfolders <= set(SPLITS):
        tops = {SPLITS[name]: folder / name for name in sorted(subfolders)}
    else:
        tops = {"train": folder}
    files = {}
    for split, top in tops.items():
        files[split] = [
            os.path.relpath(os.path.join(where, file), top)
            for where, _, names in os.walk(top, followlinks=True)
            for file in names
            if file.lower().endswith(SUFFIXES)
        ]
        if not files[split]:
            raise PrepareError(f"there are no images in {top}, no {', '.join(SUFFIXES)}")
    return tops, files


def _class_of(path: str) -> str:
    """The first folder of a relative path; "" if there is none."""
    return os.path.dirname(path).split("/")[0]


def resize_square(image: Image.Image, resolution: int, resize: str) -> np.ndarray:
    """The central square of an RGB image, uint8 [resolution, resolution, 3].

    Args:
      resize: "area", exact averages over cells (ImageNet in Salimans & Ho 2022), or "bilinear",
        antialiased (LSUN there). Both round once, at the end, to the nearest level.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    weights = _resize_weights(side, resolution, resize)
    for _ in range(2):  # rows, then columns
        pixels = (weights @ pixels.reshape(side, -1)).reshape(resolution, -1, 3).swapaxes(0, 1)
    return np.rint(pixels).astype(np.uint8)


@functools.lru_cache(maxsize=1024)
def _resize_weights(size: int, resolution: int, resize: str) -> sparse.csr_array:
    """What each pixel of a line counts in each cell, float32 [resolution, size]; rows sum to 1.

    PIL's BOX gives a pixel wholly to one cell: up to 20 levels off where cells cut pixels.
    """
    scale = size / resolution
    centers = (np.arange(resolution)[:, None] + 0.5) * scale
    weights = KERNELS[resize](np.abs(np.arange(size) + 0.5 - centers), scale)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


# --- Writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(root: Path, name: str, version: str) -> Iterator[Path]:
    """A temporary folder; its name/version moves into `root` at the end, unless there is an error.

    Either way the rest of it is deleted.
    """
    final = root / name / version
    if final.exists():
        raise PrepareError(f"{final} is there already; delete it, or choose another --data_dir")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"incomplete.{name}.", dir=root) as scratch:
        yield Path(scratch)
        final.parent.mkdir(exist_ok=True)
        (Path(scratch) / name / version).rename(final)


def _png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 1 or 3]; for arrays TFDS would call TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()


def _write(
    info: tfds.core.DatasetInfo,
    splits: Mapping[str, Sequence[Any]],
    make: Callable[[str, Any], dict[str, Any] | None],
) -> None:
    """Writes a data set, records and description, into `info.data_dir`.

    The records stand in TFDS's own order, that of the MD5 of split and key. So "train[:1000]" is
    of all classes, and the same as in a stock copy.

    Args:
      splits: {split: keys}. make: (split, key) to the example, or to None to leave it out; called
        from threads.
    """
    Path(info.data_dir).mkdir(parents=True)
    most = max(len(keys) for keys in splits.values())
    per_shard = max(SHARD_BYTES // math.prod(info.features["image"].shape), most // MAX_SHARDS + 1)
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    with ThreadPoolExecutor() as pool:
        for split, keys in splits.items():
            order = sorted(keys, key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())
            desc = f"{info.name}:{split}"
            with tqdm(desc=desc, total=len(order), unit=" images", mininterval=1) as bar:
                for start in range(0, len(order), BLOCK):
                    block = order[start : start + BLOCK]
                    examples = pool.map(functools.partial(make, split), block)
                    writer.add_examples({split: [e for e in examples if e is not None]})
                    bar.update(len(block))
    writer.close_all()
    for split, keys in splits.items():
        lost = len(keys) - info.splits[split].num_examples
        if lost:
            print(f"{split}: {lost} of {len(keys)} images cannot be read", file=sys.stderr)
        if lost == len(keys):
            raise PrepareError(f"none of the {lost} images of {split} can be read")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pdistill.data.prepare",
        description="Prepares a published data set, or a folder of images, for load_dataset.",
    )
    add = parser.add_argument
    add("published", nargs="?", choices=PUBLISHED, help="a data set to download")
    add("--archive", type=Path, help="a copy of it, file or folder, to use instead")
    add("--images", type=Path, help="a folder of images; sub-folders are classes")
    add("--name", help="what to call them")
    add("--resolution", type=int, help="pixels a side")
    add("--resize", choices=KERNELS, default="area", help="default: %(default)s")
    add("--no_labels", action="store_true", help="sub-folders are not classes")
    add("--data_dir", type=Path, default=data_dir(), help="default: %(default)s")
    args = parser.parse_args(argv)
    if bool(args.published) == bool(args.images):
        parser.error(f"give either one of {', '.join(PUBLISHED)} or --images=FOLDER")
    if args.images and not (args.name and args.resolution and args.resolution > 0):
        parser.error("--images needs --name=NAME and --resolution=N")
    root = args.data_dir.expanduser()
    try:
        if args.published:
            folder = prepare(args.published, root, args.archive)
        else:
            folder = prepare_images(
                args.images, root, args.name, args.resolution, args.resize, not args.no_labels
            )
    except (PrepareError, OSError) as error:
        sys.exit(f"error: {error}")
    setting = "" if root == data_dir() else f"with TFDS_DATA_DIR={root}, "
    print(f"{folder} is ready: {setting}load_dataset({folder.parent.name!r})")


if __name__ == "__main__":
    main()
