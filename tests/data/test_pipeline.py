import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.data import Dataset, Pipeline, make_batch, to_float, to_uint8


def dataset(num):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, 4, 5, 3), np.uint8)
    return Dataset("noise:train", images, np.arange(num, dtype=np.int32), num_labels=num)


def epochs(num, batch_size, seed, count=3):
    """The order of `count` epochs, one a row; batches may straddle them."""
    pipeline = Pipeline(dataset(num), batch_size, seed)
    steps = -(-count * num // batch_size)
    rows = np.concatenate([pipeline.rows(step) for step in range(steps)])
    return rows[: count * num].reshape(count, num)


# --- Levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_levels_make_the_round_trip(jit):
    levels = np.arange(256, dtype=np.uint8)
    image = jit(to_float)(levels)
    assert image.dtype == jnp.float32
    # jit multiplies by 1 / 127.5 and fuses the subtraction.
    np.testing.assert_allclose(image, np.linspace(-1, 1, 256), rtol=0, atol=1.5e-7)
    back = jit(to_uint8)(image)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)


def test_to_uint8_rounds_to_the_nearest_level():
    levels = np.arange(255)
    for offset, desired in ((0.49, levels), (0.51, levels + 1)):
        image = ((levels + offset) / 127.5 - 1).astype(np.float32)
        np.testing.assert_array_equal(to_uint8(image), desired)


def test_to_uint8_clips():
    image = np.array([-np.inf, -3.0, -1.001, 1.001, 3.0, np.inf], np.float32)
    assert to_uint8(image).tolist() == [0, 0, 0, 255, 255, 255]


# --- Order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 5, 24])
def test_every_epoch_has_every_row_once_in_another_order(batch_size):
    order = epochs(12, batch_size, seed=0)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(12), (3, 1)))
    assert len(np.unique(order, axis=0)) == 3


def test_order_is_a_function_of_the_seed():
    np.testing.assert_array_equal(epochs(50, 10, seed=1), epochs(50, 10, seed=1))
    # Two independent permutations of 50 agree in one place on average.
    assert np.mean(epochs(50, 10, seed=1) == epochs(50, 10, seed=2)) < 0.1


def test_iterator_gives_the_rows_of_its_steps():
    pipeline = Pipeline(dataset(12), batch_size=5, seed=3)
    batches = pipeline.iterator(substeps=2)
    for start in (0, 2, 4):
        index = next(batches)["index"]
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, [pipeline.rows(start), pipeline.rows(start + 1)])


def test_iterator_goes_on_from_a_saved_state():
    pipeline = Pipeline(dataset(12), batch_size=5, seed=3, resident=False)
    batches = pipeline.iterator(substeps=2)
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    desired = [next(batches) for _ in range(3)]
    again = pipeline.iterator(substeps=2)
    again.set_state(state)
    for batch in desired:
        chex.assert_trees_all_equal(next(again), batch)
    assert again.get_state() == batches.get_state()


def test_processes_read_their_parts_of_the_same_batches():
    """Also where a mesh has their devices in another order."""
    pipeline = Pipeline(dataset(12), batch_size=6, seed=0)
    whole = next(pipeline.iterator(4))["index"]
    for columns in ([0, 1, 2], [3, 4, 5], [0, 3]):
        part = next(pipeline.iterator(4, np.array(columns)))["index"]
        np.testing.assert_array_equal(part, whole[:, columns])


# --- Batches ------------------------------------------------------------------------------------


def batch_of(pipeline, key, flip, columns=()):
    raw = jax.tree.map(lambda a: a[0], next(pipeline.iterator()))
    return jax.jit(make_batch, static_argnames=("flip", "columns"))(
        pipeline.resident_arrays(), raw, key, flip=flip, columns=columns
    )


@pytest.mark.parametrize("resident", [True, False])
def test_batch_is_the_rows_of_the_data(resident):
    data = dataset(12)
    pipeline = Pipeline(data, batch_size=5, seed=0, resident=resident)
    batch, rows = batch_of(pipeline, jax.random.key(0), flip=False), pipeline.rows(0)
    np.testing.assert_array_equal(batch["label"], data.labels[rows])
    np.testing.assert_array_equal(to_uint8(batch["image"]), data.images[rows])


def test_resident_and_streamed_batches_are_the_same():
    batches = [
        batch_of(Pipeline(dataset(12), 5, seed=0, resident=resident), jax.random.key(7), flip=True)
        for resident in (True, False)
    ]
    chex.assert_trees_all_equal(*batches)


def test_only_resident_data_goes_to_the_device():
    resident, streamed = (Pipeline(dataset(12), 5, seed=0, resident=r) for r in (True, False))
    assert set(next(resident.iterator())) == {"index"}
    assert set(next(streamed.iterator())) == {"image", "label"}
    assert streamed.resident_arrays() == {}


def test_flip_mirrors_the_width_of_half_of_the_images():
    data = dataset(2000)
    pipeline = Pipeline(data, batch_size=2000, seed=0)
    flipped = batch_of(pipeline, jax.random.key(0), flip=True)
    image, straight = to_uint8(flipped["image"]), data.images[pipeline.rows(0)]
    mirrored = np.any(image != straight, axis=(1, 2, 3))
    desired = np.where(mirrored[:, None, None, None], straight[:, :, ::-1, :], straight)
    np.testing.assert_array_equal(image, desired)
    np.testing.assert_array_equal(flipped["label"], data.labels[pipeline.rows(0)])
    assert abs(np.mean(mirrored) - 0.5) < 0.045  # four standard deviations of 2000 coins
    other = batch_of(pipeline, jax.random.key(1), flip=True)
    assert np.any(other["image"] != flipped["image"])


# --- Columns ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Number:
    """A column of numbers, ten more where the image is mirrored."""

    name: str = "number"

    def batch(self, rows, mirrored):
        value = rows["value"]
        return value if mirrored is None else value + 10 * mirrored[:, 0, 0, 0].astype(int)


def with_numbers(num, rows):
    """Data with numbers: each image's own label, or `rows` of them that are none's."""
    values = np.arange(rows, dtype=np.int32)
    columns = {"value": values, "label": values % 3}
    return dataset(num).with_column("number", columns, aligned=rows == num)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("rows", [12, 7], ids=["aligned", "of its own order"])
def test_a_batch_has_the_rows_of_its_columns(resident, rows):
    pipeline = Pipeline(with_numbers(12, rows), batch_size=5, seed=0, resident=resident)
    key, columns = jax.random.key(0), (Number(),)
    batch = batch_of(pipeline, key, flip=False, columns=columns)
    expected = pipeline.rows(0, "index" if rows == 12 else "number/index")
    np.testing.assert_array_equal(batch["number"], expected)
    np.testing.assert_array_equal(batch["label"], pipeline.rows(0))
    flipped = batch_of(pipeline, key, flip=True, columns=columns)
    images = (np.asarray(to_uint8(found["image"])) for found in (batch, flipped))
    mirrored = np.any(np.not_equal(*images), axis=(1, 2, 3))
    assert 0 < mirrored.sum() < 5
    np.testing.assert_array_equal(flipped["number"], expected + 10 * mirrored)


def test_a_column_of_its_own_order_has_epochs_of_its_own():
    pipeline = Pipeline(with_numbers(12, 7), batch_size=7, seed=0)
    order = np.array([pipeline.rows(step, "number/index") for step in range(3)])
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(7), (3, 1)))
    np.testing.assert_array_equal(pipeline.rows(0), Pipeline(dataset(12), 7, seed=0).rows(0))


@pytest.mark.parametrize("rows", [12, 7], ids=["aligned", "of its own order"])
def test_of_some_labels(rows):
    """An aligned column follows the images; another one keeps the rows of these labels."""
    part = with_numbers(12, rows).of_labels([1, 5])
    np.testing.assert_array_equal(part.labels, [1, 5])
    assert len(part) == 2
    values = part.columns["number"].rows["value"]
    np.testing.assert_array_equal(values, [1, 5] if rows == 12 else [1, 4])
