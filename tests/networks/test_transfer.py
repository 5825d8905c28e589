"""Parameters from one network to another: what is copied, what is new, what is left over."""

import numpy as np
import pytest

from pdistill.networks import transfer

OLD = {"block": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "head": {"kernel": np.ones(4)}}
NEW = {"block": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "target": np.zeros(5)}


def test_report():
    params, report = transfer(NEW, OLD)
    assert set(report.copied) == {"block/kernel", "block/bias"}
    assert report.new == ("target",)
    assert report.unused == ("head/kernel",)
    assert params["block"]["kernel"].all()
    assert not params["target"].any()
    assert set(params) == {"block", "target"}


def test_shapes_must_agree():
    other = {"block": {"kernel": np.ones((2, 4))}}
    with pytest.raises(ValueError, match=r"block/kernel is \(2, 4\) there and \(2, 3\) here"):
        transfer(NEW, other)
