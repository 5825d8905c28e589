"""Squares of pixels as channels, and back."""

from jax import Array


def pixels_to_channels(x: Array, patch: int) -> Array:
    """[B, H, W, C] -> [B, H / p, W / p, p p C]; rows of a square first, then columns."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, height // patch, width // patch, -1)


def channels_to_pixels(x: Array, patch: int) -> Array:
    """The inverse of `pixels_to_channels`: [B, h, w, p p C] -> [B, p h, p w, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.swapaxes(2, 3).reshape(batch, patch * height, patch * width, -1)
