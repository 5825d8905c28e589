import numpy as np
import pytest

from pdistill.evaluation.spectra import Spectrum, radial_spectrum

RNG = np.random.default_rng(0)
VARIANCE = (256**2 - 1) / 12 / 127.5**2  # of noise(), whose mean is zero in [-1, 1]


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def wave(height, width, ky, kx):
    """A plane wave [1, H, W, 1] of mean square one.

    For periods of two or four pixels, where it takes two values alone and uint8 loses nothing.
    """
    y, x = np.mgrid[:height, :width]
    phase = 2 * np.pi * (ky * y / height + kx * x / width) + np.pi / 4
    return np.where(np.cos(phase) > 0, 255, 0).astype(np.uint8)[None, :, :, None]


def members(height, width):
    """How many frequencies each ring has, counted one by one."""
    size = min(height, width)
    counts = [0] * size
    for fy in np.fft.fftfreq(height):
        for fx in np.fft.fftfreq(width):
            counts[round(size * (fx**2 + fy**2) ** 0.5)] += 1
    return counts


@pytest.mark.parametrize(
    ("height", "width", "ky", "kx", "ring"),
    [
        (16, 16, 0, 4, 4),
        (16, 16, 4, 0, 4),
        (16, 16, 4, 4, 6),  # |k| = 5.66
        (16, 16, 0, 8, 8),
        (15, 16, 0, 4, 4),  # 3.75
        (8, 32, 2, 0, 2),  # two cycles in 8 pixels
        (8, 32, 0, 8, 2),  # eight in 32: the same frequency
        (20, 12, 5, 0, 3),
    ],
)
def test_plane_wave_has_its_power_in_its_ring(height, width, ky, kx, ring):
    power = 10 ** radial_spectrum(wave(height, width, ky, kx))
    assert len(power) == min(height, width) // 2 + 1
    assert np.delete(power, ring).max() < 1e-28
    # Parseval: the sum over frequencies is H W times the mean square.
    total = power[ring] * members(height, width)[ring]
    np.testing.assert_allclose(total, height * width, rtol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16, 3), (15, 15, 1), (9, 20, 2), (21, 8, 1)], ids=str)
def test_white_noise_is_flat_at_its_variance(shape):
    """The power of one frequency is exponential: its mean over n has a relative error n^-1/2.

    k and -k have the same power, so n is half the members times images and channels, and the
    tolerance five errors: 3 to 12 %.
    """
    num, rings = 3000, min(shape[:2]) // 2 + 1
    power = 10 ** radial_spectrum(noise(num, *shape))
    independent = np.array(members(*shape[:2])[:rings]) / 2 * num * shape[2]
    np.testing.assert_array_less(np.abs(power / VARIANCE - 1), 5 / np.sqrt(independent))


def test_parseval():
    images = noise(10, 9, 14, 3)
    power = Spectrum().add(images).power
    assert power.shape == (9, 14)
    np.testing.assert_allclose(power.mean(), np.mean((images / 127.5 - 1) ** 2), rtol=1e-13)


def test_mean_is_over_power_before_the_logarithm():
    """Of images with power one and zero: log10 (1 / 2), not the mean of 0 and -inf."""
    white = np.full((1, 8, 8, 1), 255, np.uint8)
    images = np.concatenate([white, wave(8, 8, 0, 2)])
    np.testing.assert_allclose(radial_spectrum(images)[0], np.log10(64 / 2), rtol=1e-12)


def test_only_ring_zero_has_the_mean():
    dark = noise(20, 12, 12, 1) // 2
    before, after = radial_spectrum(dark), radial_spectrum(dark + 100)
    np.testing.assert_allclose(before[1:], after[1:], rtol=1e-10)
    assert before[0] != after[0]


@pytest.mark.parametrize("sizes", [[1, 1, 3], [300], [0, 299], [256]], ids=str)
def test_batches_do_not_matter(sizes):
    images = noise(300, 6, 8, 3)
    spectrum = Spectrum()
    for part in np.split(images, np.cumsum(sizes)):
        spectrum.add(part)
    np.testing.assert_allclose(spectrum.values, radial_spectrum(images), rtol=1e-12)


def test_constant_images_have_no_other_power():
    values = radial_spectrum(np.full((2, 8, 8, 1), 255, np.uint8))
    np.testing.assert_allclose(values[0], np.log10(64), rtol=1e-14)
    assert (values[1:] == -np.inf).all()


def test_images_that_cannot_be_counted():
    with pytest.raises(ValueError, match=r"must be uint8 \[B, H, W, C\]; got float64"):
        Spectrum().add(np.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"must be uint8 \[B, H, W, C\]; got uint8 \(8, 8, 1\)"):
        Spectrum().add(noise(8, 8, 1))
    with pytest.raises(ValueError, match=r"sizes differ: \(8, 8\) and \(8, 9\)"):
        Spectrum().add(noise(1, 8, 8, 1)).add(noise(1, 8, 9, 1))
    with pytest.raises(ValueError, match="there are no images; add some"):
        _ = Spectrum().values
