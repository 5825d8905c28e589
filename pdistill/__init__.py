"""pdistill: diffusion models that generate in one to eight network evaluations, in JAX.

    model = pdistill.load("runs/digits/progressive/4")
    images = model.sample(jax.random.key(0), num=64)

`pdistill.diffusion` and `pdistill.samplers` need nothing but jax and each other.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdistill import diffusion, samplers
    from pdistill.interop import text_encoder
    from pdistill.model import Model, load, load_codec
    from pdistill.networks import Codec, TextEncoder

    __version__: str

__all__ = [
    "Codec",
    "Model",
    "TextEncoder",
    "__version__",
    "diffusion",
    "load",
    "load_codec",
    "samplers",
    "text_encoder",
]


def __getattr__(name: str):
    """Imports when first used: the samplers come without flax, `pdistill --help` without jax."""
    if name in ("diffusion", "samplers"):
        return importlib.import_module(f"pdistill.{name}")
    if name in ("Model", "load", "load_codec"):
        return getattr(importlib.import_module("pdistill.model"), name)
    if name in ("Codec", "TextEncoder"):
        return getattr(importlib.import_module("pdistill.networks"), name)
    if name == "text_encoder":
        return importlib.import_module("pdistill.interop").text_encoder
    if name == "__version__":
        return importlib.metadata.version("pdistill")
    raise AttributeError(f"module 'pdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists what is public, imported or not yet."""
    return sorted({*__all__, "__doc__", "__file__", "__path__"})
