"""Flax linen networks, and the `Diffuser` that reads one as a denoiser."""

from pdistill.networks.diffuser import Diffuser
from pdistill.networks.dit import DiT
from pdistill.networks.published.diffusers_dit import DiffusersDiT
from pdistill.networks.published.diffusers_unet import DiffusersUNet
from pdistill.networks.published.edm_unet import DhariwalUNet, SongUNet
from pdistill.networks.registry import NETWORKS, build_network, change_network, describe_network
from pdistill.networks.routed import Routed
from pdistill.networks.unet import UNet

__all__ = [
    "NETWORKS",
    "DhariwalUNet",
    "DiT",
    "Diffuser",
    "DiffusersDiT",
    "DiffusersUNet",
    "Routed",
    "SongUNet",
    "UNet",
    "build_network",
    "change_network",
    "describe_network",
]
