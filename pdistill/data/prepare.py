"""Puts data sets on disk as TensorFlow Datasets would, without TensorFlow.

    python -m pdistill.data.prepare cifar10 [--archive=PATH] [--data_dir=DIR]
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.data.prepare --images=FOLDER --name=NAME --resolution=64 [--resize=bilinear]

The result is a TFDS data set in array_record format: `load_dataset` and stock TFDS read it.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from pdistill.data.published import PUBLISHED, fetch
from pdistill.data.resize import resize_square
from pdistill.data.tfds_writer import PrepareError, new_folder, png, write

SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def prepare(name: str, root: Path, archive: Path | None = None) -> Path:
    """Prepares `name`, one of PUBLISHED, in the folder `root`; returns the new folder.

    Args:
      archive: the archive, or a folder that holds the archives, instead of downloading.

    Raises:
      PrepareError: the data set is there already, or an archive is out of reach or not the
        published one.
    """
    source = PUBLISHED[name]

    def make(split: str, index: int) -> dict[str, Any]:
        images, labels = splits[split]
        example = {"image": png(images[index]), "label": int(labels[index])}
        return example | ({"id": f"{split}_{index:05d}"} if "id" in info.features else {})

    with new_folder(root, name, str(tfds.builder_cls(name).VERSION)) as scratch:
        paths = fetch(source, scratch, archive)
        info = tfds.builder(name, data_dir=scratch, file_format="array_record").info
        if source.label_names:
            info.features["label"].names = source.label_names
        splits = source.read(*paths)
        write(info, {split: range(len(labels)) for split, (_, labels) in splits.items()}, make)
    return root / info.full_name


def prepare_images(
    folder: Path,
    root: Path,
    name: str,
    resolution: int,
    resize: str = "area",
    labelled: bool = True,
) -> Path:
    """Prepares the images in `folder` as the data set `name` in `root`; returns the new folder.

    The splits are the sub-folders train, test and val ("validation" in TFDS), or else there is
    just "train". An image's label is the place of its first folder in there among all of them,
    sorted. Images become RGB and square; those that cannot be read are reported and left out.

    Args:
      resolution, resize: as in `resize_square`. labelled: whether folders are classes.

    Raises:
      PrepareError: the name is bad or there already, or images are missing or outside classes.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in ("digits", *PUBLISHED):
        raise PrepareError(
            f"the name {name!r} is taken or not made of a-z, 0-9 and _; give another --name"
        )
    tops, files = _find_images(folder)
    classes = {_class_of(path) for paths in files.values() for path in paths} if labelled else {""}
    if "" in classes and len(classes) > 1:
        raise PrepareError(
            f"{folder} has images both in and beside class folders; move them into folders, or "
            "give --no_labels"
        )
    numbers = {name: number for number, name in enumerate(sorted(classes - {""}))}
    features = {"image": tfds.features.Image(shape=(resolution, resolution, 3))}
    if numbers:
        features["label"] = tfds.features.ClassLabel(names=numbers)

    def make(split: str, path: str) -> dict[str, Any] | None:
        try:
            image = Image.open(tops[split] / path).convert("RGB")
        except Exception as error:  # PIL has no common error for damaged files
            tqdm.write(f"left out {tops[split] / path}: {error}", file=sys.stderr)
            return None
        example = {"image": png(resize_square(image, resolution, resize))}
        return example | ({"label": numbers[_class_of(path)]} if numbers else {})

    with new_folder(root, name, "1.0.0") as scratch:
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity(
                name, tfds.core.Version("1.0.0"), str(scratch / name / "1.0.0"), __name__
            ),
            description=f"{folder}: central squares, {resize} to {resolution}x{resolution}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if numbers else None,
        )
        write(info, files, make)
    return root / info.full_name


def _find_images(folder: Path) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Finds {split: its folder}, and {split: relative paths of the images in there}."""
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
            raise PrepareError(
                f"there are no images in {top}; give a folder of {', '.join(SUFFIXES)}"
            )
    return tops, files


def _class_of(path: str) -> str:
    """Returns the first folder of a relative path; "" if there is none."""
    return os.path.dirname(path).split("/")[0]


if __name__ == "__main__":
    from pdistill.__main__ import run

    run("prepare")
