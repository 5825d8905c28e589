"""Puts data sets on disk as TensorFlow Datasets would, without TensorFlow.

    python -m pdistill.data.prepare cifar10 [--archive=PATH] [--data_dir=DIR]
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.data.prepare --images=FOLDER --name=NAME [--resolution=64 --resize=bilinear]
    python -m pdistill.data.prepare --emoji=FOLDER [--emoji_groups=smileys,animals,food]

The result is a TFDS data set in array_record format: `load_dataset` and stock TFDS read it.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from pdistill.data.captions import read_captions
from pdistill.data.emoji import LICENCES, SIDE, find_emoji
from pdistill.data.folders import class_of, read_folder
from pdistill.data.pictures import common_channels, common_resolution, read_picture, summary
from pdistill.data.published import PUBLISHED, fetch
from pdistill.data.resize import resize_square
from pdistill.data.tfds_writer import PrepareError, new_folder, png, write
from pdistill.runtime.terminal import say

VERSION = "1.0.0"  # of data sets that TFDS does not describe
NAMES_SHOWN = 100  # classes; all their names are in label.labels.txt
CAPTIONS = tfds.features.Sequence(tfds.features.Text())


def prepare(name: str, root: Path, archive: Path | None = None) -> Path:
    """Prepares `name`, one of PUBLISHED, in the folder `root`; returns the new folder.

    Args:
      archive: the archive, or a folder that holds the archives, instead of downloading.

    Raises:
      PrepareError: the data set is there already, or being prepared, or an archive is out of
        reach or not the published one.
    """
    source = PUBLISHED[name]

    def make(split: str, index: int) -> dict[str, Any]:
        example = {key: column[index] for key, column in splits[split].items()}
        example["image"] = png(example["image"])
        return example | ({"id": f"{split}_{index:05d}"} if "id" in info.features else {})

    version = VERSION if source.features else str(tfds.builder_cls(name).VERSION)
    with new_folder(root, name, version) as scratch:
        paths = fetch(source, scratch, archive)
        splits, names = source.read(*paths)
        if source.features:
            info = _describe(scratch, name, source.address, source.features)
        else:
            info = tfds.builder(name, data_dir=scratch, file_format="array_record").info
        for feature, values in names.items():
            info.features[feature].names = values
        write(info, {split: range(len(arrays["label"])) for split, arrays in splits.items()}, make)
    return root / info.full_name


def prepare_images(
    folder: Path,
    root: Path,
    name: str,
    resolution: int | None = None,
    resize: str = "area",
    labelled: bool = True,
    *,
    channels: int | None = None,
    background: str = "white",
    held_out: int | None = None,
    captioned: bool | None = None,
    multiple: int = 1,
) -> Path:
    """Prepares the images in `folder` as the data set `name` in `root`; returns the new folder.

    Splits and classes are as `read_folder` finds them, captions as `read_captions` does. Images
    become square, and grey or RGB; those that cannot be read are reported and left out. The classes
    are printed with their numbers, and how many images were changed in which way.

    Args:
      resolution, resize: as in `resize_square`; by default as `common_resolution` finds it.
      labelled, held_out: as in `read_folder`.
      channels: 1 or 3; by default 1 if all images are grey. background: as in `read_picture`.
      captioned: with captions; None if there are any. multiple: as in `common_resolution`.

    Raises:
      PrepareError: the name is bad or there already, or being prepared, or as `read_folder` and
        `read_captions`. Nothing is written then.
    """
    _check_name(name)
    done: list[str] = []  # appended to from threads

    def make(split: str, file: str) -> dict[str, Any] | None:
        path = found.tops[split] / file
        if (image := _read(path, channels, background, done)) is None:
            return None
        example = {"image": png(resize_square(image, resolution, resize))}
        if captions:
            example["captions"] = captions[path]
        return example | ({"label": found.classes[class_of(file)]} if found.classes else {})

    with new_folder(root, name, VERSION) as scratch:
        found = read_folder(folder, labelled, held_out)
        paths = found.paths()
        captions = {} if captioned is False else read_captions(folder, found, bool(captioned))
        resolution = resolution or common_resolution(paths, multiple)
        _tell(found.files, found.classes, resolution, list(captions.values()))
        channels = channels or common_channels(paths)
        features = {"image": tfds.features.Image(shape=(resolution, resolution, channels))}
        if found.classes:
            features["label"] = tfds.features.ClassLabel(names=found.classes)
        if captions:
            features["captions"] = CAPTIONS
        about = f"{folder}: central squares, {resize} to {resolution}x{resolution}"
        info = _describe(scratch, name, about, features)
        write(info, found.files, make)
        for line in summary(done, len(paths)):
            print(line, file=sys.stderr)
    return root / info.full_name


def prepare_emoji(
    folder: Path,
    root: Path,
    name: str = "emoji",
    resolution: int = SIDE,
    resize: str = "area",
    groups: Sequence[str] = (),
) -> Path:
    """Prepares the emoji of packages in `folder` as `name` in `root`; returns the new folder.

    `find_emoji` says which these are, with their captions and splits; they lie on white. The
    licences are printed, and stand in the description.

    Args:
      resolution: pixels a side. resize: as in `resize_square`. groups: as in `find_emoji`.

    Raises:
      PrepareError: the name is bad or there already, or being prepared, or as `find_emoji`.
    """
    _check_name(name)

    def make(split: str, key: str) -> dict[str, Any] | None:
        emoji = found[split][key]
        if (image := _read(emoji.path, 3, "white", [])) is None:
            return None
        image = png(resize_square(image, resolution, resize))
        return {"image": image, "captions": emoji.captions()}

    with new_folder(root, name, VERSION) as scratch:
        found = find_emoji(folder, groups)
        _tell(found, {}, resolution)
        for line in LICENCES:
            print(line, file=sys.stderr)
        image = tfds.features.Image(shape=(resolution, resolution, 3))
        about = f"emoji on white, {resize} to {resolution}x{resolution}. {'. '.join(LICENCES)}"
        info = _describe(scratch, name, about, {"image": image, "captions": CAPTIONS})
        write(info, {split: list(emoji) for split, emoji in found.items()}, make)
    return root / info.full_name


def _check_name(name: str) -> None:
    """Raises PrepareError for a name that a new data set cannot have."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in ("digits", *PUBLISHED):
        raise PrepareError(
            f"the name {name!r} is taken or not made of a-z, 0-9 and _; give another --name"
        )


def _read(path: Path, channels: int, background: str, done: list[str]) -> Image.Image | None:
    """Reads a picture and adds what was done to it; a damaged one is reported, and None."""
    try:
        image, changes = read_picture(path, channels, background)
    except Exception as error:  # PIL has no common error for damaged files
        say(f"left out {path}: {error}")
        return None
    done.extend(changes)
    return image


def _describe(
    scratch: Path, name: str, about: str, features: Mapping[str, Any]
) -> tfds.core.DatasetInfo:
    """Describes a data set that TFDS does not know."""
    version = tfds.core.Version(VERSION)
    where = str(scratch / name / VERSION)
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(name, version, where, __name__),
        description=about,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label") if "label" in features else None,
    )


def _tell(
    files: Mapping[str, Any],
    classes: Mapping[str, int],
    resolution: int,
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Prints what was found in a folder, and what its images become."""
    sizes = ", ".join(f"{split} {len(paths):,}" for split, paths in files.items())
    held_out = "" if len(files) > 1 else "; there is no held-out split"
    print(f"images: {sizes}{held_out}", file=sys.stderr)
    print(f"resolution: {resolution}x{resolution} pixels", file=sys.stderr)
    numbered = [f"{number} {name}" for name, number in classes.items()] or ["none"]
    if len(numbered) > NAMES_SHOWN:
        numbered[NAMES_SHOWN - 1 : -1] = ["..."]
    print(f"classes: {', '.join(numbered)}", file=sys.stderr)
    if captions:
        num = sum(map(len, captions))
        print(f"captions: {num:,}, such as {captions[0][0]!r}", file=sys.stderr)


if __name__ == "__main__":
    from pdistill.__main__ import run

    run("prepare", program=True)
