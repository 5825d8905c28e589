"""Embeddings of captions on disk, their scale, and the caption that a batch has of each image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.data import Dataset, Pipeline
from pdistill.data.pipeline import make_batch
from pdistill.data.text import (
    Embeddings,
    Whitened,
    content,
    draw_caption,
    first_captions,
    whitened,
    whitening,
)
from pdistill.networks import Text

CAPTIONS = (("a cat",), ("a dog", "a hound", "noto animal"), ("a car", "a cat"))
ABOUT = Embeddings(
    encoder=7, data="some:train", num=3, content=5, most=3, length=2, pooled=4, tokens=2
)


class Encode:
    """Embeddings that tell of which caption they are, and how often it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked += prompts
        number = np.array([len(prompt) + ord(prompt[-1]) / 128 for prompt in prompts], np.float32)
        words = np.array([len(prompt.split()) for prompt in prompts])
        return Text(
            mask=np.arange(3) < words[:, None],
            tokens=np.tile(number[:, None, None], (1, 3, 2)) + np.arange(3)[:, None] * 100,
            pooled=np.tile(number[:, None], (1, 4)),
        )


@pytest.fixture
def folder(tmp_path):
    ABOUT.write(tmp_path / "text", CAPTIONS, Encode())
    return tmp_path / "text"


def test_rows_of_all_captions(folder):
    rows = {name: a[:] for name, a in ABOUT.read(folder).items()}
    expected = {name: (a.shape, a.dtype) for name, a in ABOUT.shapes.items()}
    assert {name: (a.shape, a.dtype) for name, a in rows.items()} == expected
    assert rows["count"].tolist() == [[1], [3], [2]]
    one = Encode()
    for i, captions in enumerate(CAPTIONS):
        found = one(list(captions))
        num = len(captions)
        np.testing.assert_allclose(rows["pooled"][i, :num], found.pooled, rtol=1e-3)
        np.testing.assert_allclose(rows["tokens"][i, :num], found.tokens[:, :2], rtol=1e-3)
        np.testing.assert_array_equal(rows["mask"][i, :num], found.mask[:, :2])


def test_equal_captions_are_encoded_once_and_shards_that_are_there_never(folder, monkeypatch):
    encode = Encode()
    ABOUT.write(folder, CAPTIONS, encode)
    assert not encode.asked
    (folder / "00000-mask.npy").unlink()
    with pytest.raises(ValueError, match="half prepared, 1 of 1 shards are missing"):
        ABOUT.read(folder)
    ABOUT.write(folder, CAPTIONS, encode)
    assert sorted(encode.asked) == sorted({c for each in CAPTIONS for c in each})


def test_a_folder_of_something_else(folder):
    other = Embeddings(**{**ABOUT.__dict__, "encoder": 8})
    with pytest.raises(ValueError, match="embeddings with another encoder"):
        other.read(folder)
    np.save(folder / "00000-pooled.npy", np.zeros((2, 3, 4), np.float16))
    with pytest.raises(ValueError, match="is damaged: its pooled are not"):
        ABOUT.read(folder)
    (folder / "00000-pooled.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="is damaged"):
        ABOUT.read(folder)


def test_captions_are_told_apart_by_the_images_that_they_belong_to():
    ways = [[("a", "b"), ("c",)], [("a",), ("b", "c")], [("b", "a"), ("c",)], [("a b",), ("c",)]]
    assert len({content(captions) for captions in ways}) == 4
    assert content([["a", "b"], ["c"]]) == content(ways[0])


def test_shards(tmp_path, monkeypatch):
    """Rows over several files are those of one."""
    whole = tmp_path / "whole"
    ABOUT.write(whole, CAPTIONS, Encode())
    monkeypatch.setattr("pdistill.data.text.SHARD", 2)
    ABOUT.write(tmp_path / "parts", CAPTIONS, Encode())
    assert len(list((tmp_path / "parts").glob("*-mask.npy"))) == 2
    parts = ABOUT.read(tmp_path / "parts")
    monkeypatch.undo()
    for name, a in ABOUT.read(whole).items():
        np.testing.assert_array_equal(parts[name][:], a[:])
        np.testing.assert_array_equal(parts[name][np.array([2, 0]), 0], a[:][[2, 0], 0])


def test_each_caption_is_drawn_as_often(folder):
    rows = {name: jnp.asarray(a[:]) for name, a in ABOUT.read(folder).items()}
    num = 3000
    drawn = jax.vmap(lambda key: draw_caption(key, rows).pooled[:, 0])(
        jax.random.split(jax.random.key(0), num)
    )
    for i, captions in enumerate(CAPTIONS):
        known = np.asarray(rows["pooled"][i, : len(captions), 0], np.float32)
        found = np.array([(np.asarray(drawn[:, i]) == k).mean() for k in known])
        assert found.sum() == 1
        np.testing.assert_allclose(found, 1 / len(captions), atol=0.04)  # four deviations


def test_batches_on_the_device_and_from_disk_are_the_same(folder):
    """Of the same images, and with the rows' mask and tokens of one and the same caption."""
    rows = ABOUT.read(folder)
    images = np.zeros((3, 4, 4, 1), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    found = []
    for resident in (True, False):
        arrays = {name: a[:] for name, a in rows.items()} if resident else rows
        data = Dataset("some:train", images, np.arange(3), 3).with_column("text", arrays, True)
        pipeline = Pipeline(data, 4, seed=0, resident=resident)
        with pipeline.iterator(1) as batches:
            raw = {name: jnp.asarray(a[0]) for name, a in next(batches).items()}
        resident_arrays = {n: jnp.asarray(a) for n, a in pipeline.resident_arrays().items()}
        found.append(make_batch(resident_arrays, raw, jax.random.key(1), flip=False))
    one, other = found
    jax.tree.map(np.testing.assert_array_equal, one, other)
    text = one["text"]
    for label, mask, tokens, pooled in zip(
        one["label"], text.mask, text.tokens, text.pooled, strict=True
    ):
        encoded = Encode()(list(CAPTIONS[label]))
        j = np.abs(encoded.pooled[:, 0] - pooled[0]).argmin()
        np.testing.assert_allclose(pooled, encoded.pooled[j], rtol=1e-3)
        np.testing.assert_allclose(tokens, encoded.tokens[j, :2], rtol=1e-3)
        np.testing.assert_array_equal(mask, encoded.mask[j, :2])


def test_first_captions(folder):
    shards, rows = ABOUT.read(folder), np.array([2, 0])
    for name in ("mask", "pooled", "tokens"):  # alone
        np.testing.assert_array_equal(shards[name][rows, 0], shards[name][rows][:, 0])
    asked = []

    class Rows:
        def __getitem__(self, wanted):
            asked.append(wanted)
            return shards["pooled"][wanted]

    assert first_captions({"mask": Rows()}).mask[rows].shape == (2, 4)
    assert asked[0][1] == 0  # no others are read
    text = first_captions(shards)
    pooled = text.pooled[rows]
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, Encode()(["a car", "a cat"]).pooled, rtol=1e-3)
    assert text.mask[rows].dtype == bool


def test_whitening():
    """Directions of much variance have one, and those of little less, by the floor."""
    rng = np.random.default_rng(0)
    deviations = np.array([5.0, 1.0, 0.1])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rows = (rng.normal(size=(4000, 3)) * deviations) @ turn.T + 7.0
    mean, matrix = whitening(rows)
    found = np.cov(whitened(rows, mean, matrix).T)
    floor = 0.3 * (deviations**2).mean()
    wanted = np.sort(deviations**2 / (deviations**2 + floor))
    np.testing.assert_allclose(np.sort(np.diag(found)), wanted, rtol=0.08)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-3)
    np.testing.assert_allclose(whitened(rows, mean, matrix).mean(0), 0, atol=1e-3)
    read = Whitened(rows.astype(np.float16), mean, matrix)
    np.testing.assert_allclose(read[:5], whitened(rows[:5], mean, matrix), atol=0.02)


def test_whitening_of_one_caption():
    mean, matrix = whitening(np.ones((3, 4)))
    assert np.isfinite(matrix).all()
    np.testing.assert_array_equal(whitened(np.ones((2, 4)), mean, matrix), 0)
