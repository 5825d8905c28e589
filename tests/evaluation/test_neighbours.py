import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from pdistill.evaluation import NeighbourRatio, nearest_distances
from pdistill.evaluation.neighbours import nearest_images, nearest_rows

RNG = np.random.default_rng(0)
TRAIN, HELD_OUT = RNG.uniform(-1, 1, (2, 300, 10))


@pytest.mark.parametrize("block", [1024, 7, 50])
def test_distances_against_scipy(block):
    features = RNG.normal(size=(50, 10))
    desired = cdist(features, TRAIN).min(axis=1)
    np.testing.assert_allclose(nearest_distances(features, TRAIN, block), desired, rtol=1e-12)


def test_ratio_by_its_definition():
    samples = RNG.normal(size=(50, 10))
    ours, theirs = (np.median(cdist(a, TRAIN).min(axis=1)) for a in (samples, HELD_OUT))
    actual = NeighbourRatio(TRAIN, HELD_OUT)(samples)
    np.testing.assert_allclose(actual, ours / theirs, rtol=1e-12)


def test_ratio_of_copies_and_of_new_images():
    # |x|^2 - 2 x.y + |y|^2 is zero only up to rounding, of which this is the root.
    assert NeighbourRatio(TRAIN, HELD_OUT)(TRAIN[:50]) < 1e-7
    assert NeighbourRatio(TRAIN, HELD_OUT)(HELD_OUT) == 1
    # Other images from the same distribution, and images from elsewhere.
    new = RNG.uniform(-1, 1, (300, 10))
    assert 0.9 < NeighbourRatio(TRAIN, HELD_OUT)(new) < 1.1
    assert NeighbourRatio(TRAIN, HELD_OUT)(new + 2) > 2


@pytest.mark.parametrize("sizes", [[50], [7, 3, 40], [1] * 50, [25, 0, 25]], ids=str)
def test_nearest_rows_of_any_blocks(sizes):
    rng = np.random.default_rng(0)
    rows, reference = rng.normal(size=(6, 5)), rng.normal(size=(50, 5))
    found, squares = nearest_rows(rows, np.split(reference, np.cumsum(sizes)[:-1]), 3)
    distances, desired = NearestNeighbors(n_neighbors=3).fit(reference).kneighbors(rows)
    np.testing.assert_array_equal(found, desired)
    np.testing.assert_allclose(squares, distances**2, rtol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_copies_of_mirrors(share):
    """They are copies where models are trained on mirrors, as the picture shows; else they are not.

    Held-out images are measured by the same rows.
    """
    train, held_out = RNG.uniform(-1, 1, (2, 60, 3, 4, 2))
    count = int(share * 60)
    samples = np.concatenate([train[:count, :, ::-1], train[count:]])
    rows, others, copies = (a.reshape(60, -1) for a in (train, held_out, samples))
    ratio = NeighbourRatio(rows, others, (3, 4, 2))
    assert ratio(copies) < 1e-7
    both = np.concatenate([rows, train[:, :, ::-1].reshape(60, -1)])
    near = np.median(cdist(others, both).min(axis=1))
    new = RNG.uniform(-1, 1, (40, 24))
    desired = np.median(cdist(new, both).min(axis=1)) / near
    assert ratio(new) == pytest.approx(desired, rel=1e-12)
    assert (NeighbourRatio(rows, others)(copies) < 1e-7) == (share < 1)

    def nearest(mirrored):
        return nearest_images(
            samples[::7], train, lambda a: a.reshape(len(a), -1), [rows], 2, mirrored=mirrored
        )

    np.testing.assert_array_equal(nearest(True)[:, 0], samples[::7])
    assert nearest(True).shape == (9, 2, 3, 4, 2)
    assert np.array_equal(nearest(False)[:, 0], samples[::7]) == (share == 0)
