"""Autoencoders, and `Codec`, which is one with its parameters and the scale of its latents."""

from pdistill.networks.codecs.autoencoder_kl import AutoencoderKL
from pdistill.networks.codecs.autoencoder_residual import AutoencoderResidual
from pdistill.networks.codecs.autoencoder_tiny import AutoencoderTiny
from pdistill.networks.codecs.codec import Codec, Posterior

__all__ = ["AutoencoderKL", "AutoencoderResidual", "AutoencoderTiny", "Codec", "Posterior"]
