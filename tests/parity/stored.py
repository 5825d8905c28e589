"""Arrays of a fixture beside those that its make.py computes now."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def assert_stored(path: Path, compute: Callable[[str], Mapping[str, np.ndarray]]) -> None:
    """Asserts that `compute` of the file's name gives what is stored, to 1e-11 of deviations."""
    with np.load(path) as stored:
        for key, array in compute(path.stem).items():
            if array.dtype.kind == "U":
                np.testing.assert_array_equal(stored[key], array)
            else:
                assert np.abs(stored[key] - array).max() < 1e-11 * array.std()
