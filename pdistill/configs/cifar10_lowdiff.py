"""LowDiff (Xu et al. 2025) on CIFAR-10: 8x8 -> 16x16 -> 32x32 in one network.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_lowdiff.py --workdir=runs/cifar10_lowdiff

The paper's abstract says an FID of 2.11; its settings could not be read. These have the sizes and
the training length of EDM (Karras et al. 2022: DDPM++, 200 million images): a teacher of 32x32
pixels alone, the cascade trained with the same FLOPs, and the cascade distilled to 8, 4, 2 and one
step at each level. It has not been run.
"""

from ml_collections import ConfigDict

from pdistill.configs.recipes import edm_sized, lowdiff_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_lowdiff has no variants; got {variant!r}")
    config = edm_sized(
        "cifar10", batch_size=512, learning_rate=1e-3, multipliers=(2, 2, 2), dropout=0.13
    )
    lowdiff = {
        "resolutions": (8, 16, 32),
        "split": (320, 288, 416),  # of 0.05, 0.27 and 1 of the cost: 509 of the last
        "num_steps": ((18, 12, 8), (18, 12, 5), (8, 8, 8), (1, 1, 1)),
        "solver": "heun",
    }
    return lowdiff_stages(config, lowdiff)
