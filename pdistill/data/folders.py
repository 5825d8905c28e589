"""The splits and classes of a folder of pictures."""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdistill.data.pictures import SUFFIXES, find_pictures, is_readable
from pdistill.data.tfds_writer import PrepareError, hash_of

SPLITS = {  # by the names of folders, in any case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
HELD_OUT = 10_000  # most pictures that are held out, unless a number is given


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures by split and class.

    Attributes:
      tops: folder of each split. files: paths of each split's pictures, relative to that.
      classes: numbers of the classes, by name; none without labels.
    """

    tops: Mapping[str, Path]
    files: Mapping[str, Sequence[str]]
    classes: Mapping[str, int]

    def paths(self) -> list[Path]:
        """Returns the paths of all pictures."""
        return [self.tops[split] / file for split, files in self.files.items() for file in files]


def read_folder(folder: Path, labelled: bool = True, held_out: int | None = None) -> Folder:
    """Finds splits, pictures and classes in a folder, and holds out a split if there is none.

    The splits are the sub-folders named as in SPLITS, or else there is just "train". A picture's
    class is its first folder in there; classes are numbered in natural order, 2 before 10. Without
    another split, a tenth of "train" becomes "test", at most HELD_OUT pictures: evenly over the
    classes, and in each by the MD5 of their paths, so the same ones whenever it is done. If all of
    these are damaged, one that is not is among them, or if train has none to spare, there is no
    "test".

    Args:
      labelled: whether folders are classes. held_out: pictures of the new split "test".

    Raises:
      PrepareError: pictures are missing, or beside the splits or the classes; or the splits have
        different classes; or there are not enough to hold out.
    """
    tops, files = _splits(folder, find_pictures(folder))
    classes = _classes(folder, files) if labelled else []
    if len(tops) == 1:
        num = min(len(files["train"]) // 10, HELD_OUT) if held_out is None else held_out
        train, test = _hold_out(tops["train"], files["train"], num)
        if test:
            tops, files = {**tops, "test": tops["train"]}, {"train": train, "test": test}
    elif held_out is not None:
        raise PrepareError(
            f"{folder} has the splits {', '.join(tops)}; leave --held_out away, or give the folder "
            "of one as --images"
        )
    return Folder(tops, files, {name: number for number, name in enumerate(classes)})


def _splits(folder: Path, files: Sequence[str]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Returns {split: its folder}, and {split: its files}, relative to that."""
    if not files:
        what = f"are no images in {folder}" if folder.is_dir() else f"is no folder {folder}"
        raise PrepareError(f"there {what}; give a folder of {', '.join(SUFFIXES)}")
    names = sorted({file.split("/")[0] for file in files if "/" in file})
    split_of = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    if not split_of or ("train" not in split_of.values() and len(split_of) < len(names)):
        return {"train": folder}, {"train": list(files)}
    tops = {split: folder / name for name, split in split_of.items()}
    if "train" not in tops or len(tops) < len(split_of):
        raise PrepareError(
            f"{folder} has the splits {', '.join(split_of)}; of these, one must be train, and at "
            "most one test and one val; rename folders, or give one of them as --images"
        )
    by_split, beside = {split: [] for split in tops}, []
    for file in files:
        name, _, rest = file.partition("/")
        by_split[split_of[name]].append(rest) if name in split_of else beside.append(file)
    if beside:
        raise PrepareError(
            f"{folder} has {len(beside):,} images beside its splits {', '.join(split_of)}, such as "
            f"{beside[0]}; move them away, or, if all these folders are classes, move the folders "
            "into one named train"
        )
    return tops, by_split


def _classes(folder: Path, files: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the names of the classes, in natural order; [] if no picture is in a folder."""
    of_splits = {split: set(map(class_of, paths)) for split, paths in files.items()}
    classes = sorted(set().union(*of_splits.values()), key=_natural)
    if classes == [""]:
        return []
    if "" in classes:
        raise PrepareError(
            f"{folder} has images both in and beside class folders; move them into folders, or "
            "give --no_labels"
        )
    for split, found in of_splits.items():
        if lacking := [name for name in classes if name not in found]:
            raise PrepareError(
                f"the splits of {folder} have different classes: {split} has {len(found):,} of "
                f"{len(classes):,}, without {', '.join(lacking[:3])}; give all splits the same "
                "class folders, move a split away, or give --no_labels"
            )
    return classes


def class_of(path: str) -> str:
    """Returns the first folder of a relative path; "" if there is none."""
    return os.path.dirname(path).split("/")[0]


def _natural(name: str) -> tuple:
    """A key that sorts numbers in names by their values, and equal ones by the names."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _hold_out(folder: Path, files: Sequence[str], num: int) -> tuple[list[str], list[str]]:
    """Splits off `num` files, evenly over the classes; none if none of them could be read."""
    if not 0 <= num < len(files):
        raise PrepareError(f"--held_out must be from 0 to {len(files) - 1}, the images less one")
    order = sorted(files, key=lambda file: (class_of(file), hash_of(file)))
    chosen = [order[(2 * i + 1) * len(order) // (2 * num)] for i in range(num)]
    if num and not any(is_readable(folder / file) for file in chosen):  # the first one mostly is
        kept = set(order).difference(chosen)
        good = (file for file in order if file in kept and is_readable(folder / file))
        spare = list(itertools.islice(good, 2))
        chosen = [spare[0], *chosen[1:]] if len(spare) == 2 else []
    held_out = set(chosen)
    return [file for file in files if file not in held_out], sorted(held_out)
