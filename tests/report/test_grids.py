import numpy as np
import pytest

from pdistill.report import tile
from pdistill.report.grids import PADDING, arrange, captioned

P = PADDING


def test_tile_pixels():
    """Three images of one pixel: two columns, two rows, the last place empty."""
    images = np.array([10, 20, 30], np.uint8).reshape(3, 1, 1, 1)
    grid = [
        [P, P, P, P, P],
        [P, 10, P, 20, P],
        [P, P, P, P, P],
        [P, 30, P, P, P],
        [P, P, P, P, P],
    ]
    expected = np.repeat(np.array(grid, np.uint8)[..., None], 3, axis=2)
    actual = tile(images, scale=1)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(
        tile(images, scale=3), np.kron(expected, np.ones((3, 3, 1), np.uint8))
    )


def test_tile_keeps_colours_and_orientation():
    image = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    actual = tile(image, scale=1)
    assert actual.shape == (4, 5, 3)
    np.testing.assert_array_equal(actual[1:3, 1:4], image[0])


@pytest.mark.parametrize(
    ("number", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (16, 4, 4)]
)
def test_tile_is_near_square(number, rows, columns):
    actual = tile(np.zeros((number, 4, 6, 1), np.uint8), scale=2)
    assert actual.shape == (2 * (5 * rows + 1), 2 * (7 * columns + 1), 3)


@pytest.mark.parametrize(("width", "scale"), [(8, 4), (28, 1), (16, 2), (11, 3), (64, 1), (256, 1)])
def test_tile_default_scale(width, scale):
    images = np.zeros((1, 2, width, 3), np.uint8)
    np.testing.assert_array_equal(tile(images), tile(images, scale))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 1), np.float32),
        np.zeros((0, 4, 4, 1), np.uint8),
    ],
    ids=lambda images: f"{images.dtype}{images.shape}",
)
def test_tile_refuses(images):
    with pytest.raises(ValueError, match="images"):
        tile(images)


def test_tile_refuses_scale():
    with pytest.raises(ValueError, match="scale must be at least 1; got 0"):
        tile(np.zeros((1, 4, 4, 1), np.uint8), 0)


def test_arrange_pixels():
    """A cell is as large as the largest picture; smaller ones sit in its middle, on nothing."""
    large, small = np.full((3, 5, 3), 7, np.uint8), np.full((1, 1, 3), 9, np.uint8)
    actual, x, tops = arrange([[large, None], [None, small]], gap=2, above=4)
    expected = np.zeros((14, 12, 4), np.uint8)
    expected[4:7, :5] = 7, 7, 7, 255
    expected[12, 9] = 9, 9, 9, 255
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(x, [2.5, 9.5])
    np.testing.assert_array_equal(tops, [4, 11])


def test_a_word_that_is_longer_than_a_line():
    picture = captioned(np.zeros((1, 4, 4, 1), np.uint8), ["字" * 99], scale=30, columns=1)
    assert picture.size == (180, 180 + 3 * 16 + 10)


@pytest.mark.parametrize("word", ["W", "Щ"])
def test_wide_letters_are_not_cut(word):
    picture = captioned(np.zeros((1, 4, 4, 1), np.uint8), [word * 99], scale=16, columns=1)
    words = np.asarray(picture)[: 3 * 16]
    assert words.min() < 50
    assert (words[:, [0, -1]] == 255).all()


def test_letters_of_other_alphabets_are_no_boxes():
    """Which would look alike."""
    images = np.zeros((3, 4, 4, 1), np.uint8)
    picture = np.asarray(captioned(images, ["ж", "ф", "λ"], scale=30, columns=3))
    one, other, greek = (picture[:26, left : left + 180] for left in (0, 192, 384))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, greek)


def test_captions_are_above_their_images():
    """The longest, cut after three lines, decides how high rows are; the last is not full."""
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    picture = np.asarray(captioned(images, ["a", "word " * 40, "b"], scale=30, columns=2))
    cell, above = 30 * 6, 3 * 16 + 10
    assert picture.shape == (2 * (cell + above), 2 * cell + 12, 3)
    for i in range(3):
        top, left = above + i // 2 * (cell + above), i % 2 * (cell + 12)
        pixels = picture[top + 45 : top + cell - 30 : 30, left + 45 : left + cell - 30 : 30, 0]
        np.testing.assert_array_equal(pixels, images[i, :, :, 0])
        words = picture[top - above : top, left : left + cell]
        assert words.min() < 50
        lines = (words.min((1, 2)) < 128).nonzero()[0]
        assert (lines.min() < 16) == (i == 1)
        assert lines.max() < above - 2
    assert (picture[cell + above :, cell + 12 :] == 255).all()
