"""Which rows come of which metrics and references, and what is refused or doubted."""

import warnings

import numpy as np
import pytest

from pdistill.data import load_dataset
from pdistill.evaluation import (
    EvaluationError,
    EvaluationWarning,
    Evaluator,
    Manifold,
    NeighbourRatio,
    Reference,
    Statistics,
    StatisticsReference,
    precision_recall,
)
from pdistill.evaluation.jackknife import recall_margin
from pdistill.evaluation.kid import kernel_distance
from pdistill.evaluation.metrics import (
    FrechetDistance,
    InceptionScore,
    feature_space,
    parse_metrics,
)
from pdistill.evaluation.spectra import radial_spectrum
from pdistill.features import load_extractor

RNG = np.random.default_rng(0)


def images(num, low=0, high=256, shape=(2, 2, 1)):
    return RNG.integers(low, high, (num, *shape), np.uint8)


TRAIN = Reference("noise:train", images(60), labels=np.arange(60) % 3)
TEST = Reference("noise:test", images(20, 0, 200))
HELD_OUT = Reference("noise:held_out", images(30))
EVALUATOR = Evaluator([TRAIN, TEST], ("fd_pixels", "nearest_neighbour_ratio"), held_out=HELD_OUT)


def scaled(batch):
    return batch.reshape(len(batch), -1) / 127.5 - 1


def frechet(a, b):
    a, b = scaled(a), scaled(b)
    traces = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    products = (a - a.mean(0)) @ (b - b.mean(0)).T  # whose singular values are the root's
    root = np.linalg.norm(products, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * root


def test_a_row_for_each_metric_and_reference():
    """Frechet distances take as many samples as the reference has; the ratio of the first too."""
    assert EVALUATOR.num_samples == 60
    samples = images(80, 50)
    rows = EVALUATOR.measure([samples[:30], samples[30:]])
    assert [(r["metric"], r["reference"], r["num_samples"]) for r in rows] == [
        ("fd_pixels", "noise:train", 60),
        ("fd_pixels", "noise:test", 20),
        ("nearest_neighbour_ratio", "noise:train", 60),
    ]
    ratio = NeighbourRatio(scaled(TRAIN.images), scaled(HELD_OUT.images))
    desired = [
        frechet(samples[:60], TRAIN.images),
        frechet(samples[:20], TEST.images),
        ratio(scaled(samples[:60])),
    ]
    np.testing.assert_allclose([r["value"] for r in rows], desired, rtol=1e-10)
    assert {(r["metric"], r["reference"]) for r in rows} == EVALUATOR.expected()
    assert {r["features"] for r in rows} == {"pixels"}


@pytest.mark.parametrize("sizes", [[80], [1, 79], [7] * 11 + [3]], ids=str)
def test_batching_changes_nothing(sizes):
    samples = np.random.default_rng(1).integers(50, 256, (80, 2, 2, 1), np.uint8)
    rows = EVALUATOR.measure(np.split(samples, np.cumsum(sizes)[:-1]))
    desired = EVALUATOR.measure([samples])
    for a, b in zip(rows, desired, strict=True):
        for name in {"value", "margin"} & set(b):
            np.testing.assert_allclose(a.pop(name), b.pop(name), rtol=1e-9)
        assert a == b


def test_a_fixed_number_of_samples():
    evaluator = Evaluator([TRAIN, TEST], ("fd_pixels",), num_samples=40)
    samples = images(70)
    rows = evaluator.measure([samples])
    assert [r["num_samples"] for r in rows] == [40, 40]
    np.testing.assert_allclose(rows[1]["value"], frechet(samples[:40], TEST.images), rtol=1e-10)


def test_copies_of_the_training_set():
    to_train, to_test, ratio = (r["value"] for r in EVALUATOR.measure([TRAIN.images]))
    assert abs(to_train) < 1e-12
    assert to_test > 0.01
    assert ratio < 1e-7


def test_precision_recall_and_kernel_distance_are_of_the_metrics_space():
    evaluator = Evaluator([TRAIN], ("fd_pixels", "precision_recall", "kid_pixels"))
    samples = images(50, 20)
    rows = {r["metric"]: r for r in evaluator.measure([samples])}
    assert list(rows) == ["fd_pixels", "precision", "recall", "kid_pixels"]
    desired = precision_recall(scaled(samples), scaled(TRAIN.images))
    assert (rows["precision"]["value"], rows["recall"]["value"]) == desired
    x, y = scaled(samples), scaled(TRAIN.images)
    assert rows["recall"]["margin"] == recall_margin(Manifold(x), y)
    assert rows["precision"]["features"] == rows["recall"]["features"] == "pixels"
    found = rows["kid_pixels"]["value"], rows["kid_pixels"]["standard_error"]
    np.testing.assert_allclose(found, kernel_distance(x, y), rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "space"),
    [
        (("fd_pixels", "fid"), "pixels"),
        (("precision_recall", "fd_efficientnet_lite0"), "efficientnet_lite0"),
        (("precision_recall",), "inception"),
        (("nearest_neighbour_ratio", "kid"), "inception"),
        (("precision_recall", "kid_pixels"), "pixels"),
    ],
)
def test_the_space_of_precision_and_recall(metrics, space):
    assert feature_space(metrics) == space


@pytest.mark.parametrize(
    ("num", "name"), [(50_000, "fid"), (10_000, "fid_10k"), (3000, "fid_3k"), (1437, "fid_1437")]
)
def test_only_50k_samples_are_called_fid(num, name):
    assert FrechetDistance("inception").names(num) == (name,)
    assert FrechetDistance("pixels").names(num) == ("fd_pixels",)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"metric must be one of fid, .*; got 'fdi'"):
        parse_metrics(("fd_pixels", "fdi"))
    with pytest.raises(ValueError, match=r"features must be one of pixels, .*; got 'pixel'"):
        parse_metrics(("precision_recall",), features="pixel")


# --- Statistics only ----------------------------------------------------------------------------


def test_a_reference_of_statistics_alone():
    mean, covariance = scaled(TRAIN.images).mean(0), np.cov(scaled(TRAIN.images).T)
    reference = StatisticsReference("file.npz", Statistics(mean, covariance))
    samples = images(50)
    (row,) = Evaluator([reference], ("fd_pixels",), num_samples=50).measure([samples])
    np.testing.assert_allclose(row["value"], frechet(samples, TRAIN.images), rtol=1e-10)
    with pytest.raises(EvaluationError, match=r"file.npz holds only mu and sigma, which precision"):
        Evaluator([reference], ("precision_recall",), features="pixels")
    wrong = StatisticsReference("other.npz", Statistics(np.zeros(3), np.eye(3)))
    batches = iter([samples[:9], samples[9:]])
    with pytest.raises(EvaluationError, match=r"other.npz holds mu of 3 features, and pixels of t"):
        Evaluator([wrong], ("fd_pixels",), num_samples=50).measure(batches)
    assert len(list(batches)) == 1  # which was not drawn


# --- Doubts -------------------------------------------------------------------------------------


def test_repeated_noise_is_noticed():
    half = images(30, shape=(4, 4, 1))
    evaluator = Evaluator([Reference("noise", images(60, shape=(4, 4, 1)))], ("fd_pixels",))
    with pytest.warns(EvaluationWarning, match="30 of 60 samples are exact copies"):
        rows = evaluator.measure([half, half])
    assert rows[0]["duplicates"] == 30
    assert "duplicates" not in evaluator.measure([images(60, shape=(4, 4, 1))])[0]


def test_too_few_samples_for_the_features_state_their_bias():
    """Samples of the reference itself measure about the bias that the row states."""
    reference = Reference("noise", images(2000, shape=(6, 6, 1)))
    evaluator = Evaluator([reference], ("fd_pixels",), num_samples=36)
    with pytest.warns(
        EvaluationWarning, match="36 samples and 2000 images of noise are few for 36 features"
    ):
        (row,) = evaluator.measure([images(36, shape=(6, 6, 1))])
    np.testing.assert_allclose(row["value"], row["bias"], rtol=0.2)


@pytest.mark.parametrize(("num", "others"), [(65, "train"), (360, "train"), (360, "test")])
def test_digits_state_the_bias_of_few_of_either(num, others):
    """Of more samples than features, too: about what real digits measure against others."""
    parts = [load_dataset("digits", split).images for split in ("train", "test")]
    images = np.random.default_rng(0).permutation(np.concatenate(parts))
    size = {"train": 1437, "test": 360}[others]
    reference = Reference(f"digits:{others}", images[:size], cached=False)
    evaluator = Evaluator([reference], ("fd_pixels",))
    with pytest.warns(EvaluationWarning, match=f"{num} samples and {size} images of digits"):
        rows = [evaluator.measure([np.roll(images[size:], i * 90, 0)[:num]])[0] for i in range(4)]
    assert {row["bias"] for row in rows} == {rows[0]["bias"]}
    assert 0.8 < rows[0]["bias"] / np.mean([row["value"] for row in rows]) < 1.3


def test_samples_made_for_images_of_the_reference_have_no_bias():
    """Copies of these with a little noise, each in its turn: nearer than other draws could be.

    To other images they are such draws.
    """
    evaluator = Evaluator([TRAIN, TEST], ("fd_pixels", "kid_pixels", "precision_recall"))
    copies = RNG.permutation(TRAIN.images) ^ images(60, 0, 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = evaluator.measure([copies], paired=True)
    assert rows[0]["value"] < 1e-3
    assert all("noise:test" in str(warning.message) for warning in told)
    sure = {"bias", "standard_error", "margin"}
    found = {(row["metric"], row["reference"][6:]): sure & set(row) for row in rows}
    share = {"margin"}
    assert found == {
        ("fd_pixels", "train"): set(),
        ("fd_pixels", "test"): {"bias", "margin"},
        ("kid_pixels", "train"): set(),
        ("kid_pixels", "test"): {"standard_error", "margin"},
        ("precision", "train"): share,
        ("precision", "test"): share,
        ("recall", "train"): set(),
        ("recall", "test"): share,
    }


@pytest.mark.parametrize("count", [20, 37, 170])
@pytest.mark.parametrize("num", [30, 1000])
def test_too_few_images_of_the_reference_state_their_bias(count, num):
    """Of any number of samples, and of some more images than there are features."""
    reference = Reference(f"noise{count}", images(count, shape=(6, 6, 1)))
    evaluator = Evaluator([reference], ("fd_pixels",), num_samples=num)
    told = f"^{num} samples and {count} images of noise{count} are few for 36 features"
    with pytest.warns(EvaluationWarning, match=told):
        [row] = evaluator.measure([images(num, shape=(6, 6, 1))])
    np.testing.assert_allclose(row["value"], row["bias"], rtol=0.25)


def test_a_bias_that_is_small_beside_the_distance_is_not_warned_of():
    reference = Reference("noise100", images(100, shape=(6, 6, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator = Evaluator([reference], ("fd_pixels",), num_samples=500)
        [row] = evaluator.measure([images(500, shape=(6, 6, 1)) // 4])
    assert 0 < row["bias"] < 0.1 * row["value"]


def test_labels_of_another_distribution():
    evaluator = Evaluator([TRAIN], ("fd_pixels",))
    samples = images(60)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*labels")
        assert evaluator.measure([samples])[0]["labels"] is None
        assert evaluator.measure([samples], RNG.integers(0, 3, 60))[0]["labels"] == "data"
    with pytest.warns(EvaluationWarning, match="not distributed as those of noise:train"):
        assert evaluator.measure([samples], np.zeros(60, int))[0]["labels"] == "other"


def test_channels_and_sizes():
    evaluator = Evaluator([TRAIN], ("fd_pixels",))
    with pytest.raises(EvaluationError, match=r"the sample set has the shape .*channels differ"):
        evaluator.measure([images(60, shape=(2, 2, 3))])
    with pytest.raises(EvaluationError, match=r"\(3, 3, 1\), noise:train \(2, 2, 1\): pixels"):
        evaluator.measure([images(60, shape=(3, 3, 1))])
    pair = [Reference("a", images(9, shape=(s, s, 3))) for s in (16, 32)]
    with pytest.warns(EvaluationWarning, match="each is resized by itself"):
        Evaluator(pair, ("kid_pixels_16",))
    with pytest.raises(EvaluationError, match="takes images of 8 x 8; noise:train has 2"):
        Evaluator([TRAIN], ("fd_classifier",))
    with pytest.raises(EvaluationError, match="needs held-out images"):
        Evaluator([TRAIN], ("nearest_neighbour_ratio",))


def test_pictures():
    """A training image among the samples finds itself; spectra are those of either set."""
    evaluator = Evaluator([TRAIN, TEST], ("fd_pixels",))
    samples = np.concatenate([TRAIN.images[7:9], images(40)])
    found = evaluator.pictures(samples)
    assert found["neighbours"].shape == (12, 4, 2, 2, 1)
    np.testing.assert_array_equal(found["neighbours"][:2, 0], TRAIN.images[7:9])
    np.testing.assert_array_equal(found["neighbours"][:2, 1], TRAIN.images[7:9])
    np.testing.assert_allclose(found["spectrum"], radial_spectrum(samples))
    assert found["data_spectrum"].shape == found["spectrum"].shape


def test_copies_are_of_the_training_images():
    """Whatever samples are compared with otherwise, such as held-out images alone."""
    metrics = "fd_pixels", "nearest_neighbour_ratio"
    evaluator = Evaluator([TEST], metrics, held_out=TEST, training=TRAIN)
    rows = evaluator.measure([TRAIN.images[:20]])
    assert [row["reference"] for row in rows] == ["noise:test", "noise:train"]
    assert {(row["metric"], row["reference"]) for row in rows} == evaluator.expected()
    assert rows[1]["value"] < 1e-7
    nearest = evaluator.pictures(TRAIN.images[:20])["neighbours"]
    np.testing.assert_array_equal(nearest[:, 1], TRAIN.images[:12])


def test_mirrors_of_training_images_are_copies_where_models_learn_from_them():
    mirrors = TRAIN.images[:, :, ::-1]
    for mirrored in (True, False):
        evaluator = Evaluator(
            [TRAIN], ("nearest_neighbour_ratio",), held_out=HELD_OUT, mirrored=mirrored
        )
        [row] = evaluator.measure([mirrors])
        assert (row["value"] < 1e-7) == mirrored
        assert row.get("mirrored", False) == mirrored
        assert row["held_out"] == "noise:held_out"
        nearest = evaluator.pictures(mirrors)["neighbours"]
        assert np.array_equal(nearest[:, 0], nearest[:, 1]) == mirrored


def test_held_out_images_that_are_not():
    same = Reference("elsewhere", TRAIN.images.copy())
    for held_out in (TRAIN, same):
        with pytest.raises(EvaluationError, match=f"{held_out.name}, are the training images the"):
            Evaluator([TRAIN], ("nearest_neighbour_ratio",), held_out=held_out)
    half = Reference("half", np.concatenate([TRAIN.images[7:27], images(20)]))
    Evaluator([TRAIN], ("nearest_neighbour_ratio",), held_out=half)
    more = Reference("more", np.concatenate([half.images, TRAIN.images[:1]]))
    with pytest.raises(EvaluationError, match=r"21 of the 41 held-out images are among noise:tr"):
        Evaluator([TRAIN], ("nearest_neighbour_ratio",), held_out=more)
    large = Reference("large", images(9, shape=(3, 3, 1)))
    with pytest.raises(EvaluationError, match=r"large has images of \(3, 3, 1\), noise:train of"):
        Evaluator([TRAIN], ("nearest_neighbour_ratio",), held_out=large)
    statistics = StatisticsReference("s", Statistics(np.zeros(4), np.eye(4)))
    with pytest.raises(EvaluationError, match="s holds only mu and sigma, and nearest_"):
        Evaluator([TRAIN], ("nearest_neighbour_ratio",), held_out=statistics)


def test_class_shares_of_digits():
    """Real digits: one class left out, and one of which there are twice as many.

    The classifier errs on 2 % of digits, so its shares are those of the labels to 0.015.
    """
    data = load_dataset("digits", "train")
    kept = data.labels != 3
    samples = np.concatenate([data.images[kept], data.images[data.labels == 7]])
    reference = [Reference(data.name, data.images, data.labels)]
    evaluator = Evaluator(reference, ("class_shares",))
    low, high = evaluator.measure([samples])
    assert (low["metric"], high["metric"]) == ("class_share_min", "class_share_max")
    assert low["value"] < 0.015
    sevens = 2 * np.sum(data.labels == 7) / len(samples)
    assert high["value"] == pytest.approx(sevens, abs=0.015)
    [accuracy] = Evaluator(reference, ("label_accuracy",)).measure([data.images], data.labels)
    assert accuracy["value"] > 0.97
    assert accuracy["labels"] == "data"
    alone = Evaluator([], ("label_accuracy", "class_shares")).measure([data.images], data.labels)
    assert alone[0]["value"] == accuracy["value"]
    assert {row["labels"] for row in alone} == {None}


def test_labels_by_the_nearest_class_mean():
    """Of real digits, and of digits whose labels are those of others; and of the classifier's."""
    data = load_dataset("digits", "train")
    reference = Reference(data.name, data.images, data.labels)
    evaluator = Evaluator([reference], ("label_accuracy_pixels", "label_accuracy_classifier"))
    pixels, classifier = evaluator.measure([data.images], data.labels)
    flat = scaled(data.images)
    means = np.stack([flat[data.labels == c].mean(0) for c in range(10)])
    nearest = np.linalg.norm(flat[:, None] - means, axis=2).argmin(1)
    assert pixels["metric"] == "label_accuracy_pixels"
    assert pixels["value"] == np.mean(nearest == data.labels)
    # Real digits that made no mean; those that did are found 0.01 to 0.03 more often.
    held_out = load_dataset("digits", "test")
    [new, _] = evaluator.measure([held_out.images], held_out.labels)
    assert pixels["accuracy_of_data"] < pixels["value"]
    assert pixels["accuracy_of_data"] == pytest.approx(new["value"], abs=0.03)
    assert 0.85 < pixels["value"] < 0.95 < classifier["value"]
    assert pixels["margin"] == pytest.approx(1.96 * np.sqrt(0.9 * 0.1 / 1437), rel=0.1)
    wrong = evaluator.measure([data.images], (data.labels + 1) % 10)[0]
    assert wrong["value"] < 0.05
    assert wrong["accuracy_of_data"] == pixels["accuracy_of_data"]
    with pytest.raises(EvaluationError, match=r"label_accuracy_pixels needs samples with labels"):
        evaluator.measure([data.images])
    with pytest.raises(EvaluationError, match=r"_pixels needs a reference with labels.*noise:test"):
        Evaluator([TEST], ("label_accuracy_pixels",))
    one = Reference("one", images(9), np.full(9, 3))
    with pytest.raises(EvaluationError, match="two classes; all images of one are of one"):
        Evaluator([one], ("label_accuracy_pixels",))


def test_labels_of_some_classes_are_found_among_all():
    """Noise that is called a 3 is not one, whatever classes are compared with."""
    data = load_dataset("digits", "train")
    whole = Reference(data.name, data.images, data.labels, cached=False)
    threes = whole.of_classes([3], "3")
    evaluator = Evaluator([threes], ("label_accuracy_pixels",))
    [noise] = evaluator.measure([images(50, shape=(8, 8, 1))], np.full(50, 3))
    [real] = evaluator.measure([threes.images], np.full(len(threes), 3))
    assert noise["value"] < 0.4
    assert 0.8 < real["value"] < 1
    assert 0 <= real["value"] - real["accuracy_of_data"] < 0.05


def test_distances_have_margins():
    """Of what their own spread is."""
    evaluator = Evaluator([TRAIN], ("fd_pixels", "precision_recall", "kid_pixels"))
    rows = {row["metric"]: row for row in evaluator.measure([images(60, 20)])}
    assert 0 < rows["fd_pixels"]["margin"] < rows["fd_pixels"]["value"] + 1
    assert rows["kid_pixels"]["margin"] == pytest.approx(
        1.96 * rows["kid_pixels"]["standard_error"], rel=1e-3
    )
    assert 0 < rows["precision"]["margin"] < 0.2
    assert 0 < rows["recall"]["margin"] < 0.3


@pytest.mark.parametrize("metric", ["nearest_neighbour_ratio", "fd_pixels"])
def test_metrics_that_compare_need_a_reference(metric):
    with pytest.raises(EvaluationError, match=f"{metric} compares with a reference; give one"):
        Evaluator([], (metric,), held_out=HELD_OUT)
    with pytest.raises(EvaluationError, match="pictures show neighbours"):
        Evaluator([], ("class_shares",)).pictures(images(9))


def test_a_reference_of_one_image_is_refused_before_anything_is_drawn():
    one, three = (Reference(f"noise:{num}", images(num)) for num in (1, 3))
    with pytest.raises(EvaluationError, match="noise:1 has 1 image, with which fd_pixels cannot"):
        Evaluator([TRAIN, one], ("fd_pixels",))
    with pytest.raises(EvaluationError, match="noise:3 has 3 images, with which precision cannot"):
        Evaluator([TRAIN, three], ("fd_pixels", "precision_recall"), num_samples=50)
    with pytest.raises(EvaluationError, match="precision needs at least 4 samples; got 3"):
        Evaluator([TRAIN], ("fd_pixels", "precision_recall"), num_samples=3)
    assert InceptionScore.least == 10  # its splits


def test_pixels_of_large_images():
    """Averaged they fit; all of them are refused before anything is computed."""
    large = Reference("large", images(40, shape=(128, 128, 3)))
    message = r"fd_pixels of images of \(128, 128, 3\) would need a covariance of 19 GB; take"
    with pytest.raises(EvaluationError, match=message):
        Evaluator([large], ("fd_pixels",))
    samples = images(40, shape=(128, 128, 3))
    with pytest.warns(EvaluationWarning, match="few for 768 features"):
        (row,) = Evaluator([large], ("fd_pixels_16",)).measure([samples])
    small = [a.reshape(40, 16, 8, 16, 8, 3).mean((2, 4)) for a in (samples, large.images)]
    assert row["value"] == pytest.approx(frechet(*small))  # of singular covariances
    with pytest.raises(EvaluationError, match="multiple of 16 pixels a side; got 24x24"):
        Evaluator([Reference("odd", images(9, shape=(24, 24, 3)))], ("fd_pixels_16",))


def test_evaluators_share_extractors(monkeypatch):
    """Whose weights are read once; no other is kept than what an evaluator needs."""
    loaded = []

    def load(name):
        loaded.append(name)
        return load_extractor(name)

    monkeypatch.setattr("pdistill.evaluation.evaluator.load_extractor", load)
    shared, reference = {}, Reference("noise", images(9, shape=(16, 16, 1)))
    for metrics in (("fd_pixels",), ("kid_pixels", "kid_pixels_16"), ("fd_pixels",)):
        found = Evaluator([reference], metrics, extractors=shared)
    assert loaded == [*shared] == ["pixels", "pixels_16"]
    assert [*found._extractors] == ["pixels"]
