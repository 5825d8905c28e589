import time

import numpy as np
import pytest
import scipy.linalg

from pdistill.data import Dataset
from pdistill.evaluation import Evaluator, NeighbourRatio, draw

RNG = np.random.default_rng(0)
METRICS = ("fd_pixels", "nearest_neighbour_ratio")


def dataset(split, num, low, high):
    images = RNG.integers(low, high, (num, 2, 2, 1), np.uint8)
    return Dataset(f"noise:{split}", images, np.zeros(num, np.int32), num_labels=1)


TRAIN, TEST, HELD_OUT = (
    dataset("train", 60, 0, 256), dataset("test", 20, 0, 200), dataset("held_out", 30, 0, 256),
)  # fmt: skip
EVALUATOR = Evaluator([TRAIN, TEST], HELD_OUT, METRICS)


def scaled(images):
    return images.reshape(len(images), -1) / 127.5 - 1


def frechet(a, b):
    a, b = scaled(a), scaled(b)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)


# --- Evaluator ----------------------------------------------------------------------------------


def test_a_number_for_each_metric_and_reference():
    """Frechet distances take as many samples as the reference has; the ratio takes all."""
    assert EVALUATOR.num_samples == 60
    samples = RNG.integers(50, 256, (80, 2, 2, 1), np.uint8)
    found = EVALUATOR.measure(samples)
    assert [(m.metric, m.reference, m.num_samples) for m in found] == [
        ("fd_pixels", "noise:train", 60),
        ("fd_pixels", "noise:test", 20),
        ("nearest_neighbour_ratio", "noise:train", 80),
    ]
    desired = [
        frechet(samples[:60], TRAIN.images),
        frechet(samples[:20], TEST.images),
        NeighbourRatio(scaled(TRAIN.images), scaled(HELD_OUT.images))(scaled(samples)),
    ]
    np.testing.assert_allclose([m.value for m in found], desired, rtol=1e-10)
    assert [(metric, d.name) for metric, d in EVALUATOR.pairs()] == [
        (m.metric, m.reference) for m in found
    ]


def test_copies_of_the_training_set():
    to_train, to_test, ratio = (m.value for m in EVALUATOR.measure(TRAIN.images))
    assert abs(to_train) < 1e-12
    assert to_test > 0.01
    assert ratio < 1e-7


def test_fewer_samples_than_the_reference_has():
    samples = RNG.integers(50, 256, (10, 2, 2, 1), np.uint8)
    found = EVALUATOR.measure(samples)
    assert {m.num_samples for m in found} == {10}
    np.testing.assert_allclose(found[0].value, frechet(samples, TRAIN.images), rtol=1e-10)


def test_unknown_metric():
    with pytest.raises(ValueError, match=r"one of fd_pixels, .*ratio; got 'fid'"):
        Evaluator([TRAIN], TEST, ("fd_pixels", "fid"))


# --- Drawing ------------------------------------------------------------------------------------


def test_draw_joins_the_batches():
    batches = [TRAIN.images[:32], TRAIN.images[32:]]
    np.testing.assert_array_equal(draw(batches)[0], TRAIN.images)


def slow_batches(*seconds):
    for delay in seconds:
        time.sleep(delay)
        yield np.zeros((1, 2, 2, 1), np.uint8)


def test_time_leaves_out_the_first_batch():
    _, seconds = draw(slow_batches(0.5, 0.05, 0.05))
    assert 0.05 <= seconds < 0.15  # with the first one it would be 0.2


def test_time_of_a_single_batch():
    assert draw(slow_batches(0.1))[1] >= 0.1
