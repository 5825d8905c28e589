"""Image data sets as uint8 arrays, in memory or on disk."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pdistill.data.images import at_size, pixel_digest
from pdistill.data.records import Captions, Labels, Records
from pdistill.runtime.files import in_home

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

    from pdistill.data.array_records import ArrayRecords
    from pdistill.data.tars import Tars

DIGITS_TRAIN = 1437  # the first 80% of a fixed permutation; the other 360 are held out
PREPARE = "python -m pdistill.data.prepare"
PREPARE_IMAGES = f"{PREPARE} --images=FOLDER --name=NAME --resolution=64"


class ColumnRows(NamedTuple):
    """Rows of a column: arrays [N, ...] by name, and whether row i belongs to image i."""

    rows: Mapping[str, np.ndarray]
    aligned: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set, in host memory or on disk.

    Attributes:
      name: "digits:train" and the like; what `reference` is in results.jsonl.
      images: uint8 [N, H, W, C]. labels: int32 [N]. On disk, both are read when they are asked
        for, see `examples`.
      num_labels: labels are 0 .. num_labels - 1.
      columns: rows that networks have made of it, by name; see `data.columns`.
      label_names: name of each label; () where they have none.
      captions: texts of each image, the main one first, each as often as it is to be drawn; on
        disk, they are read when they are asked for. None for a data set without.
      labelled: whether it has labels; without, all of `labels` are 0.
      records: files of the images, also of those in memory; None where these have none.
    """

    name: str
    images: np.ndarray | Records
    labels: np.ndarray | Labels
    num_labels: int
    columns: Mapping[str, "ColumnRows"] = dataclasses.field(default_factory=dict)
    captions: Sequence[tuple[str, ...]] | None = None
    label_names: tuple[str, ...] = ()
    labelled: bool = True
    records: Records | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def digest(self) -> str:
        """A digest of the images, or of those on disk that they are made of; hexadecimal."""
        return pixel_digest(self.images) if self.records is None else self.records.digest

    def identity(self) -> dict[str, str]:
        """Tells its images from others by "content", the digest, and "files", `Records.files`.

        Images of files have the first only if it is known already: all would be read for it.
        """
        if self.records is None:
            return {"content": self.digest()}
        content = self.records.known_digest()
        return {"files": self.records.files} | ({"content": content} if content else {})

    def examples(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 [n, H, W, C], and labels, int32 [n], of some rows [n]."""
        if isinstance(self.images, Records):
            return self.images.examples(rows)
        return self.images[rows], self.labels[rows]

    def in_memory(self) -> "Dataset":
        """The data set with all of its images and labels in memory."""
        if not isinstance(self.images, Records):
            return self
        images, labels = self.images.everything()
        return dataclasses.replace(self, images=images, labels=labels)

    def with_column(self, name: str, rows: Mapping[str, np.ndarray], aligned: bool) -> "Dataset":
        """The data set with one more column; `aligned` if its row i belongs to image i."""
        columns = {**self.columns, name: ColumnRows(rows, aligned)}
        return dataclasses.replace(self, columns=columns)

    def of_labels(self, labels: Collection[int]) -> "Dataset":
        """The data set's images of these labels, with their captions and rows of the columns.

        A column whose rows have an order of their own keeps those whose "label" is among them.
        """
        apart = {
            name: ColumnRows(
                {leaf: a[np.isin(column.rows["label"], labels)] for leaf, a in column.rows.items()},
                aligned=False,
            )
            for name, column in self.columns.items()
            if not column.aligned
        }
        data = self.choose(np.flatnonzero(np.isin(self.labels, labels)))
        return dataclasses.replace(data, columns={**data.columns, **apart})

    def choose(self, rows: np.ndarray) -> "Dataset":
        """The images of some rows [n], with those of the columns that belong to images."""
        columns = {
            name: ColumnRows({leaf: a[rows] for leaf, a in column.rows.items()}, aligned=True)
            if column.aligned
            else column
            for name, column in self.columns.items()
        }
        in_memory = isinstance(self.images, np.ndarray)
        images = self.images[rows] if in_memory else self.images.choose(rows)
        captions = self.captions
        if captions is not None:
            on_disk = isinstance(captions, Captions)
            captions = captions.choose(rows) if on_disk else [captions[row] for row in rows]
        records = self.records and self.records.choose(rows)
        return dataclasses.replace(
            self, images=images, labels=self.labels[rows], columns=columns, captions=captions,
            records=records,
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of a data set in memory, by names: "image", "label" and `column_arrays`."""
        return {"image": self.images, "label": self.labels, **self.column_arrays()}

    def column_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the columns, by names: "<column>/<leaf>"."""
        return {
            f"{name}/{leaf}": array
            for name, column in self.columns.items()
            for leaf, array in column.rows.items()
        }

    def unaligned(self) -> dict[str, int]:
        """Names of the columns whose rows have an order of their own, and how many these are."""
        return {
            name: len(next(iter(column.rows.values())))
            for name, column in self.columns.items()
            if not column.aligned
        }

    def at(self, size: int) -> "Dataset":
        """The data set's images at `size` pixels a side, as `at_size`; "cifar10:train" is
        "cifar10@8:train".

        Raises:
          ValueError: they cannot be.
        """
        if self.image_shape[:2] == (size, size):
            return self
        name, _, split = self.name.partition(":")
        on_disk = isinstance(self.images, Records)
        images = self.images.at(size) if on_disk else at_size(self.images, size)
        return dataclasses.replace(self, name=f"{name}@{size}:{split}", images=images)

    def of_shape(self, shape: tuple[int, ...]) -> "Dataset":
        """The data set with images of this shape, [H, W, C]: its own, or as `at`."""
        return self if tuple(shape) == tuple(self.image_shape) else self.at(shape[0])


@dataclasses.dataclass(frozen=True)
class Description:
    """Contents of a data set, without its images.

    Attributes:
      name: as for `load_dataset`. splits: number of images of each, "train" among them.
      shape: an image's, (H, W, C). num_labels: labels are 0 .. num_labels - 1.
    """

    name: str
    splits: Mapping[str, int]
    shape: tuple[int, int, int]
    num_labels: int

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return self.splits["train"]

    @property
    def num_bytes(self) -> int:
        """Bytes of the training images in memory."""
        return self.num_images * math.prod(self.shape)


def describe(name: str) -> Description:
    """Describes a data set, of which it reads one image; arguments and errors of `load_dataset`."""
    base = name.partition("@")[0]
    if base == "digits":
        first = load_dataset(name)
        splits = {split: len(_digits(split)) for split in ("train", "test")}
    elif _is_folder(base):
        splits = _tars(base, "train").splits
        first = load_dataset(name, "train[:1]", in_memory=False)
    else:
        splits = {s: info.num_examples for s, info in _builder(base).info.splits.items()}
        if not splits.get("train"):
            raise ValueError(f"{base} has no split train; it has {', '.join(splits) or 'none'}")
        first = load_dataset(name, "train[:1]", in_memory=False)
    return Description(name, splits, first.image_shape, first.num_labels)


def load_dataset(name: str, split: str = "train", in_memory: bool = True) -> Dataset:
    """Opens a split of a data set.

    Args:
      name: "digits" (scikit-learn's 1,797 handwritten digits of 8x8 pixels, 16 grey levels
        stretched to 0..255), or any image data set that `python -m pdistill.data.prepare` or
        TensorFlow Datasets has put into `data_dir()` in array_record format, or the path of a
        folder of WebDataset's tars, see `tars.Tars`. "cifar10@16" has its images at 16 pixels a
        side, "fashion_mnist@32@8" first at 32: see `Dataset.at`.
      split: "train" or "test"; for TFDS anything it understands, such as "train[:10%]".
      in_memory: decode all of it at once; else rows are read when they are asked for.

    Raises:
      ValueError: an unknown data set or split, or one without uint8 images of one size.
      DataError: files are damaged; also later, if they are read then.
      FileNotFoundError: the data set is not on disk, or not in a format readable here.
    """
    name, *sizes = name.split("@")
    dataset = _digits(split) if name == "digits" else _on_disk(name, split)
    for size in sizes:
        if not size.isdigit():
            raise ValueError(f"after @ comes a size in pixels, such as {name}@32; got {size!r}")
        dataset = dataset.at(int(size))
    return dataset.in_memory() if in_memory else dataset


def data_dir() -> Path:
    """Folder of prepared data sets: TFDS_DATA_DIR as it is now, or ~/tensorflow_datasets.

    An empty variable is as good as none.
    """
    return in_home(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.images))
    rows = {"train": order[:DIGITS_TRAIN], "test": order[DIGITS_TRAIN:]}
    if split not in rows:
        raise ValueError(f"digits has the splits train and test; got {split!r}")
    images = np.round(bunch.images[rows[split]] * (255 / 16)).astype(np.uint8)
    labels = bunch.target[rows[split]].astype(np.int32)
    return Dataset(f"digits:{split}", images[..., None], labels, num_labels=10)


def _on_disk(name: str, split: str) -> Dataset:
    source = _tars(name, split) if _is_folder(name) else _array_records(name, split)
    images = Records(source)
    captions = Captions(images) if source.captioned else None
    return Dataset(
        source.name, images, Labels(images), source.num_labels,
        captions=captions, label_names=getattr(source, "label_names", ()), labelled=source.labelled,
        records=images,
    )  # fmt: skip


def absolute_name(name: str) -> str:
    """The name of a data set and split, in which the path of a folder of tars is absolute."""
    return os.path.abspath(in_home(name)) if _is_folder(name) else name


def beside(what: str, name: str) -> Path:
    """The folder in `data_dir` for what is made of a data set and split, such as "latents"."""
    return data_dir() / what / absolute_name(name).lstrip("/")


def _is_folder(name: str) -> bool:
    """Whether a data set is a folder of tars."""
    return name.startswith(("/", "./", "../", "~"))


def _tars(folder: str, split: str) -> "Tars":
    from pdistill.data.tars import Tars

    return Tars(folder, split)


def _array_records(name: str, split: str) -> "ArrayRecords":
    from pdistill.data.array_records import ArrayRecords

    builder = _builder(name)
    if "image" not in builder.info.features:
        raise ValueError(f"{name} has no 'image' feature; it has {list(builder.info.features)}")
    return ArrayRecords(builder, name, split, _how_to_prepare(name))


def _builder(name: str) -> "DatasetBuilder":
    """Opens the newest version in data_dir()/name, whoever prepared it."""
    import tensorflow_datasets as tfds

    if found := list((data_dir() / name).glob("[0-9]*/dataset_info.json")):
        newest = max((path.parent for path in found), key=lambda p: tfds.core.Version(p.name))
        builder = tfds.builder_from_directory(newest)
    elif (scratch := data_dir() / f"incomplete.{name}").exists():
        raise FileNotFoundError(
            f"{name} is half prepared: {scratch} is what prepare has written so far, or left when "
            f"it was killed; wait for it, or {_how_to_prepare(name)}"
        )
    else:
        try:
            builder = tfds.builder(name, data_dir=data_dir())
        except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
            raise ValueError(
                f"unknown data set {name!r}: neither digits, nor in {data_dir()}, nor one of "
                f"TensorFlow Datasets; `{PREPARE_IMAGES}` makes one of a folder of images"
            ) from error
    if not (builder.data_path / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_path}; {_how_to_prepare(name)}"
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise FileNotFoundError(
            f"{builder.data_path} is a {builder.info.file_format.name} copy, which needs "
            f"TensorFlow to read; move it away and {_how_to_prepare(name)}"
        )
    return builder


def _how_to_prepare(name: str) -> str:
    """Advice that puts an array_record copy of `name` on disk, for the end of an error message."""
    from pdistill.data.published import PUBLISHED

    if name in PUBLISHED:
        advice = f"run `{PREPARE} {name}`"
    else:
        advice = (
            f"run `tfds build {name} --file_format=array_record` where TensorFlow is installed, or "
            f"`{PREPARE_IMAGES}` on a folder of its images"
        )
    return f"{advice}; or set TFDS_DATA_DIR to a folder that has it in array_record format"
