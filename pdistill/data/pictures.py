"""Picture files as 8-bit grey or RGB, and words for what was done to make them so."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageFile, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
OF_SYSTEMS = ("__MACOSX", "@eaDir")  # copies and thumbnails that macOS and Synology make
LARGEST_SIDE = 64  # of a data set whose resolution is not given
SIDES_READ = 1000  # pictures whose headers tell the resolution
GREY = ("1", "L", "LA", "I", "F")  # PIL's modes of one channel; "I;16" and the like too


def find_pictures(folder: Path) -> list[str]:
    """Finds the relative paths of all pictures in a folder, sorted.

    Links are followed. Hidden files and folders are left out, and those of OF_SYSTEMS.
    """
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in visible(folders) if not _loops(Path(where, name))]
        found += [os.path.join(where, file) for file in visible(files)]
    return sorted(os.path.relpath(f, folder) for f in found if f.lower().endswith(SUFFIXES))


def visible(names: Iterable[str]) -> Iterator[str]:
    """Yields the names that are neither hidden nor of OF_SYSTEMS."""
    return (name for name in names if not name.startswith(".") and name not in OF_SYSTEMS)


def _loops(folder: Path) -> bool:
    """Whether a folder is a link to one that it is in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def common_channels(paths: Iterable[Path]) -> int:
    """Returns 1 if all pictures are grey, else 3; reads headers up to the first one in colour."""
    return 1 if all(is_grey(header) for header in map(_header, paths) if header) else 3


def is_grey(image: Image.Image) -> bool:
    """Tells whether a picture, opened but not loaded, is grey, with or without transparency."""
    grey = image.mode.split(";")[0] in GREY
    # PIL reads grey of 16 bits with transparency as RGBA, and says so of the file's layout alone.
    return grey or any(str(part[3]).startswith("LA") for part in getattr(image, "tile", ()))


def common_resolution(paths: Sequence[Path], multiple: int = 1) -> int:
    """Returns a number of pixels a side that suits pictures: their own, as far as it goes.

    It is the median of their shorter sides, at least 8 and at most LARGEST_SIDE, rounded down to a
    multiple of 4 and of `multiple`, or else the smallest; of SIDES_READ of them, spread evenly.
    Pictures that cannot be read do not count.
    """
    headers = map(_header, paths[:: -(-len(paths) // SIDES_READ)])
    sides = [min(header.size) for header in headers if header] or [LARGEST_SIDE]
    median = int(np.median(sides))
    multiple = math.lcm(4, multiple)
    return max(min(max(median, 8), LARGEST_SIDE) // multiple, 1) * multiple


def _header(path: Path) -> Image.Image | None:
    """A closed picture, whose mode and size are known; None for one that cannot be read."""
    try:
        _check_file(path)
        with Image.open(path) as image:
            return image
    except Exception:  # whoever reads the picture says so
        return None


def read_picture(
    path: Path, channels: int, background: str = "white"
) -> tuple[Image.Image, list[str]]:
    """Reads a picture as PIL's mode "L" or "RGB", and says what was done to it.

    Args:
      channels: 1 or 3. background: PIL's name of the colour behind transparent parts.

    Raises:
      ValueError: its numbers have no range that is known. Exception: it is damaged; PIL has no
        common error for that.
    """
    _check_file(path)
    with Image.open(path) as image:
        return picture_of(image, channels, background)


def is_readable(path: Path) -> bool:
    """Tells whether `read_picture` reads a picture, by doing so."""
    try:
        read_picture(path, 3)
    except Exception:  # it has no common error
        return False
    return True


def picture_of(
    image: ImageFile.ImageFile, channels: int, background: str = "white"
) -> tuple[Image.Image, list[str]]:
    """Converts an opened picture as `read_picture` does, whose errors it has."""
    done = []
    if getattr(image, "is_animated", False):
        done.append("first of several frames taken")
    grey, turned = is_grey(image), _is_turned(image)
    image.load()  # which turns a TIFF, and only that
    if turned:
        done.append("turned as EXIF says")
        ImageOps.exif_transpose(image, in_place=True)
    picture = _of_8_bits(image, done)
    if picture.has_transparency_data:
        picture = _on(background, picture, done)
    elif not grey:
        picture = _in_colour(picture, done)
    if grey != (channels == 1):
        done.append("grey repeated in 3 channels" if grey else "colours made grey")
    return picture.convert("L" if channels == 1 else "RGB"), done


def _is_turned(image: Image.Image) -> bool:
    """Whether a picture is to be turned or mirrored; not if its EXIF data are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # PIL has no common error for them
        return False


def _check_file(path: Path) -> None:
    """Raises ValueError for pipes and devices, which would be read for ever."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")


def _of_8_bits(image: ImageFile.ImageFile, done: list[str]) -> Image.Image:
    """Scales grey values of 16 bits, or floats in [0, 1], to 0 .. 255; other modes stay."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        done.append("16 bits divided by 257")
        wide = np.asarray(image)
        values = wide / 257
        if (clear := image.info.get("transparency")) is not None:
            alpha = np.where(wide == clear, 0, 255)
            return Image.fromarray(np.stack([np.rint(values), alpha], 2).astype(np.uint8))
    elif mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is not either
            raise ValueError(
                f"its floats, from {values.min():g} to {values.max():g}, are not in [0, 1]; scale "
                "them, or save it with 8 or 16 bits"
            )
        done.append("floats in [0, 1] times 255")
        values = values * 255
    elif mode == "I":
        raise ValueError("it has 32 bits, whose range is unknown; save it with 8 or 16 bits")
    else:
        return image
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _in_colour(picture: Image.Image, done: list[str]) -> Image.Image:
    """Converts a palette, CMYK and the like to RGB."""
    if picture.mode == "P":
        done.append("colours of the palette taken")
    elif picture.mode != "RGB":
        done.append(f"{picture.mode} converted to RGB")
    return picture.convert("RGB")


def _on(background: str, picture: Image.Image, done: list[str]) -> Image.Image:
    """Lays a picture on a background, as RGB; says so if parts of it are transparent."""
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema()[0] < 255:
        done.append(f"transparent parts laid on {background}")
    under = Image.new("RGBA", picture.size, ImageColor.getrgb(background)[:3])
    return Image.alpha_composite(under, picture).convert("RGB")


def summary(done: Sequence[str], num: int) -> list[str]:
    """Returns lines that count what was done to `num` pictures: "2 of 7 pictures: ..."."""
    counts = Counter(done).most_common()
    return [f"{count:,} of {num:,} pictures: {what}" for what, count in counts]
