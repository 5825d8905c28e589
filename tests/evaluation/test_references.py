"""References by name and from files, and the statistics kept of them."""

import io
import os
import zipfile

import numpy as np
import pytest

from pdistill.data.sources import data_dir
from pdistill.evaluation import (
    EvaluationError,
    EvaluationWarning,
    Evaluator,
    Reference,
    load_labelled,
    load_reference,
    load_statistics,
    save_statistics,
)
from pdistill.features import load_extractor
from pdistill.runtime.files import cache_dir

PIXELS = load_extractor("pixels")


def noise(num=40, shape=(4, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


class Counting:
    """Pixels, and how many images it was asked for."""

    name, preprocessing, channels, size = "pixels", "none", None, None

    def __init__(self, **changes):
        self.fingerprint = "1"
        vars(self).update(changes)
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        return PIXELS(images)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDISTILL_CACHE_DIR", str(tmp_path / "cache"))


def test_two_images_have_statistics(tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), count=2)
    assert load_statistics(path).count == 2


def test_statistics_are_those_of_the_features():
    images = noise(2500)  # more than two blocks
    found = Reference("noise", images).statistics(PIXELS)
    features = images.reshape(2500, -1) / 127.5 - 1
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9, atol=1e-12)
    assert found.count == 2500


def test_statistics_are_computed_once():
    extractor = Counting()
    first = Reference("noise", noise()).statistics(extractor)
    again = Reference("noise", noise()).statistics(extractor)  # as another process would
    assert extractor.images == 40
    np.testing.assert_array_equal(first.covariance, again.covariance)
    assert again.count == 40


def test_whatever_statistics_depend_on_is_computed_anew(monkeypatch):
    extractor = Counting()
    for reference in (
        Reference("noise", noise()),
        Reference("noise", noise(seed=1)),
        Reference("other", noise()),
    ):
        reference.statistics(extractor)
    assert extractor.images == 3 * 40
    for changes in ({"fingerprint": "2"}, {"preprocessing": "scaled"}, {"name": "others"}):
        other = Counting(**changes)
        Reference("noise", noise()).statistics(other)
        assert other.images == 40
    monkeypatch.setattr("importlib.metadata.version", lambda _: "another")
    Reference("noise", noise()).statistics(extractor)
    assert extractor.images == 4 * 40


def test_a_damaged_cache_is_made_again():
    Reference("noise", noise()).statistics(PIXELS)
    (path,) = (cache_dir() / "statistics").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", whole[:200] + b"x" * 50 + whole[250:]):
        path.write_bytes(damaged)
        extractor = Counting()
        Reference("noise", noise()).statistics(extractor)
        assert extractor.images == 40
        assert load_statistics(path).count == 40


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    """Nor does a home that is not there, or a name too long for a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDISTILL_CACHE_DIR", str(tmp_path / "file/cache"))
    statistics = Reference("a", noise()).statistics(PIXELS)
    assert "statistics of a are not kept for the next time" in capsys.readouterr().err
    for name in ("PDISTILL_CACHE_DIR", "TFDS_DATA_DIR", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no entry"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    extractor = Counting()
    for _ in range(2):
        found = Reference("a" * 300, noise()).statistics(extractor)
        np.testing.assert_allclose(found.covariance, statistics.covariance)
    assert extractor.images == len(noise())
    assert cache_dir().is_relative_to(tmp_path)
    assert data_dir().is_relative_to(tmp_path)


def test_known_features_are_used_for_statistics():
    extractor, reference = Counting(), Reference("noise", noise())
    reference.features(extractor)
    reference.features(extractor)
    reference.statistics(extractor)
    assert extractor.images == 40


# --- Files --------------------------------------------------------------------------------------


def test_references_by_name(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=noise(), arr_1=np.arange(40))
    found = load_reference(str(tmp_path / "images.npz"))
    np.testing.assert_array_equal(found.images, noise())

    statistics = found.statistics(PIXELS)
    save_statistics(tmp_path / "statistics.npz", statistics, features="pixels")
    again = load_reference(str(tmp_path / "statistics.npz"))
    np.testing.assert_array_equal(again.statistics(PIXELS).covariance, statistics.covariance)
    assert len(again) == 40
    with pytest.raises(EvaluationError, match="only mu and sigma"):
        again.features(PIXELS)

    digits = load_reference("digits:test")
    assert (digits.name, len(digits), len(digits.labels)) == ("digits:test", 360, 360)


def test_labels_beside_images(tmp_path):
    """As guided-diffusion and `pdistill sample` call them, and other numbers that are none."""
    labels = np.arange(40) % 3
    for number, arrays in enumerate(
        ({"arr_0": noise(), "arr_1": labels}, {"images": noise(), "label": labels, "seed": labels})
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        np.testing.assert_array_equal(load_reference(str(path)).labels, labels)
        np.testing.assert_array_equal(load_labelled(path)[1], labels)
    np.savez(tmp_path / "none.npz", images=noise(), seed=labels)
    assert load_reference(str(tmp_path / "none.npz")).labels is None
    for wrong in (labels[:7], labels.astype(float)):
        np.savez(tmp_path / "bad.npz", images=noise(), label=wrong)
        with pytest.warns(EvaluationWarning, match=r"bad.npz: labels are left out"):
            assert load_reference(str(tmp_path / "bad.npz")).labels is None


def test_a_reference_of_some_classes():
    reference = Reference(
        "noise", noise(), np.arange(40) % 4, captions=[(str(i),) for i in range(40)]
    )
    some = reference.of_classes([1, 3], "1,3")
    rows = np.flatnonzero(np.arange(40) % 2)
    np.testing.assert_array_equal(some.images, noise()[rows])
    np.testing.assert_array_equal(some.labels, (np.arange(40) % 4)[rows])
    assert [each[0] for each in some.captions] == [str(row) for row in rows]
    assert some.name == "noise of classes 1,3"
    assert some.statistics(PIXELS).count == 20  # not those that are kept of all
    assert reference.statistics(PIXELS).count == 40
    with pytest.raises(EvaluationError, match="has no images of class 4; its labels are 0 to 3"):
        reference.of_classes([1, 4], "1,4")
    with pytest.raises(EvaluationError, match="classes of noise: it has no labels"):
        Reference("noise", noise()).of_classes([1], "1")


def test_files_of_edm_and_of_guided_diffusion(tmp_path):
    """EDM's have mu and sigma in float64; guided-diffusion's in float32 or 64, beside 10,000 images
    in arr_0 and spatial statistics, which are of another layer and not looked at. Inception's
    distance is to mu and sigma, of more images; others are to these images."""
    mean, covariance = np.arange(5.0), np.eye(5)
    published = {"mu": mean, "sigma": covariance}
    np.savez(tmp_path / "cifar10-32x32.npz", **published)
    virtual = tmp_path / "VIRTUAL_imagenet64_labeled.npz"
    np.savez(
        virtual, arr_0=noise(20), arr_1=np.arange(20), **published, mu_s=np.zeros(7),
        sigma_s=np.eye(7),
    )  # fmt: skip
    inception = Counting(name="inception")
    for path in (tmp_path / "cifar10-32x32.npz", virtual):
        found = load_reference(str(path)).statistics(inception)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.covariance, covariance)
    assert inception.images == 0
    both = load_reference(str(virtual))
    assert both.statistics(PIXELS).count == len(both.features(PIXELS)) == len(both.labels) == 20
    np.testing.assert_array_equal(both.images, noise(20))
    assert both.of_classes([3, 4], "3,4").statistics(inception).count == 2


@pytest.mark.parametrize("features", ["pixels", ""])
def test_images_beside_statistics_of_another_width(tmp_path, capsys, features):
    """Only a metric that takes mu and sigma is refused; it is said which does."""
    named = {"features": features} if features else {}
    np.savez(tmp_path / "x.npz", arr_0=noise(), mu=np.zeros(5), sigma=np.eye(5), **named)
    found = load_reference(str(tmp_path / "x.npz"))
    said = "pixels is to its mu and sigma; o" if features else "inception is to its mu and sigma, w"
    assert f"the Frechet distance of {said}" in capsys.readouterr().err
    Evaluator([found], ("kid_pixels",))
    space = features or "inception"
    one = {space: Counting(name=space, width=PIXELS.width)}
    metric = "fd_pixels" if features else "fid"
    with pytest.raises(EvaluationError, match=f"mu of 5 features, and {space} of these images has"):
        Evaluator([found], (metric,), extractors=one)
    if not features:
        assert Evaluator([found], ("fd_pixels",)).measure([noise()])[0]["value"] < 1e-6


def test_statistics_are_of_one_feature_space(tmp_path):
    """Which is refused for a metric of another one before any sample is drawn."""
    path = tmp_path / "kept.npz"
    statistics = Reference("noise", noise(shape=(4, 4, 4))).statistics(PIXELS)
    save_statistics(path, statistics, reference="noise", features="classifier")
    found = load_reference(str(path))
    with pytest.raises(EvaluationError, match=r"kept.npz holds mu and sigma of classifier, not of"):
        found.statistics(PIXELS)
    with pytest.raises(EvaluationError, match="give a metric of classifier, or statistics of pix"):
        Evaluator([found], ("fd_pixels",), num_samples=9)
    assert Evaluator([found], ("fd_classifier",), num_samples=9).references == [found]
    for others in ({}, {"features": np.zeros((40, 64))}, {"features": np.array(3)}):
        np.savez(path, mu=statistics.mean, sigma=statistics.covariance, **others)
        assert load_reference(str(path)).statistics(PIXELS).mean.shape == (64,)


def test_published_statistics_have_mu_and_sigma_alone(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(5, np.float32), sigma=np.eye(5, dtype=np.float32))
    found = load_reference(str(tmp_path / "fid.npz"))
    assert len(found) == 0
    assert found.statistics(PIXELS).covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sigma": np.eye(3)}, "has no 'mu'; it holds sigma"),
        ({"mu": np.zeros(3)}, "has no 'sigma'"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu must be \[D\] and sigma \[D, D\]"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "is not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu must be \[D\]"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu must be floating point; it is int64"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3, dtype=bool)},
            "sigma must be .*; it is bool",
        ),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma has a negative variance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "correlation above one"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "count": -5}, "count must be .*; it is -5"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "count": 1}, "count must be .*; it is 1"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "count": np.nan}, "count must be .*; it is nan"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "count": np.array([9])}, "count must be"),
        ({"a": np.zeros(3)}, r"one array of images \[N, H, W, C\], or mu and sigma; it holds a"),
        ({}, "it holds nothing"),
    ],
)
def test_files_that_are_no_reference(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(EvaluationError, match=message) as error:
        load_reference(str(path))
    assert str(path) in str(error.value)


def test_a_header_that_claims_more_than_its_file_holds(tmp_path):
    """NumPy would first make room for it, all 10^13 numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue() + bytes(80))
    with pytest.raises(EvaluationError, match=r"mu.npy has \d+ bytes, not \(10000000000000,\)"):
        load_reference(str(tmp_path / "huge.npz"))


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(EvaluationError, match="is not a regular file"):
        load_reference(str(tmp_path / "pipe.npz"))


def test_names_that_are_no_reference(tmp_path):
    with pytest.raises(EvaluationError, match="such as cifar10:train"):
        load_reference("digits")
    with pytest.raises(EvaluationError, match="there is no such file"):
        load_reference(str(tmp_path / "no.npz"))
    with pytest.raises(ValueError, match="unknown data set 'digit'"):
        load_reference("digit:train")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(EvaluationError, match=r"cut.npz is not a readable .npz"):
        load_reference(str(tmp_path / "cut.npz"))


def test_a_pickled_array_is_not_executed(tmp_path):
    np.savez(tmp_path / "pickled.npz", mu=np.array([{"a": 1}], object), sigma=np.eye(1))
    with pytest.raises(EvaluationError, match=r"pickled.npz is not a readable .npz"):
        load_reference(str(tmp_path / "pickled.npz"))
