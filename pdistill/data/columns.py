"""Columns of a data set: what a network makes once and training reads row by row."""

import json
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.data.records import DataError
from pdistill.data.sources import Dataset
from pdistill.runtime.files import in_home, read_json, write_atomically

Rows = dict[str, np.ndarray]  # arrays [N, ...], the parts of a row side by side


class Column(Protocol):
    """A column: a frozen, hashable description of how its rows are made and read.

    One whose `path` may be of latents also has `check_codec(path, codec)`, which raises ValueError
    for a file of another codec than the one of this `model.codec_identity`, or None for images.

    Attributes:
      name: its name in a batch.
      aligned: row i belongs to image i; else the rows have an order of their own.
      path: file that was made before; "" for one beside the network that makes it.
      file: name of the file beside the network.
    """

    name: str
    aligned: bool
    path: str

    @property
    def file(self) -> str: ...

    def shapes(self, network: Any, num_images: int, flip: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of all rows, [N, ...] each."""
        ...

    def make(
        self,
        path: Path,
        network: Any,
        dataset: Dataset,
        *,
        flip: bool,
        seed: int,
        batch_size: int,
        mesh: Mesh,
        codec: Any = None,
    ) -> None:
        """Writes the file whole or not at all, from all processes together.

        Args:
          codec: blank; the data set's images are moments by it, as in `data.moments`.
        """
        ...

    def read(self, path: Path) -> Rows:
        """The rows of a file; raises ValueError for a file of something else."""
        ...

    def batch(self, rows: dict[str, Array], mirrored: Array | None) -> Any:
        """A batch's value of some rows, inside jit.

        Args:
          mirrored: [B, 1, 1, 1], whether each image is; None if none may be.
        """
        ...


def given_file(column: Column) -> Path:
    """The file of a column that was made before, in the home for a path with ~."""
    return in_home(column.path)


def check_column(column: Column) -> None:
    """Raises ValueError for a column that lacks something of `Column`."""
    names = [name for name in (*Column.__annotations__, *vars(Column)) if not name.startswith("_")]
    if lacks := [name for name in names if not hasattr(column, name)]:
        raise ValueError(
            f"the column {type(column).__name__} lacks {', '.join(lacks)}, see "
            "pdistill.data.columns.Column"
        )


def keep_origin(column: Column, path: Path, data: Dataset, maker: int) -> None:
    """Notes beside a column's file, which may not be there yet, by which network it is made.

    And of an aligned column of which images.

    Args:
      maker: the network's checksum, which files of earlier versions do not say.

    Raises:
      DataError: the file is there, with rows of other images or by another network, or does not say
        of which images.
    """
    now = {"maker": maker} | ({"content": data.digest()} if column.aligned else {})
    about = path.with_name(f"{path.name}.json")
    if path.exists():
        before = {"maker": maker} | (read_json(about) if about.exists() else {})
        if before.get("content") != now.get("content"):
            what = "of other images than the data set now, or of an older version"
        elif before["maker"] != maker:
            what = "by another model than the one that is there now"
        else:
            return
        raise DataError(f"{path} has rows {what}: delete it, and the same command makes it anew")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(about, json.dumps(now) + "\n")
