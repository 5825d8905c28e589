"""Images from files, and the mistakes that make their measurements meaningless."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import chdtrc

from pdistill.data.pictures import (
    SUFFIXES,
    common_channels,
    find_pictures,
    read_picture,
    summary,
)
from pdistill.runtime.files import in_home, one_line, read_arrays
from pdistill.runtime.terminal import say

LEAST_EXPECTED = 5  # labels of a kind, for a chi-squared test (Cochran 1954)


class EvaluationError(ValueError):
    """An error of images or statistics; its message names the file or the set, and the cause."""


class EvaluationWarning(UserWarning):
    """A warning of a number that a careful reader would doubt."""


def load_images(
    path: str | Path, *, channels: int | None = None, background: str = "white"
) -> np.ndarray:
    """Loads uint8 [N, H, W, C] from an .npz with one such array, or from a folder of pictures.

    Args:
      channels: 1 or 3, for pictures in a folder; by default 1 if all are grey.
      background: PIL's name of the colour behind their transparent parts.

    Raises:
      EvaluationError: there is no such file, it cannot be read, or it holds something else.
    """
    return load_labelled(path, channels=channels, background=background)[0]


def load_labelled(
    path: str | Path, *, channels: int | None = None, background: str = "white"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Loads images as `load_images`, and their labels [N], as `labels_among`; None for a folder."""
    path = in_home(str(path))
    if path.is_dir():
        return _read_folder(path, channels, background), None
    arrays = read_npz(path)
    return images_among(arrays, path), labels_among(arrays, path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz; raises EvaluationError if it cannot be read."""
    try:
        return read_arrays(path)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: there is no such file; check the path") from error
    except Exception as error:  # whatever NumPy and zipfile raise for damage
        raise EvaluationError(f"{path} is not a readable .npz file: {one_line(error)}") from error


def images_among(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Picks the one array of images, and checks it."""
    found = [array for array in arrays.values() if array.ndim == 4]
    if len(found) != 1:
        shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
        raise EvaluationError(
            f"{path} must hold one array of images [N, H, W, C], or mu and sigma; "
            f"it holds {shapes or 'nothing'}"
        )
    check_images(found[0], str(path))
    return found[0]


def labels_among(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    """Picks the labels [N], as `pdistill sample` and guided-diffusion call them, if there are any.

    Others than a whole number an image, such as one-hot ones, are said to be left out.
    """
    found = [arrays[name] for name in ("label", "arr_1") if name in arrays]
    if not found:
        return None
    num = len(images_among(arrays, path))
    if found[0].shape != (num,) or found[0].dtype.kind not in "iu":
        warnings.warn(
            f"{path}: labels are left out, which must be whole numbers [{num}], one an image; got "
            f"{found[0].dtype} {list(found[0].shape)}",
            EvaluationWarning,
            stacklevel=2,
        )
        return None
    return found[0]


def check_images(images: np.ndarray, name: str) -> None:
    """Raises EvaluationError unless these are uint8 images that use their range."""
    if images.ndim != 4 or images.shape[3] not in (1, 3) or len(images) < 2:
        raise EvaluationError(
            f"{name}: images must be [N, H, W, C] with C = 1 or 3 and N of at least 2; got "
            f"{list(images.shape)}"
        )
    if images.dtype != np.uint8:
        advice = "save them as uint8"
        if np.issubdtype(images.dtype, np.floating):
            if not np.isfinite(images).all():
                raise EvaluationError(f"{name}: there are NaN or infinite values in the images")
            rule = "(x + 1) * 127.5" if images.min() < 0 else "x * 255"
            advice = f"round and clip, as in np.clip(np.round({rule}), 0, 255).astype(np.uint8)"
        raise EvaluationError(
            f"{name}: images must be uint8 in 0 .. 255; got {images.dtype} from {images.min()} to "
            f"{images.max()}; {advice}"
        )
    if images.min() >= 127:
        raise EvaluationError(
            f"{name}: no value is below 127, as when images in [0, 1] are converted by "
            "(x + 1) * 127.5; use x * 255"
        )
    if images.max() <= 1:
        raise EvaluationError(
            f"{name}: no value is above 1, as when images in [0, 1] are cast to uint8; use x * 255"
        )


def _read_folder(folder: Path, channels: int | None, background: str) -> np.ndarray:
    """Reads pictures of one size, in the order of their paths."""
    files = [folder / file for file in find_pictures(folder)]
    if not files:
        raise EvaluationError(
            f"{folder}: there are no pictures in it; give a folder of {', '.join(SUFFIXES)}"
        )
    channels = channels or common_channels(files)
    images, done = None, []
    for number, file in enumerate(files):
        try:
            picture, changes = read_picture(file, channels, background)
            image = np.asarray(picture).reshape(picture.height, picture.width, channels)
            if images is None:
                images = np.empty((len(files), *image.shape), np.uint8)
        except Exception as error:  # PIL has no common error for damaged files
            raise EvaluationError(f"{file} cannot be read: {one_line(error)}") from error
        if image.shape != images.shape[1:]:
            raise EvaluationError(
                f"{file} has the shape {image.shape} and {files[0]} {images.shape[1:]}; all "
                "pictures must have one size"
            )
        images[number] = image
        done += changes
    for line in summary(done, len(files)):
        say(f"{folder}: {line}")
    check_images(images, str(folder))
    return images


class DuplicateCounter:
    """Counts images that are exact copies of earlier ones, as repeated noise makes them."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.count = 0

    def add(self, images: np.ndarray) -> None:
        """Counts the copies in a batch of images."""
        for image in images:
            code = hash(image.tobytes())
            self.count += code in self._seen
            self._seen.add(code)


def labels_follow(labels: np.ndarray, reference: Sequence[int]) -> bool:
    """Tells whether `labels` may be a random draw of `reference`, by a chi-squared test at 1e-6.

    Rare classes are counted together, so that each count is expected to be LEAST_EXPECTED at least.
    """
    classes, frequencies = np.unique(reference, return_counts=True)
    if not np.isin(labels, classes).all():
        return False
    counts = np.bincount(np.searchsorted(classes, labels), minlength=len(classes))
    expected = frequencies * (len(labels) / frequencies.sum())
    groups = _groups(expected)
    counts, expected = (np.bincount(groups, weights) for weights in (counts, expected))
    distance = np.sum((counts - expected) ** 2 / expected)
    return len(counts) == 1 or chdtrc(len(counts) - 1, distance) > 1e-6


def _groups(expected: np.ndarray) -> np.ndarray:
    """Numbers of groups [K] of classes, from the rarest on, as small as LEAST_EXPECTED allows."""
    groups, total, number = np.empty(len(expected), int), 0.0, 0
    for i in np.argsort(expected, kind="stable"):
        groups[i] = number
        total += expected[i]
        if total >= LEAST_EXPECTED:
            total, number = 0.0, number + 1
    return np.minimum(groups, max(number - 1, 0))  # what is left over goes to the last one
