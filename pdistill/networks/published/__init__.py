"""The networks of others, and how they are asked."""

from pdistill.networks.published.base import Published, PublishedUNet
from pdistill.networks.published.diffusers_dit import DiffusersDiT
from pdistill.networks.published.diffusers_unet import DiffusersUNet
from pdistill.networks.published.edm_unet import DhariwalUNet, SongUNet
from pdistill.networks.published.sit import SiT

__all__ = [
    "DhariwalUNet",
    "DiffusersDiT",
    "DiffusersUNet",
    "Published",
    "PublishedUNet",
    "SiT",
    "SongUNet",
]
