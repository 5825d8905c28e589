"""Codecs: autoencoders between images and the latents that networks make."""

from pdistill.model.codecs.codec import Codec, Posterior
from pdistill.model.codecs.directory import load_codec, save_codec

__all__ = ["Codec", "Posterior", "load_codec", "save_codec"]
