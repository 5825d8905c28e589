"""The plainest features, pixels in [-1, 1]."""

import dataclasses
import math

import numpy as np

from pdistill.data.images import average


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixels as features, uint8 [N, H, W, C] -> float64 [N, H W C] in [-1, 1]; exact.

    It computes on the host and needs no device.

    Attributes:
      side: pixels a side that images are averaged to first; 0 for their own.
    """

    side: int = 0
    name: str = "pixels"
    preprocessing: str = "none"
    fingerprint: str = "1"
    channels: None = None
    size: None = None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        pixels = images.astype(np.float64) / 127.5 - 1
        pixels = average(pixels, images.shape[1] // self.side) if self.side else pixels
        return {"features": pixels.reshape(len(images), -1)}

    def width(self, shape: tuple[int, ...]) -> int:
        return self.side**2 * shape[2] if self.side else math.prod(shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for images [H, W, C] that it cannot average."""
        height, width, _ = shape
        if self.side and (height != width or height % self.side):
            raise ValueError(
                f"{self.name} takes square images of a multiple of {self.side} pixels a side; got "
                f"{height}x{width}"
            )


def sixteen() -> Pixels:
    """Pixels of images that are averaged to 16 x 16."""
    return Pixels(16, name="pixels_16", preprocessing="averaged to 16 x 16 pixels")
