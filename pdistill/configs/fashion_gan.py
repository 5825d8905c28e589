"""GAN fine-tuning (Zheng & Yang 2025) on Fashion-MNIST, on a laptop.

    pip install -e '.[features]'
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_gan.py --workdir=runs/fashion_gan

The teacher of `fashion_pd` becomes a generator: with all weights, with the blocks' convolutions
fixed, and from scratch as a control. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_gan has no variants; got {variant!r}")
    return scale.gan(scale.laptop("fashion_mnist", flip=False))
