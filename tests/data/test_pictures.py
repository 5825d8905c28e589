"""What pictures of all kinds become, in `prepare` and in `evaluate`, and what is said of it."""

import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from pdistill.cli.prepare import main
from pdistill.data import load_dataset
from pdistill.data.pictures import find_pictures
from pdistill.evaluation import EvaluationError, load_images

RAMP = np.linspace(0, 255, 16).round().astype(np.uint8).reshape(4, 4)
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


def rgba(alpha):
    """COLOURS, but for the last two columns, of this alpha, whose hidden colour is blue."""
    pixels = np.dstack([COLOURS, np.full((4, 4), 255, np.uint8)])
    pixels[:, 2:] = (0, 0, 255, alpha)
    return Image.fromarray(pixels)


def grey_alpha():
    picture = Image.fromarray(RAMP).convert("LA")
    picture.putalpha(Image.fromarray(np.array([[255, 0, 0, 255]] * 4, np.uint8)))
    return picture


def oriented():
    """COLOURS as a camera on its side stores them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return Image.fromarray(np.rot90(COLOURS).copy()), {"exif": exif}


def palette(**options):
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    picture.putpalette(COLOURS.tobytes())
    return picture, options


class Png16:
    """A PNG of 16 bits, grey with transparency, which PIL reads but does not write.

    Its second and third columns are transparent, by alpha or as the value that is.
    """

    def __init__(self, *, alpha):
        self._alpha = alpha
        hidden = np.isin(np.arange(4), (1, 2))
        values = np.where(hidden, 77, RAMP.astype(int) * 257)
        clear = np.broadcast_to(np.where(hidden, 0, 65535), (4, 4))
        self._values = np.stack([values, clear], axis=2) if alpha else values

    def save(self, path):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in self._values)
        header = struct.pack(">IIBBBBB", 4, 4, 16, 4 if self._alpha else 0, 0, 0, 0)
        clear = [] if self._alpha else [(b"tRNS", struct.pack(">H", 77))]
        parts = [(b"IHDR", header), *clear, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        chunks = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


WHITE = np.array([255, 255, 255])
ON_WHITE = np.concatenate([COLOURS[:, :2], np.full((4, 2, 3), WHITE)], axis=1)
HALF = np.concatenate([COLOURS[:, :2], np.full((4, 2, 3), [127, 127, 255])], axis=1)
HIDDEN = np.where(np.arange(4) == 3, RAMP, np.where(np.arange(4) == 0, RAMP, 255))
FIRST = {"save_all": True, "append_images": [Image.fromarray(255 - COLOURS)], "lossless": True}
WIDE = RAMP.astype(np.uint16) * 257

KINDS = {  # file: (picture or picture and options, what it becomes, what is said)
    "16.png": (Image.fromarray(WIDE), RAMP, "16 bits divided by 257"),
    "16.tif": (Image.fromarray(WIDE), RAMP, "16 bits divided by 257"),
    "big_endian.tif": (Image.fromarray(WIDE.astype(">u2")), RAMP, "16 bits divided by 257"),
    "float.tif": (
        Image.fromarray(RAMP.astype(np.float32) / 255),
        RAMP,
        "floats in [0, 1] times 255",
    ),
    "1.png": (Image.fromarray(RAMP > 99), np.where(RAMP > 99, 255, 0), None),
    "alpha.png": (rgba(0), ON_WHITE, "transparent parts laid on white"),
    "half.webp": ((rgba(128), {"lossless": True}), HALF, "transparent parts laid on white"),
    "opaque.png": (Image.fromarray(np.dstack([COLOURS, RAMP | 255])), COLOURS, None),
    "grey_alpha.png": (grey_alpha(), HIDDEN, "transparent parts laid on white"),
    "16_alpha.png": (Png16(alpha=True), HIDDEN, "transparent parts laid on white"),
    "16_clear.png": (
        Png16(alpha=False),
        HIDDEN,
        ("16 bits divided by 257", "transparent parts laid on white"),
    ),
    "turned.png": (oriented(), COLOURS, "turned as EXIF says"),
    "turned.tif": (oriented(), COLOURS, "turned as EXIF says"),
    "palette.png": (palette(), COLOURS, "colours of the palette taken"),
    "hole.gif": (
        palette(transparency=5),
        np.where(np.arange(16).reshape(4, 4, 1) == 5, WHITE, COLOURS),
        "transparent parts laid on white",
    ),
    "cmyk.tif": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS, "CMYK converted to RGB"),
    "moving.webp": ((Image.fromarray(COLOURS), FIRST), COLOURS, "first of several frames taken"),
}


def save(path, picture):
    picture, options = picture if isinstance(picture, tuple) else (picture, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Prepares the folder tmp_path/in at 4 pixels, and returns images and what was printed."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))

    def run(name, *arguments):
        main([f"--images={tmp_path / 'in'}", f"--name={name}", "--resolution=4", *arguments])
        return load_dataset(name).images, capsys.readouterr().err

    return run


@pytest.mark.parametrize("file", KINDS)
def test_both_commands_read_a_picture_alike_and_say_how(prepare, tmp_path, capsys, file):
    picture, desired, said = KINDS[file]
    for copy in range(2):  # two pictures, for two are measured at least
        save(tmp_path / f"in/{copy}_{file}", picture)
    desired = desired.reshape(4, 4, -1)
    prepared, line = prepare("some")
    measured = load_images(tmp_path / "in")
    lines = line, capsys.readouterr().err
    for images, printed in zip((prepared, measured), lines, strict=True):
        np.testing.assert_allclose(images.astype(int), np.stack([desired] * 2), rtol=0, atol=1)
        changes = (said,) if isinstance(said, str) else said or ()
        assert all(f"2 of 2 pictures: {change}" in printed for change in changes)
        assert printed.count("pictures:") == len(changes)


def test_another_background(prepare, tmp_path):
    for copy in range(2):
        save(tmp_path / f"in/{copy}.png", rgba(0))
    images, printed = prepare("some", "--background=#00ff00")
    assert (images[:, :, 2:] == (0, 255, 0)).all()
    assert "2 of 2 pictures: transparent parts laid on #00ff00" in printed
    assert (load_images(tmp_path / "in", background="lime")[:, :, 2:] == (0, 255, 0)).all()
    with pytest.raises(SystemExit):
        prepare("other", "--background=nocolour")


def test_channels(prepare, tmp_path):
    for copy in range(2):
        save(tmp_path / f"in/{copy}.png", Image.fromarray(RAMP))
    grey = np.stack([RAMP[..., None]] * 2)
    assert "pictures:" not in prepare("grey")[1]
    np.testing.assert_array_equal(load_dataset("grey").images, grey)
    images, printed = prepare("wide", "--channels=3")
    np.testing.assert_array_equal(images, grey.repeat(3, axis=3))
    assert "2 of 2 pictures: grey repeated in 3 channels" in printed
    np.testing.assert_array_equal(load_images(tmp_path / "in", channels=3), images)

    save(tmp_path / "in/2.png", Image.fromarray(COLOURS))
    images, printed = prepare("mixed")
    assert images.shape == (3, 4, 4, 3)
    assert "2 of 3 pictures: grey repeated" in printed
    luma = np.asarray(Image.fromarray(COLOURS).convert("L"))[..., None]
    images, printed = prepare("made_grey", "--channels=1")
    assert "1 of 3 pictures: colours made grey" in printed
    assert any(np.array_equal(image, luma) for image in images)
    np.testing.assert_array_equal(load_images(tmp_path / "in", channels=1)[2], luma)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.float32), r"floats, from 0 to 255, are not in \[0, 1\]"),
        (np.full((4, 4), np.nan, np.float32), r"are not in \[0, 1\]"),
        (RAMP.astype(np.int32) * 257, "32 bits, whose range is unknown"),
    ],
)
def test_numbers_of_no_known_range(prepare, tmp_path, pixels, message):
    save(tmp_path / "in/0.tif", Image.fromarray(pixels))
    save(tmp_path / "in/1.png", Image.fromarray(RAMP))
    images, printed = prepare("some")
    assert len(images) == 1
    assert f"left out {tmp_path / 'in/0.tif'}: it" in printed
    with pytest.raises(EvaluationError, match=f"0.tif cannot be read: .*{message}"):
        load_images(tmp_path / "in")


def test_hidden_files_pipes_and_loops(tmp_path):
    kept = ["a/1.png", "a/b/2.PNG", "link/3.png"]
    skipped = [".4.png", ".cache/5.png", "__MACOSX/._6.png", "a/@eaDir/7.png", "notes.txt"]
    for file in (*kept[:2], "../elsewhere/3.png", *skipped):
        path = tmp_path / "in" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RAMP).save(path, "png")
    (tmp_path / "in/a/loop").symlink_to("..")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    assert find_pictures(tmp_path / "in") == kept
    assert len(load_images(tmp_path / "in")) == 3
    os.mkfifo(tmp_path / "in/pipe.png")
    with pytest.raises(EvaluationError, match=r"pipe.png cannot be read: it is no regular file"):
        load_images(tmp_path / "in")


def test_a_folder_takes_its_pixels_once(tmp_path):
    for i in range(30):
        Image.fromarray(np.full((256, 256, 3), i * 8, np.uint8)).save(tmp_path / f"{i:02}.png")
    tracemalloc.start()
    images = load_images(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * images.nbytes
