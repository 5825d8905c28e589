"""Splits in TFDS's array_record format, read without TensorFlow."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pdistill.data.records import BLOCK, MANY, DataError
from pdistill.runtime.bars import Bar
from pdistill.runtime.files import one_line

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


class ArrayRecords:
    """A split of a prepared data set, as a `records.Source`.

    Args:
      builder: builder whose data set has the feature "image". name: the data set's name.
      split: "train[:10%]" or the like.
      advice: end of messages about files that are missing or damaged.

    Raises:
      FileNotFoundError: a shard is missing. DataError: a shard is not whole.
      ValueError: there is no such split.
    """

    def __init__(self, builder: "DatasetBuilder", name: str, split: str, advice: str):
        import grain
        from tensorflow_datasets.core.example_parser import ExampleParserNp
        from tensorflow_datasets.core.features import ClassLabel, Sequence, Text

        features = builder.info.features
        self.name = f"{name}:{split}"
        self.labelled = "label" in features and isinstance(features["label"], ClassLabel)
        self.num_labels = features["label"].num_classes if self.labelled else 1
        names = tuple(features["label"].names) if self.labelled else ()
        numbered = names == tuple(map(str, range(len(names))))  # TFDS's, where it knows none
        self.label_names = () if numbered else names
        captions = dict(features).get("captions")
        self.captioned = isinstance(captions, Sequence) and isinstance(captions.feature, Text)
        self._advice = advice
        self._shards = builder.info.splits[split].file_instructions
        self.files = [Path(shard.filename) for shard in self._shards]
        with ThreadPoolExecutor() as pool:
            list(pool.map(functools.partial(_check_shard, advice=advice), self._shards))
        self._records = grain.sources.ArrayRecordDataSource(self._shards)
        # TFDS's own decoding of whole examples takes half as long again.
        self._image, specs = features["image"], features.get_serialized_info()
        read = ("image", "label") if self.labelled else ("image",)
        self._parser = ExampleParserNp({key: specs[key] for key in read})
        self._picture_parser = ExampleParserNp({"image": specs["image"]})
        self._label_parser = ExampleParserNp({key: specs[key] for key in read[1:]})
        if self.captioned:
            self._caption_parser = ExampleParserNp({"captions": specs["captions"]})

    def __len__(self) -> int:
        return sum(shard.take for shard in self._shards)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        if len(rows) >= MANY:  # in one call a shard, which takes a time of its own
            try:
                return self._records.__getitems__(rows)
            except Exception:  # of a record that is not named; it is found below
                pass
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> bytes:
        try:
            return self._records[row]
        except Exception as error:  # array_record has no error of its own
            raise self._damaged(row, error) from error

    def decode(self, row: int, encoded: bytes) -> tuple[np.ndarray, int]:
        try:
            example = self._parser.parse_example(encoded)
            image = self._image.decode_example_np(example["image"])
        except Exception as error:  # PIL has no common error for damaged files
            raise self._damaged(row, error) from error
        return image if image.ndim == 3 else image[..., None], example.get("label", 0)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        labels = np.zeros(len(self), np.int32)
        if not self.labelled:
            return labels
        with Bar(f"labels of {self.name}", len(self)) as bar:
            for start in range(0, len(self), BLOCK):
                rows = range(start, min(start + BLOCK, len(self)))
                for row, encoded in zip(rows, self.read(rows), strict=True):
                    labels[row] = self._label_parser.parse_example(encoded)["label"]
                bar.update(len(rows))
        return labels

    def pictures(self, rows: Sequence[int]) -> list[bytes]:
        return [self._picture_parser.parse_example(each)["image"] for each in self.read(rows)]

    def captions(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        found = map(self._caption_parser.parse_example, self.read(rows))
        captions = [tuple(text.decode() for text in example["captions"]) for example in found]
        if lacking := [row for row, each in zip(rows, captions, strict=True) if not each]:
            raise DataError(
                f"image {lacking[0]} of {self.name} has no caption, and others have: give each "
                "one, or leave such images out, as by a split"
            )
        return captions

    def _damaged(self, row: int, error: Exception) -> DataError:
        ends = np.cumsum([shard.take for shard in self._shards])
        shard = self._shards[np.searchsorted(ends, row, side="right")].filename
        return DataError(
            f"record {row} of {self.name}, in {shard}, is damaged: {one_line(error)}; delete the "
            f"folder and {self._advice}"
        )


def _check_shard(shard: Any, advice: str) -> None:
    """Raises an error unless a shard is there, with all of its records."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not os.path.exists(shard.filename):
        raise FileNotFoundError(f"{shard.filename} is missing; {advice}")
    try:
        found = ArrayRecordReader(shard.filename).num_records()
    except Exception:  # for a file too small to be one
        found = 0
    if found != shard.examples_in_shard:
        raise DataError(
            f"{shard.filename} is not whole: it has {found:,} records and should have "
            f"{shard.examples_in_shard:,}; delete the folder and {advice}"
        )
