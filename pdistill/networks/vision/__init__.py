"""Image towers, and `ImageEncoder`, which is one with its parameters."""

from pdistill.networks.vision.clip import ClipImage
from pdistill.networks.vision.dinov2 import Dinov2
from pdistill.networks.vision.encoder import ImageEncoder

__all__ = ["ClipImage", "Dinov2", "ImageEncoder"]
