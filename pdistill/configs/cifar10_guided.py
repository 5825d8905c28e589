"""Guided distillation (Meng et al. 2023) on CIFAR-10.

    python -m pdistill.main --config=configs/cifar10_guided.py --workdir=runs/cifar10_guided

The network of cifar10_pd.py with labels, weights from 0 to 4 as in the paper, 1024 -> 1 steps.
What the paper does not print is chosen: labels are hidden for a tenth of the teacher's examples,
stage one takes 100k updates at the teacher's learning rate, and stage two is cifar10_pd.py's.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import guided


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_guided has no variants; got {variant!r}")
    return guided(cifar10_pd.get_config(), num_labels=10, num_updates=100_000)
