"""Autoencoders, whose latents other networks generate."""

from pdistill.networks.codecs.autoencoder_kl import AutoencoderKL
from pdistill.networks.codecs.autoencoder_tiny import AutoencoderTiny

__all__ = ["AutoencoderKL", "AutoencoderTiny"]
