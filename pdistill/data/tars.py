"""Folders of WebDataset's shards: uncompressed tars of pictures and their labels."""

import io
import itertools
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pdistill.data.captions import ENCODING, FIELDS, captions_of, one_caption
from pdistill.data.folders import SPLITS
from pdistill.data.pictures import SIDES_READ, SUFFIXES, is_grey, picture_of
from pdistill.data.records import DataError, state_of
from pdistill.runtime.files import cache_dir, in_home, one_line, read_arrays, write_arrays
from pdistill.runtime.terminal import format_count, say, update

UNPACK = "unpack the tars, and `python -m pdistill.data.prepare --images=FOLDER` makes them so"

FORMAT = "2"  # of what is kept of tars
WORDNET = r"n\d{8}\.tar"  # such as n01440764.tar


class Index(NamedTuple):
    """Places of the pictures of a split, in the order of shards and members.

    Attributes:
      shard: number of the tar, int64 [N]. offset: first byte of the picture, int64 [N].
      size: number of its bytes, int64 [N]. label: int64 [N]; -1 for none.
      text: first byte of the caption's member, int64 [N]. text_size: number of its bytes,
        int64 [N]; 0 for no caption. text_json: 1 if it is JSON, int64 [N].
      grey: whether one channel holds all pictures, bool [].
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    text: np.ndarray
    text_size: np.ndarray
    text_json: np.ndarray
    grey: np.ndarray


class Tars:
    """A split of a folder of tars, as a `records.Source`.

    A sample is what has a name up to the first dot: KEY.png, or another of SUFFIXES, and its label,
    a number in KEY.cls or the "label" of KEY.json. Its caption is KEY.txt, or one of FIELDS of
    KEY.json, where a list is several. The splits are the folders in it named train, test or val, or
    else the split train is the folder itself. The cache keeps the places of the pictures until a
    tar changes.

    Args:
      folder: the folder's path. split: "train", "train[:10%]" or the like.

    Raises:
      FileNotFoundError: there are no tars. ValueError: there is no such split.
      DataError: a shard is missing or not whole, or pictures are of several sizes; later, when
        captions are read, some samples have none.
    """

    def __init__(self, folder: str, split: str):
        shards = _shards(in_home(folder))
        indices = {name: _index(in_home(folder), paths) for name, paths in shards.items()}
        self.splits = {name: len(index.label) for name, index in indices.items()}
        name, rows = _rows(split, self.splits)
        self.name = f"{folder}:{split}"
        self.num_labels = max(1, *(int(index.label.max()) + 1 for index in indices.values()))
        self.files = self._paths = shards[name]
        self._index = Index(*(a[rows] if a.ndim else a for a in indices[name]))
        self.captioned = bool(self._index.text_size.any())
        self.labelled = bool((self._index.label >= 0).all())

    def __len__(self) -> int:
        return len(self._index.label)

    @property
    def labels(self) -> np.ndarray:
        return np.maximum(self._index.label, 0).astype(np.int32)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        where = self._index.shard, self._index.offset, self._index.size
        places = zip(*(array[list(rows)].tolist() for array in where), strict=True)
        return [_read(self._paths[shard], offset, size) for shard, offset, size in places]

    pictures = read

    def decode(self, row: int, encoded: bytes) -> tuple[np.ndarray, int]:
        channels = 1 if self._index.grey else 3
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                picture, _ = picture_of(image, channels)
        except Exception as error:  # PIL has no common error for damaged files
            path = self._paths[self._index.shard[row]]
            raise DataError(
                f"image {row} of {self.name}, in {path}, cannot be read: {one_line(error)}; get "
                "this tar again, or take the picture out of it"
            ) from error
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
        return pixels, max(int(self._index.label[row]), 0)

    def captions(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        index = self._index
        if num := np.sum(lacking := index.text_size == 0):
            first = int(np.argmax(lacking))
            path = self._paths[index.shard[first]]
            raise DataError(
                f"{num:,} of {len(self):,} samples of {self.name} have no caption, such as "
                f"{_member(path, index.offset[first])} in {path}: give each a KEY.txt, or a "
                f"{', '.join(FIELDS)} in KEY.json"
            )
        return [self._captions(row) for row in rows]

    def _captions(self, row: int) -> tuple[str, ...]:
        index, path = self._index, self._paths[self._index.shard[row]]
        text = _read(path, int(index.text[row]), int(index.text_size[row]))
        try:
            if index.text_json[row]:
                return captions_of(json.loads(text))
            return (one_caption(text.decode(ENCODING)),)
        except ValueError as error:
            raise DataError(
                f"the caption of image {row} of {self.name}, in {path}, cannot be read: {error}; "
                "get this tar again, or mend it"
            ) from error


def _read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a tar, which is not kept open: there may be thousands."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


def _member(path: Path, offset: int) -> str:
    """Name of the member of a tar whose content begins there."""
    with tarfile.open(path, "r:") as tar:
        return next(member.name for member in tar if member.offset_data == offset)


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The tars of each split, sorted."""
    beside = sorted(folder.glob("*.tar"))
    found = {"train": beside}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower() in SPLITS and (tars := sorted(path.glob("*.tar"))):
            found[SPLITS[path.name.lower()]] = tars
    if beside and found["train"] != beside:
        raise DataError(
            f"{folder} has {len(beside):,} tars beside its folder {found['train'][0].parent.name}, "
            f"such as {beside[0].name}; move them into it, or away"
        )
    if not found["train"]:
        raise FileNotFoundError(f"there are no .tar files in {folder}, nor in {folder / 'train'}")
    for paths in found.values():
        _check_numbers(paths)
    return found


def _check_numbers(paths: Sequence[Path]) -> None:
    """Raises DataError if the numbers in the names of shards have a gap, or are not all "of" one.

    Nouns of WordNet are no such numbers, by which ImageNet's tars of one class are called.
    """
    series = defaultdict(dict)
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)((?:-of-(\d+))?\D*)", path.name)
        if match and not re.fullmatch(WORDNET, path.name):
            before, number, after, total = match.groups()
            series[before, after, total][int(number)] = number
    for (before, after, total), numbers in series.items():
        first, last = min(numbers), max(numbers)
        if total:
            first = 1 if int(total) in numbers else 0
            last = first + int(total) - 1
        for number in range(first, last + 1):
            if number not in numbers:
                width = len(numbers[min(numbers)])
                missing = f"{before}{number:0{width}}{after}"
                raise DataError(
                    f"{paths[0].parent} lacks the shard {missing}; get it, "
                    "or give files other names that have no numbers of shards"
                )


def _rows(split: str, lengths: dict[str, int]) -> tuple[str, slice]:
    """The split's name, and its part, as TFDS understands them; ValueError if there is none."""
    from tensorflow_datasets.core import splits

    infos = [splits.SplitInfo(name, [num], num_bytes=0) for name, num in lengths.items()]
    instructions = splits.ReadInstruction.from_spec(split).to_absolute(splits.SplitDict(infos))
    if len(instructions) > 1:
        raise ValueError(f"a folder of tars has no sums of splits; got {split!r}")
    return instructions[0].splitname, slice(instructions[0].from_, instructions[0].to)


def _index(folder: Path, paths: Sequence[Path]) -> Index:
    """The index of some shards, from the cache or made anew."""
    kept = cache_dir() / "tars" / f"{state_of(paths, FORMAT)}.npz"
    try:
        return Index(**read_arrays(kept))
    except Exception:  # not there, or damaged
        index = _make_index(folder, paths)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(kept, index._asdict())
    except OSError as error:
        say(
            f"warning: where the pictures of {folder} are is not kept for the next time: {error}; "
            "PDISTILL_CACHE_DIR can name a folder that can be written"
        )
    return index


def _make_index(folder: Path, paths: Sequence[Path]) -> Index:
    rows, others = [], []
    for shard, path in enumerate(paths):
        update(f"{folder}: pictures are looked for in tar {shard + 1} of {len(paths)}")
        rows += [(shard, *sample) for sample in _samples(path, others)]
    if others:
        say(
            f"{folder}: left out {format_count(len(others), 'picture')} beyond one a sample, "
            f"KEY.SUFFIX, such as {others[0]}"
        )
    if not rows:
        raise DataError(f"there are no pictures in the tars of {folder}: {', '.join(SUFFIXES)}")
    columns = np.array(rows, np.int64).T  # those of an Index, but for "grey"
    if lacking := np.sum(columns[3] < 0) % len(rows):
        raise DataError(
            f"{lacking:,} of {len(rows):,} samples of {folder} have no label, a number in KEY.cls "
            'or the "label" of KEY.json; give all of them one, or none'
        )
    return Index(*columns, np.array(_are_grey(folder, paths, columns)))


def _samples(path: Path, others: list[str]) -> Iterator[tuple[int, ...]]:
    """Offset, bytes and label of each picture of a shard, and those three of its caption.

    Names of pictures that are no sample's are added to `others`.
    """
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            samples = defaultdict(dict)
            for member in tar:
                where, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                if member.isfile() and key:
                    samples[where, key][suffix.lower()] = member
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
            for (_, key), parts in samples.items():
                picture = next((parts[p] for p in parts if f".{p}" in SUFFIXES), None)
                pictures = (part for part in parts.values() if _is_picture(part.name))
                others += [part.name for part in pictures if part is not picture]
                if picture:
                    label, caption = _label(tar, key, parts), _caption(tar, parts)
                    yield picture.offset_data, picture.size, label, *caption
    except tarfile.ReadError as error:
        raise DataError(
            f"{path} is not whole, or no uncompressed tar: {error}; get it again, or unpack it"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _label(tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo]) -> int:
    """The label of a sample; -1 if it has none."""
    name = "cls" if "cls" in parts else "json"
    if name not in parts:
        return -1
    text = tar.extractfile(parts[name]).read()
    try:
        label = int(text) if name == "cls" else json.loads(text).get("label", -1)
    except (ValueError, AttributeError):
        label = None
    if not isinstance(label, int) or (label < 0 and name == "cls"):
        raise ValueError(f"the label in {key}.{name} is no number from 0 on: {text[:50]!r}")
    return label


def _caption(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> tuple[int, int, bool]:
    """Offset and bytes of a sample's caption, and whether it is in JSON; no bytes for none."""
    text = parts.get("txt")
    if text and tar.extractfile(text).read().decode(ENCODING, "replace").strip():
        return text.offset_data, text.size, False
    if not (text := parts.get("json")):
        return 0, 0, False
    try:
        found = captions_of(json.loads(tar.extractfile(text).read()))
    except (ValueError, AttributeError):  # it is of something else
        found = ()
    return text.offset_data, text.size if found else 0, True


def _are_grey(folder: Path, paths: Sequence[Path], columns: np.ndarray) -> bool:
    """Whether all pictures are grey; SIDES_READ of them, spread evenly, must have one size."""
    rows = columns[:3].T
    some = [_header(paths, *row) for row in rows[:: -(-len(rows) // SIDES_READ)].tolist()]
    sizes = {f"{image.width}x{image.height}" for image in some if image}
    if len(sizes) > 1:
        raise DataError(
            f"{folder} has pictures of several sizes, such as {' and '.join(sorted(sizes)[:2])}; "
            f"all must be of one: {UNPACK}"
        )
    # The others up to the first one in colour, if there is one.
    others = (_header(paths, *row) for row in rows.tolist())
    return all(is_grey(image) for image in itertools.chain(some, others) if image)


def _header(paths: Sequence[Path], shard: int, offset: int, size: int) -> Image.Image | None:
    """A closed picture, whose mode and size are known; None for one that cannot be read."""
    try:
        with Image.open(io.BytesIO(_read(paths[shard], offset, size))) as image:
            return image
    except Exception:  # whoever reads the picture says so
        return None
