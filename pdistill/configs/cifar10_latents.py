"""A codec of CIFAR-10, and a teacher and few-step students on its latents, on a laptop.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_latents.py:cpu --workdir=runs/cifar10_latents

As `fashion_latents`, with latents of 8 x 8 x 4. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"cifar10_latents has the variant 'cpu'; got {variant!r}")
    return scale.latents("cifar10", flip=True)
