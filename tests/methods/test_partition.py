"""Partitions of labels: each label once, parts of equal size."""

import itertools

import numpy as np
import pytest

from pdistill.methods.parts.partition import by_balanced_kmeans, by_blocks, by_lists, routes


@pytest.mark.parametrize(("labels", "parts"), [(c, k) for c in (1, 2, 7, 10) for k in range(1, c)])
def test_blocks_and_kmeans(labels, parts):
    """docs/methods/multi_student.md, A1."""
    embeddings = np.random.RandomState(0).randn(labels, 3)
    for found in (by_blocks(labels, parts), by_balanced_kmeans(embeddings, parts)):
        assert sorted(itertools.chain(*found)) == list(range(labels))
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 1
        assert [routes(found)[label] for label in found[-1]] == [parts - 1] * sizes[-1]
    assert by_balanced_kmeans(embeddings, parts) == by_balanced_kmeans(embeddings, parts)


def test_blocks_are_consecutive():
    assert by_blocks(10, 3) == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_kmeans_finds_what_is_near():
    """Two clouds, their labels mixed; with a third of the labels in one, the sizes still hold."""
    embeddings = np.array([[0.0], [9.0], [0.1], [9.1], [0.2], [9.2]])
    assert by_balanced_kmeans(embeddings, 2) == ((0, 2, 4), (1, 3, 5))
    uneven = np.array([[0.0], [0.1], [0.2], [4.0], [9.0], [9.1]])
    assert by_balanced_kmeans(uneven, 2) == ((0, 1, 2), (3, 4, 5))


@pytest.mark.parametrize("lists", [((0, 1),), ((0, 1), (1, 2)), ((0, 1, 2), ()), ((0, 1, 2, 3),)])
def test_lists_that_are_no_partition(lists):
    with pytest.raises(ValueError, match="must be in one list"):
        by_lists(lists, 3)


def test_lists():
    assert by_lists([[2, 0], [1]], 3) == ((2, 0), (1,))
    assert routes(((2, 0), (1,))) == (0, 1, 0)
    for parts in (0, 4):
        with pytest.raises(ValueError, match="parts must be 1 to the 3 labels"):
            by_blocks(3, parts)
