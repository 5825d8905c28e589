"""Images from files, and the mistakes that are noticed in them."""

import numpy as np
import pytest
from PIL import Image

from pdistill.evaluation import EvaluationError, labels_follow, load_images
from pdistill.evaluation.images import DuplicateCounter

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), np.uint8)


def test_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(12))
    np.testing.assert_array_equal(load_images(tmp_path / "a.npz"), IMAGES)


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., :1]], ids=["colour", "grey"])
def test_a_folder(tmp_path, images):
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(tmp_path / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    np.testing.assert_array_equal(load_images(tmp_path), images)


def test_folders_that_cannot_be_measured(tmp_path):
    with pytest.raises(EvaluationError, match="there are no pictures"):
        load_images(tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    Image.fromarray(IMAGES[0, :3]).save(tmp_path / "1.png")
    with pytest.raises(EvaluationError, match=r"1.png has the shape \(3, 4, 3\) and .*0.png"):
        load_images(tmp_path)
    (tmp_path / "1.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(EvaluationError, match=r"1.png cannot be read"):
        load_images(tmp_path)


UNIT = np.linspace(0, 1, IMAGES.size, dtype=np.float32).reshape(IMAGES.shape)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UNIT, r"uint8 in 0 .. 255; got float32 from 0.0 to 1.0; .*x \* 255"),
        (2 * UNIT - 1, r"got float32 from -1.0 to 1.0; .*\(x \+ 1\) \* 127.5"),
        (np.where(UNIT > 0.5, np.nan, UNIT), "NaN or infinite"),
        (IMAGES.astype(np.int64), "got int64 .*; save them as uint8"),
        (np.round((UNIT + 1) * 127.5).astype(np.uint8), "no value is below 127"),
        (UNIT.astype(np.uint8), "no value is above 1"),
        (IMAGES[..., :2], r"C = 1 or 3"),
        (IMAGES[:1], "N of at least 2"),
        (IMAGES.transpose(0, 3, 1, 2), r"got \[12, 3, 5, 4\]"),
    ],
)
def test_arrays_that_cannot_be_measured(tmp_path, images, message):
    path = tmp_path / "images.npz"
    np.savez(path, images)
    with pytest.raises(EvaluationError, match=message) as error:
        load_images(path)
    assert str(path) in str(error.value)


def test_repeats():
    duplicates = DuplicateCounter()
    duplicates.add(IMAGES)
    assert duplicates.count == 0
    duplicates.add(IMAGES[[3, 3, 5]])
    assert duplicates.count == 3


def test_label_distributions():
    rng = np.random.default_rng(0)
    reference = rng.choice(4, 5000, p=[0.1, 0.2, 0.3, 0.4])
    for _ in range(50):  # at 1e-6, a false alarm in 50 has a chance of 5e-5
        assert labels_follow(rng.choice(reference, 1000), reference)
    assert not labels_follow(np.arange(1000) % 4, reference)
    assert not labels_follow(np.full(1000, 2), reference)
    assert not labels_follow(np.full(1000, 7), reference)
    assert labels_follow(np.zeros(9, int), np.zeros(100, int))


def test_labels_of_many_rare_classes():
    """Of 1,000 with frequencies of 1 / k, or of as many each; and all of one class."""
    rng = np.random.default_rng(0)
    falling = rng.choice(1000, 50_000, p=1 / np.arange(1, 1001) / np.sum(1 / np.arange(1, 1001)))
    for reference in (falling, np.arange(1000).repeat(3)):
        assert all(labels_follow(rng.choice(reference, 50), reference) for _ in range(50))
        assert not labels_follow(np.full(50, 7), reference)
        assert not labels_follow(np.arange(30) % 3, np.append(reference, [3] * 9000))
    assert labels_follow(np.array([1, 2, 2]), falling)  # too few to tell
