"""The same network twice, diffusers' in PyTorch and ours with its weights."""

import argparse
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel

from benchmarks.common import options_of, peak_flops, tell
from pdistill.interop.diffusers import convert_diffusers
from pdistill.networks import Network
from pdistill.runtime.files import one_line

# Channels of the scales, the second of which has attention, and layers at each; the largest network
# is google/ddpm-cifar10-32.
UNETS = {
    "small": ((32, 64, 64), 1),
    "medium": ((64, 128, 128), 1),
    "cifar10": ((128, 256, 256, 256), 2),
}
# Pixels a side of latents of four channels, blocks, heads of 64 channels; patches of two pixels.
DITS = {"dit": (16, 6, 4), "dit_b2": (32, 12, 12)}
SIZES = "small,medium,cifar10,dit"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_float32_matmul_precision("high")  # on a GPU TF32, which is XLA's default there


class Unlabelled(torch.nn.Module):
    """A DiT that is told "no label", called as a U-Net: (z, time) -> its `sample`."""

    def __init__(self, network: DiTTransformer2DModel):
        super().__init__()
        self.network = network
        self.none = network.config.num_embeds_ada_norm

    def forward(self, z: torch.Tensor, time: torch.Tensor) -> Any:
        times = time.expand(len(z)).to(z.device)
        labels = torch.full((len(z),), self.none, device=z.device)
        return SimpleNamespace(sample=self.network(z, times, labels).sample)


def twins(size: str) -> tuple[torch.nn.Module, DDIMScheduler, Network]:
    """Makes diffusers' network and scheduler, and our network of them."""
    torch.manual_seed(0)
    network = _dit(*DITS[size]) if size in DITS else _unet(*UNETS[size])
    scheduler = DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder)
        conversion = convert_diffusers(folder)
    network = Unlabelled(network) if size in DITS else network
    return network.eval().to(DEVICE), scheduler, conversion.network


def _unet(channels: tuple[int, ...], layers: int) -> UNet2DModel:
    plain = ["DownBlock2D"] * len(channels)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=[plain[0], "AttnDownBlock2D", *plain[2:]],
        up_block_types=[*["UpBlock2D"] * (len(channels) - 2), "AttnUpBlock2D", "UpBlock2D"],
    )


def _dit(side: int, depth: int, heads: int) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=depth,
        in_channels=4,
        sample_size=side,
        num_embeds_ada_norm=1000,
    )


def to_torch(images: Any) -> torch.Tensor:
    """Converts [B, H, W, C] to PyTorch's [B, C, H, W]."""
    return torch.tensor(images, device=DEVICE).permute(0, 3, 1, 2).contiguous()


def from_torch(images: torch.Tensor) -> Any:
    return images.permute(0, 2, 3, 1).cpu().numpy()


def wait() -> None:
    """Waits until PyTorch has computed everything that it was asked for."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def start(contenders: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Calls each once, which compiles it; returns what they made, and why others could not."""
    made, failed = {}, {}
    for name, call in contenders.items():
        try:
            made[name] = call()
        except Exception as error:  # such as torch.compile without a compiler
            failed[name] = one_line(error)
    return made, failed


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast ours is as the other, "ratio", and as it compiled."""
    return {
        "ratio_compiled" if name.endswith("compiled") else "ratio": time / seconds["pdistill"]
        for name, time in seconds.items()
        if name != "pdistill"
    }


def run(
    arguments: argparse.ArgumentParser,
    compare: Callable[..., dict[str, Any]],
    settings: dict[str, int],
    unit: str,
) -> None:
    """Runs a benchmark of two: compares for each size, prints and writes.

    Args:
      compare: (size, **settings) -> figures, with "<unit>_per_second" and "gigaflops_per_second" by
        contender, and our "ratio".
      settings: options and their defaults.
    """
    arguments.add_argument("--sizes", default=SIZES, help="default: %(default)s")
    for name, default in settings.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = options_of(arguments)
    about = {name: getattr(options, name) for name in settings}
    sizes = {}
    for size in options.sizes.split(","):
        sizes[size] = compare(size, **about)
        for name, speed in sizes[size][f"{unit}_per_second"].items():
            rate = sizes[size]["gigaflops_per_second"][name]
            print(f"{size:<10} {name:<20} {speed:8.3f} {unit}/s {rate:8.1f} GFLOP/s", flush=True)
    peak = {"peak_gigaflops_per_second": peak_flops() / 1e9}
    first = next(iter(sizes.values()))
    tell({"ratio": first["ratio"], "sizes": sizes} | about | peak, options.out)
