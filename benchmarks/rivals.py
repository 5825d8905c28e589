"""The same U-Net twice: diffusers' UNet2DModel in PyTorch, and here, with its weights."""

import tempfile
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel

from pdistill.interop.diffusers import convert_diffusers
from pdistill.networks import Diffuser

# channels, layers a level, head's width of attention at the second level; the largest is that of
# google/ddpm-cifar10-32.
SIZES = {
    "small": ((32, 64, 64), 1),
    "medium": ((64, 128, 128), 1),
    "cifar10": ((128, 256, 256, 256), 2),
}
IMAGE = (32, 32, 3)


def twins(size: str) -> tuple[UNet2DModel, DDIMScheduler, Diffuser, Any]:
    """diffusers' network and scheduler, and the diffuser and parameters made of them."""
    channels, layers = SIZES[size]
    plain = ["DownBlock2D"] * len(channels)
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=IMAGE[0],
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=[plain[0], "AttnDownBlock2D", *plain[2:]],
        up_block_types=[*["UpBlock2D"] * (len(channels) - 2), "AttnUpBlock2D", "UpBlock2D"],
    ).eval()
    scheduler = DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder)
        conversion = convert_diffusers(folder)
    return network, scheduler, conversion.diffuser, conversion.params


def to_torch(images: Any) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W]."""
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


def from_torch(images: torch.Tensor) -> Any:
    return images.permute(0, 2, 3, 1).numpy()
