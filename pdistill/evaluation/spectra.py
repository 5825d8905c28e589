"""Radial power spectrum of images, the power at each spatial frequency."""

import dataclasses

import numpy as np

BLOCK = 256  # images whose transforms are in memory at a time


@dataclasses.dataclass
class Spectrum:
    """Mean power |FFT|^2 / (H W) of pixels in [-1, 1], from streamed images of one size.

    In this normalisation, white noise of variance s^2 has power s^2 at every frequency, and the
    mean over frequencies is the mean square of the pixels (Parseval).
    """

    count: int = 0
    _power: np.ndarray | None = None

    def add(self, images: np.ndarray) -> "Spectrum":
        """Adds uint8 images [B, H, W, C] to the mean; returns self.

        Raises:
          ValueError: they have another type, rank or size.
        """
        if images.ndim != 4 or images.dtype != np.uint8:
            got = f"{images.dtype} {images.shape}"
            raise ValueError(f"images must be uint8 [B, H, W, C]; got {got}")
        size = images.shape[1:3]
        if self._power is None:
            self._power = np.zeros(size)
        if self._power.shape != size:
            raise ValueError(f"image sizes differ: {self._power.shape} and {size}")
        transform = np.fft.fft2(images / 127.5 - 1, axes=(1, 2), norm="ortho")
        self._power += np.sum(np.abs(transform) ** 2, axis=(0, 3))
        self.count += len(images) * images.shape[3]
        return self

    @property
    def power(self) -> np.ndarray:
        """Mean power [H, W] over images and channels, at the frequencies of `np.fft.fft2`."""
        if not self.count:
            raise ValueError("there are no images; add some first")
        return self._power / self.count

    @property
    def values(self) -> np.ndarray:
        """Logarithm [R], of base 10, of the mean power on rings of radius 0 ... R - 1.

        R is min(H, W) // 2 + 1; a radius is in cycles per min(H, W) pixels, rounded. Ring 0 of
        square images is the mean pixel alone, so subtracting each image's mean would change nothing
        else; the last ring is the highest frequency along an axis, and the corners beyond it are
        left out. A ring without power is -inf.
        """
        power = self.power
        frequencies = np.meshgrid(*map(np.fft.fftfreq, power.shape), indexing="ij")
        rings = np.rint(np.hypot(*frequencies) * min(power.shape)).astype(int)
        means = np.bincount(rings.ravel(), power.ravel()) / np.bincount(rings.ravel())
        with np.errstate(divide="ignore"):
            return np.log10(means[: min(power.shape) // 2 + 1])


def radial_spectrum(images: np.ndarray) -> np.ndarray:
    """Computes `Spectrum.values` of uint8 images [N, H, W, C]."""
    spectrum = Spectrum()
    for start in range(0, len(images), BLOCK):
        spectrum.add(images[start : start + BLOCK])
    return spectrum.values
