"""Guided distillation (Meng et al. 2023) on class-conditional ImageNet 64x64.

    python -m pdistill.main --config=configs/imagenet64_guided.py --workdir=runs/imagenet64_guided

The network of imagenet64_pd.py, weights from 0 to 4 as in the paper, 1024 -> 1 steps. What the
paper does not print is chosen: labels are hidden for a tenth of the teacher's examples, stage one
takes 100k updates at the teacher's learning rate, and stage two is imagenet64_pd.py's. The paper
says that 4 steps compare with the guided teacher's 1024 pairs.
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_pd
from pdistill.configs.recipes import guided


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_guided has no variants; got {variant!r}")
    return guided(imagenet64_pd.get_config(), num_labels=1000, num_updates=100_000)
