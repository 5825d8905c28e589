"""Flax linen networks, and `Network`, which is one with its parameters."""

from pdistill.networks.codecs import (
    AutoencoderKL,
    AutoencoderResidual,
    AutoencoderTiny,
    Codec,
    Posterior,
)
from pdistill.networks.conditioning import NOTHING, Conditioning, Text
from pdistill.networks.dit import DiT
from pdistill.networks.network import Network
from pdistill.networks.published.diffusers_dit import DiffusersDiT
from pdistill.networks.published.diffusers_unet import DiffusersUNet
from pdistill.networks.published.edm2_unet import Edm2UNet
from pdistill.networks.published.edm_unet import DhariwalUNet, SongUNet
from pdistill.networks.published.sit import SiT
from pdistill.networks.registry import (
    CODECS,
    ENCODERS,
    NETWORKS,
    build_codec,
    build_encoder,
    build_network,
    change_network,
    describe_network,
    num_blocks,
)
from pdistill.networks.routed import Routed
from pdistill.networks.text import Bert, ClipText, TextEncoder, Tokenizer
from pdistill.networks.transfer import Transfer, transfer
from pdistill.networks.unet import UNet
from pdistill.networks.vision import ClipImage, Dinov2, ImageEncoder

__all__ = [
    "CODECS",
    "ENCODERS",
    "NETWORKS",
    "NOTHING",
    "AutoencoderKL",
    "AutoencoderResidual",
    "AutoencoderTiny",
    "Bert",
    "ClipImage",
    "ClipText",
    "Codec",
    "Conditioning",
    "DhariwalUNet",
    "DiT",
    "DiffusersDiT",
    "DiffusersUNet",
    "Dinov2",
    "Edm2UNet",
    "ImageEncoder",
    "Network",
    "Posterior",
    "Routed",
    "SiT",
    "SongUNet",
    "Text",
    "TextEncoder",
    "Tokenizer",
    "Transfer",
    "UNet",
    "build_codec",
    "build_encoder",
    "build_network",
    "change_network",
    "describe_network",
    "num_blocks",
    "transfer",
]
