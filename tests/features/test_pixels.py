import numpy as np

from pdistill.data import to_float
from pdistill.features import load_extractor


def test_pixels_are_the_training_scale_in_float64():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2), np.uint8)
    images[0, 0, 0] = 0, 255
    features = load_extractor("pixels")(images)["features"]
    assert features.dtype == np.float64
    assert features.shape == (5, 24)
    assert features[0, :2].tolist() == [-1, 1]
    np.testing.assert_allclose(features, images.reshape(5, 24) / 127.5 - 1, atol=1e-15)
    np.testing.assert_allclose(features, to_float(images).reshape(5, 24), atol=1.5e-7)
