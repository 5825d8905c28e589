"""Many small images as one picture."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PADDING = 232  # light grey


def tile(images: np.ndarray, scale: int | None = None, columns: int | None = None) -> np.ndarray:
    """Tiles images as a grid, row by row, one light pixel around each.

    Args:
      images: uint8 [N, H, W, C], C = 1 (grey) or 3.
      scale: side of the square that shows a pixel; the default makes an image about 32 wide.
      columns: images in a row; the default makes a near-square grid.

    Returns:
      uint8 [H', W', 3], with H' = scale * (rows * (H + 1) + 1) and W' likewise.

    Raises:
      ValueError: images have another type or shape, there are none, or scale is below 1.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "images must be uint8 [N, H, W, C] with C = 1 or 3; "
            f"got {images.dtype} {list(images.shape)}"
        )
    number, height, width, _ = images.shape
    if number == 0:
        raise ValueError("there are no images to tile; give at least one")
    if scale is None:
        scale = max(1, round(32 / width))
    elif scale < 1:
        raise ValueError(f"scale must be at least 1; got {scale}")
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), PADDING, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


def captioned(images: np.ndarray, captions: Sequence[str], scale: int, columns: int) -> Image.Image:
    """Draws images row by row, each below its caption, on white.

    Args:
      images: uint8 [N, H, W, C], C = 1 (grey) or 3. captions: [N]; long ones are cut, and
        letters that DejaVu Sans has not, such as Chinese ones, are shown as boxes.
      scale: side of the square that shows a pixel. columns: images in a row.
    """
    size, gap = 12, 12  # of letters, and between columns
    cells = [tile(image[None], scale) for image in images]
    font = _font(captions, size)
    letters = int((scale * images.shape[2] + gap) / (0.55 * size))  # of average width
    lines = [_wrapped(text, letters, cells[0].shape[1], font) for text in captions]
    above = max(map(len, lines)) * (size + 4) + 10
    cells += [None] * (-len(cells) % columns)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    picture, middles, tops = arrange(rows, gap, above)
    white = Image.new("RGBA", picture.shape[1::-1], "white")
    white.alpha_composite(Image.fromarray(picture))
    draw = ImageDraw.Draw(white)
    for i, words in enumerate(lines):
        place = middles[i % columns], tops[i // columns] - 5
        draw.text(place, "\n".join(words), "black", font, anchor="md", align="center")
    return white.convert("RGB")


def _font(texts: Sequence[str], size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or for more than ASCII matplotlib's, which has Greek and Cyrillic."""
    if all(map(str.isascii, texts)):
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _wrapped(text: str, letters: int, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Breaks a text into at most three lines, of so many letters or fewer, `width` pixels wide."""
    while True:
        lines = textwrap.wrap(text, letters, max_lines=3, placeholder=" ...")
        if letters <= 4 or max(map(font.getlength, lines), default=0) <= width:
            return lines
        letters -= 1


def arrange(
    cells: Sequence[Sequence[np.ndarray | None]], gap: int, above: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arranges pictures in rows and columns of equal cells, in each one's middle, on nothing.

    Args:
      cells: rows of uint8 [h, w, 3], or None for a blank. gap: pixels between columns.
      above: pixels over each row, for its name.

    Returns:
      The picture uint8 [H, W, 4], opaque where a picture is, the middles of columns in x, and the
      tops of rows in y, in pixels.
    """
    height, width, _ = np.max([cell.shape for row in cells for cell in row if cell is not None], 0)
    tops = above + np.arange(len(cells)) * (height + above)
    lefts = np.arange(len(cells[0])) * (width + gap)
    picture = np.zeros((tops[-1] + height, lefts[-1] + width, 4), np.uint8)
    for top, row in zip(tops, cells, strict=True):
        for left, cell in zip(lefts, row, strict=True):
            if cell is not None:
                h, w, _ = cell.shape
                y, x = top + (height - h) // 2, left + (width - w) // 2
                picture[y : y + h, x : x + w, :3] = cell
                picture[y : y + h, x : x + w, 3] = 255
    return picture, lefts + width / 2, tops
