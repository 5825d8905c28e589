import importlib

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from pdistill.evaluation import Manifold, precision_recall
from pdistill.evaluation.jackknife import GROUPS, random_groups

module = importlib.import_module("pdistill.evaluation.precision_recall")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, of which the last is not full, from few rows."""
    monkeypatch.setattr(module, "BLOCK", 128)


def by_definition(points, features, k=3):
    """Whether each point is in a ball, in float64."""
    distances, _ = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()  # of other rows
    return (cdist(points, features) <= distances[:, -1]).any(axis=1)


# --- Manifold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("num", [100, 128, 129, 300])
def test_radii_against_scikit_learn(rng, num, k):
    features = rng.normal(size=(num, 10))
    distances, _ = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()
    # A float32 error of 1e-6 in squares of norm and radius near 10 and 1.
    np.testing.assert_allclose(Manifold(features, k).radii, distances[:, -1], rtol=1e-5)


@pytest.mark.parametrize(("num", "points"), [(100, 300), (300, 100), (256, 256)])
def test_contains_against_scikit_learn(rng, num, points):
    """Rounding decides for one point in 1e5."""
    features, points = rng.normal(size=(num, 4)), 1.5 * rng.normal(size=(points, 4))
    desired = by_definition(points, features)
    assert 0.2 < desired.mean() < 0.9
    np.testing.assert_array_equal(Manifold(features).contains(points), desired)


def test_features_far_from_the_origin(rng):
    """Squares of 1e8 would drown distances near 1 in float32; their centre is subtracted first."""
    features, points = 1e3 + rng.normal(size=(2, 300, 100)).astype(np.float32)
    points[:150] = features[:150] + 0.9 * (points[:150] - features[:150])
    desired = by_definition(points, features)
    assert 0.1 < desired.mean() < 0.9
    np.testing.assert_array_equal(Manifold(features).contains(points), desired)


@pytest.mark.parametrize("size", [0.005, 2e-6])
def test_near_neighbours_far_from_the_centre(rng, size):
    """Two clusters, whose spacing is 1 % or less of the distance to the centre, are resolved."""
    place = np.repeat(np.eye(200)[:2], 200, axis=0)
    features = place + size * sphere(rng, 400, 200)
    manifold = Manifold(features)
    assert manifold.contains(features + 0.8 * size * sphere(rng, 400, 200)).all()
    assert not manifold.contains(place + 3 * size * sphere(rng, 400, 200)).any()


def sphere(rng, num, dim):
    """Rows of norm 1; the distance of two is near sqrt 2 in many dimensions."""
    rows = rng.normal(size=(num, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_sizes(rng):
    features = rng.normal(size=(3, 2))
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"more than k rows; got 3 and k = {k}"):
            Manifold(features, k)
    with pytest.raises(ValueError, match=r"must be \[P, 2\]; got shape \(5, 1\)"):
        Manifold(features, 2).contains(np.zeros((5, 1)))


@pytest.mark.parametrize("num", [40, 300])
def test_without_each_group(rng, num):
    """As manifolds of the other rows tell."""
    features, points = rng.normal(size=(num, 4)), 1.5 * rng.normal(size=(200, 4))
    groups = random_groups(num)
    desired = [by_definition(points, features[groups != g]) for g in range(GROUPS)]
    found = Manifold(features).contains_without(groups, points)
    np.testing.assert_array_equal(found, desired)
    assert len(set(found.sum(axis=1))) > 1


def test_features_that_are_not_finite(rng):
    features = rng.normal(size=(9, 2))
    with pytest.raises(ValueError, match="not finite"):
        _ = Manifold(np.where(np.eye(9, 2), np.nan, features)).radii
    with pytest.raises(ValueError, match="not finite"):
        Manifold(features).contains(np.array([[0, np.inf]]))


# --- Precision and recall -----------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 64, 2048])
@pytest.mark.parametrize("copies", [1, 2, 6])
def test_copies_of_the_reference_have_both(rng, dim, copies):
    """Six copies have radius zero, which rounding must not push a copy out of."""
    reference = np.tile(rng.exponential(size=(50, dim)), (copies, 1))
    assert precision_recall(rng.permutation(reference), reference) == (1, 1)
    assert precision_recall(reference[:50], reference) == (1, 1)


def test_dropped_mode(rng):
    """Samples of one mode of two: each is real, half of the reference is missed."""
    reference = rng.uniform(size=(1000, 2)) + np.repeat([[0, 0], [5, 5]], 500, axis=0)
    precision, recall = precision_recall(rng.uniform(size=(500, 2)), reference)
    assert precision > 0.95
    assert 0.475 < recall <= 0.5


def test_spread_samples(rng):
    """Samples of an invented mode as well: half of them are not real, nothing is missed."""
    samples = rng.uniform(size=(1000, 2)) + np.repeat([[0, 0], [5, 5]], 500, axis=0)
    precision, recall = precision_recall(samples, rng.uniform(size=(500, 2)))
    assert 0.475 < precision <= 0.5
    assert recall > 0.95


@pytest.mark.parametrize("shift", [(0.3, 0), (0.5, 0.2)])
def test_shifted_boxes(rng, monkeypatch, shift):
    """Precision and recall are the overlap (1 - a) (1 - b), up to its edge.

    A ball with k of N points has the radius r = sqrt(k / (pi N)) = 0.015. The balls overhang the
    edge of length L by about r, those in the corner more, and leave some gaps.
    """
    monkeypatch.setattr(module, "BLOCK", 1024)
    num, k = 4000, 3
    overlap = (1 - shift[0]) * (1 - shift[1])
    edge = sum(1 - a for a, b in zip(shift, shift[::-1], strict=True) if b)
    radius = np.sqrt(k / (np.pi * num))
    found = precision_recall(rng.uniform(size=(num, 2)) + shift, rng.uniform(size=(num, 2)), k=k)
    for value in found:
        assert overlap - radius < value < overlap + 2 * radius * edge
