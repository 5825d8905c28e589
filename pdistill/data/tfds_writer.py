"""Writes data sets in TFDS's array_record format, whole or not at all, without TensorFlow."""

import contextlib
import fcntl
import functools
import hashlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from pdistill.runtime.bars import Bar
from pdistill.runtime.temporary import passing, remove

BLOCK = 256  # examples in memory at a time
SHARD_BYTES = 2**25  # bytes of pixels in a shard; as PNG they take less
SHARD_RECORDS = 2**13  # as a record is read in a time that grows with their number, 3 ns each
MAX_SHARDS = 512  # most shards in a split, as readers keep all of them open


class PrepareError(RuntimeError):
    """An error of preparing; its message names the file or address and says what is wrong."""


@contextlib.contextmanager
def new_folder(root: Path, name: str, version: str) -> Iterator[Path]:
    """Makes a temporary folder, whose name/version moves into `root` if there is no error.

    The rest of it is deleted either way, after a signal too, and so is what was left of it by a
    process that was killed.

    Raises:
      PrepareError: name/version is there already, or another process is making it.
    """
    root.mkdir(parents=True, exist_ok=True)
    scratch = root / f"incomplete.{name}"
    with _lock(root / f"{scratch.name}.lock", name):
        final = root / name / version
        if final.exists():
            raise PrepareError(f"{final} is there already; delete it, or choose another --data_dir")
        remove(scratch)
        with passing(scratch):
            scratch.mkdir()
            yield scratch
            final.parent.mkdir(exist_ok=True)
            (scratch / name / version).rename(final)


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Holds a lock, a file that is there meanwhile; the system drops it if the process is killed.

    Raises:
      PrepareError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            ours = True
        if not ours:  # taken, or just deleted by who held it
            raise PrepareError(
                f"{name} is being prepared in {path.parent} by another process; wait for it, or "
                "choose another --data_dir"
            )
        with passing(path):
            yield


def png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 1 or 3] as PNG, for which TFDS would call TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()


def hash_of(key: str) -> bytes:
    """Computes the MD5 by which TFDS orders examples; names of files need not be UTF-8."""
    return hashlib.md5(key.encode(errors="surrogateescape")).digest()


def write(
    info: tfds.core.DatasetInfo,
    splits: Mapping[str, Sequence[Any]],
    make: Callable[[str, Any], dict[str, Any] | None],
) -> None:
    """Writes a data set, records and description, into `info.data_dir`.

    The records stand in TFDS's own order, by the MD5 of split and key. So "train[:1000]" has images
    of all classes, and the same ones as in a stock copy.

    Args:
      info: description of the data set.
      splits: {split: keys}.
      make: (split, key) -> the example, or None to leave it out; called from threads.
    """
    Path(info.data_dir).mkdir(parents=True)
    most = max(len(keys) for keys in splits.values())
    fitting = SHARD_BYTES // math.prod(info.features["image"].shape)
    per_shard = max(min(fitting, SHARD_RECORDS), most // MAX_SHARDS + 1)
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    with ThreadPoolExecutor() as pool:
        for split, keys in splits.items():
            order = sorted(keys, key=lambda key: hash_of(f"{split}{key}"))
            with Bar(f"{info.name}:{split}", len(order)) as bar:
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
