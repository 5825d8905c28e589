"""Margins against the spread over independent draws, and against distances computed one by one."""

import numpy as np
import pytest
import scipy.stats

from pdistill.evaluation import Manifold, Moments, Statistics, frechet_distance
from pdistill.evaluation.jackknife import (
    GROUPS,
    NORMAL,
    Kept,
    frechet_margin,
    random_groups,
    recall_margin,
    share_margin,
)

T = scipy.stats.t.ppf(0.975, GROUPS - 1)


def statistics(features):
    return Moments().add(features).statistics()


def gaussian(dim, seed=0):
    root = np.random.default_rng(seed).normal(size=(dim, dim)) / np.sqrt(dim)
    return Statistics(np.zeros(dim), root @ root.T + 0.1 * np.eye(dim))


def draws(num, dim, shift, scale, times=150):
    """Distances and margins of sets of `num` rows, and what they are of on average."""
    reference, rng = gaussian(dim), np.random.default_rng(1)
    factor = scale * np.linalg.cholesky(reference.covariance)
    found = []
    for _ in range(times):
        rows = rng.normal(size=(num, dim)) @ factor.T + shift
        samples = statistics(rows)
        margin = frechet_margin([rows[:7], rows[7:]], samples, reference)
        found.append((frechet_distance(samples, reference), margin))
    return np.transpose(found)


@pytest.mark.parametrize(
    ("num", "dim", "shift", "scale"),
    [(300, 8, 0.3, 1.3), (30, 40, 0.3, 1.3), (60, 40, 0.5, 0.9)],
    ids=["many", "fewer than features", "about as many"],
)
def test_the_margin_is_the_spread_over_draws(num, dim, shift, scale):
    """The interval has the distance that sets of this size have on average, 95 times in 100."""
    distances, margins = draws(num, dim, shift, scale)
    spread = np.sqrt(np.mean(margins**2)) / T
    assert spread == pytest.approx(distances.std(), rel=0.25)
    covered = np.mean(np.abs(distances - distances.mean()) < margins)
    assert 0.9 < covered < 0.99


def test_the_margin_of_perfect_samples_is_on_the_safe_side():
    distances, margins = draws(300, 8, 0.0, 1.0)
    spread = np.sqrt(np.mean(margins**2)) / T
    assert distances.std() < spread < 1.8 * distances.std()


@pytest.mark.parametrize("num", [25, 61])
def test_it_leaves_out_groups(num):
    """By few rows or many, the distances are those of the others, computed the ordinary way."""
    dim = 40 if num == 25 else 12
    rows = np.random.default_rng(2).normal(0.2, 1.5, (num, dim))
    reference = gaussian(dim)
    parts = [rows[:4].astype(np.float32), rows[4:4], rows[4:]]
    rows = np.concatenate(parts)
    groups = random_groups(num)
    desired = [
        frechet_distance(statistics(rows[groups != group]), reference) for group in range(GROUPS)
    ]
    error = np.sqrt(np.sum((desired - np.mean(desired)) ** 2) * (GROUPS - 1) / GROUPS)
    actual = frechet_margin(parts, statistics(rows), reference)
    assert actual == pytest.approx(T * error, rel=1e-6)
    assert frechet_margin([rows[:19]], statistics(rows[:19]), reference) is None


def test_many_samples_are_not_all_kept(monkeypatch):
    """The margin is that of all, within what its own groups leave; whatever the batches were."""
    rows = np.random.default_rng(3).normal(0.3, 1.3, (4000, 6))
    reference = gaussian(6)
    monkeypatch.setattr("pdistill.evaluation.jackknife.KEPT", 1000 * 6)
    sets = []
    for splits in ([], [1, 700, 2500]):
        kept = Kept(4000)
        for part in np.split(rows, splits):
            kept.add(part)
        sets.append(np.concatenate(kept.parts))
    np.testing.assert_array_equal(*sets)
    assert 900 < len(sets[0]) < 1100
    assert sets[0].dtype == np.float32
    margins = [frechet_margin([part], statistics(rows), reference) for part in (sets[0], rows)]
    assert margins[0] == pytest.approx(margins[1], rel=0.6)
    unknown = Kept(0)
    unknown.add(rows)
    assert len(unknown.parts[0]) == 4000


def test_the_margin_of_recall_is_on_the_safe_side():
    """Samples that miss the tails, as often as not by other amounts."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 4))
    manifolds = [Manifold(0.7 * rng.normal(size=(150, 4))) for _ in range(60)]
    recalls = [manifold.contains(reference).mean() for manifold in manifolds]
    margins = [recall_margin(manifold, reference) for manifold in manifolds]
    spread = np.sqrt(np.mean(np.square(margins))) / T
    assert 0.5 < np.mean(recalls) < 0.9
    assert np.std(recalls) < spread < 1.8 * np.std(recalls)
    assert recall_margin(Manifold(reference[:19]), reference) is None


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_what_an_interval_has(share):
    """The mean over samples 95 times in 100; another sample's number 83 times, in 1.4 margins 95.

    All that can be found of 400 samples, weighed by how often it is.
    """
    counts = np.arange(401)
    often = scipy.stats.binom.pmf(counts, 400, share)
    margins = np.array([share_margin(count / 400, 400) for count in counts])
    apart = np.abs(counts[:, None] - counts) / 400
    assert often @ (np.abs(counts / 400 - share) <= margins) == pytest.approx(0.95, abs=0.01)
    assert often @ (apart <= margins[:, None]) @ often == pytest.approx(0.834, abs=0.02)
    assert often @ (apart <= 2**0.5 * margins[:, None]) @ often == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("num", [20, 47])
def test_groups_are_random_and_of_one_size(num):
    """Also of rows whose labels take turns, ten of them: no group is of one label."""
    groups = random_groups(num)
    assert groups.shape == (num,)
    assert np.ptp(np.bincount(groups, minlength=GROUPS)) <= 1
    assert len(set(groups[::GROUPS])) > 1


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_the_margin_of_a_share(share):
    """Over all counts that there can be, weighed by how often they are found."""
    num, counts = 60, np.arange(61)
    margins = np.array([share_margin(count / num, num) for count in counts])
    inside = np.abs(counts / num - share) <= margins
    assert 0.93 < scipy.stats.binom.pmf(counts, num, share) @ inside <= 1
    assert share_margin(1.0, num) > 0
    assert share_margin(0.5, 10**6) == pytest.approx(NORMAL * 0.5 / 1000, rel=1e-3)
