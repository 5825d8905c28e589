"""LowDiff (Xu et al. 2025) on FFHQ at 64x64: 16x16 -> 32x32 -> 64x64 in one network.

    python -m pdistill.data.prepare --images=/data/ffhq --name=ffhq64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/ffhq64_lowdiff.py --workdir=runs/ffhq64_lowdiff

The paper's abstract says an FID of 2.43. As `cifar10_lowdiff`, with EDM's settings for FFHQ. It
has not been run.
"""

from ml_collections import ConfigDict

from pdistill.configs.recipes import edm_sized, lowdiff_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"ffhq64_lowdiff has no variants; got {variant!r}")
    config = edm_sized(
        "ffhq64", batch_size=256, learning_rate=2e-4, multipliers=(1, 2, 2, 2), dropout=0.05
    )
    lowdiff = {
        "resolutions": (16, 32, 64),
        "split": (192, 128, 160),  # of 0.14, 0.50 and 1 of the cost: 251 of the last
        "num_steps": ((40, 20, 10), (18, 12, 8), (8, 8, 8), (1, 1, 1)),
        "solver": "heun",
    }
    return lowdiff_stages(config, lowdiff)
