"""Classes by the nearest mean, against loops and against chance."""

import numpy as np

from pdistill.evaluation.nearest_mean import class_means, found_without_itself, nearest_mean


def test_each_row_is_left_out_of_its_own_mean():
    """As by a loop, of classes of several sizes whose labels have gaps; alone, none is found."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([2, 5, 6, 9], [3, 8, 20, 1]))
    features = rng.normal(size=(32, 6)).astype(np.float32) + 0.4 * labels[:, None] + 20
    classes, means = class_means(features, labels)
    assert classes.tolist() == [2, 5, 6, 9]
    desired = []
    for row, label in enumerate(labels):
        others = np.arange(32) != row
        if not np.any(labels[others] == label):
            desired.append(False)
            continue
        known, without = class_means(features[others], labels[others])
        [nearest] = nearest_mean(features[row : row + 1], without)
        desired.append(known[nearest] == label)
    found = found_without_itself(features, labels, classes, means)
    np.testing.assert_array_equal(found, desired)
    assert 0 < found.mean() < 1


def test_labels_without_meaning_are_found_by_chance():
    """Of 36 rows a class and 1,280 features, of which means with themselves find all."""
    features = np.random.default_rng(1).normal(size=(360, 1280)).astype(np.float32)
    labels = np.arange(360) % 10
    classes, means = class_means(features, labels)
    assert np.mean(nearest_mean(features, means) == labels) > 0.95
    found = found_without_itself(features, labels, classes, means)
    assert abs(found.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 360)
