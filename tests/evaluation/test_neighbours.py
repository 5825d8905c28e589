import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pdistill.evaluation import nearest_distances, nearest_neighbour_ratio

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
    actual = nearest_neighbour_ratio(samples, HELD_OUT, TRAIN)
    np.testing.assert_allclose(actual, ours / theirs, rtol=1e-12)


def test_ratio_of_copies_and_of_new_images():
    # |x|^2 - 2 x.y + |y|^2 is zero only up to rounding, of which this is the root.
    assert nearest_neighbour_ratio(TRAIN[:50], HELD_OUT, TRAIN) < 1e-7
    assert nearest_neighbour_ratio(HELD_OUT, HELD_OUT, TRAIN) == 1
    # Other images from the same distribution, and images from elsewhere.
    new = RNG.uniform(-1, 1, (300, 10))
    assert 0.9 < nearest_neighbour_ratio(new, HELD_OUT, TRAIN) < 1.1
    assert nearest_neighbour_ratio(new + 2, HELD_OUT, TRAIN) > 2
