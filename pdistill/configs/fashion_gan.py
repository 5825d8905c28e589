"""GAN fine-tuning (Zheng & Yang 2025) on Fashion-MNIST, on a laptop.

pip install '.[features]'
python -m pdistill.data.prepare fashion_mnist
python -m pdistill.main --config=configs/fashion_gan.py --workdir=runs/fashion_gan
"""

from ml_collections import ConfigDict

from pdistill.configs import fashion_pd
from pdistill.configs.recipes import laptop_gan


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_gan has no variants; got {variant!r}")
    return laptop_gan(fashion_pd.get_config())
