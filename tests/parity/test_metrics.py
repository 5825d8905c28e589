"""The metrics against torch-fidelity: its stored values, and itself where it is installed."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pdistill.evaluation.frechet import Moments, frechet_distance
from pdistill.evaluation.inception_score import inception_score
from pdistill.evaluation.kid import kernel_distance
from pdistill.evaluation.precision_recall import precision_recall

make = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "fixtures/metrics/make.py"))
)


def measure(samples, reference, logits):
    """Ours, by torch-fidelity's names."""
    statistics = (Moments().add(features).statistics() for features in (samples, reference))
    distance, _ = kernel_distance(
        samples, reference, subsets=make.SUBSETS, subset_size=make.SUBSET_SIZE
    )
    score, score_std = inception_score(logits)
    precision, recall = precision_recall(samples, reference)
    return {
        "frechet_inception_distance": frechet_distance(*statistics),
        "kernel_inception_distance_mean": distance,
        "inception_score_mean": score,
        "inception_score_std": score_std,
        "precision": precision,
        "recall": recall,
        "f_score": 2 * precision * recall / (precision + recall),
    }


def assert_same(ours, theirs):
    """To 1e-5; rounding is 1e-7, of precision and recall, which theirs has in float32."""
    # The standard deviation over subsets is less than our standard error counts.
    assert theirs.keys() - ours.keys() == {"kernel_inception_distance_std"}
    for name, value in ours.items():
        assert 0 < value != 1
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, err_msg=name)


def test_stored_values():
    with np.load(make.PATH) as theirs:
        assert_same(measure(*make.make_inputs()), dict(theirs))


@pytest.mark.parametrize("seed", [1, 2])
def test_torch_fidelity_itself(seed):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    inputs = make.make_inputs(seed)
    assert_same(measure(*inputs), make.measure(*inputs))
