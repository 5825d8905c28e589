"""GAN fine-tuning of a tenth of the weights (D2O-F, Zheng & Yang 2025) on CIFAR-10.

    python -m pdistill.main --config=configs/cifar10_gan_frozen.py --workdir=runs/cifar10_gan_frozen

As `cifar10_gan`, but the blocks' convolutions, attention's output and, since they are larger in
this network than in theirs, the embedding's layers stay as they are. Published for D2O-F: FID 1.54
to 1.56. `cifar10_gan_frozen.py:cpu` is that part of `cifar10_gan.py:cpu`.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_gan


def get_config(variant: str = "") -> ConfigDict:
    config = cifar10_gan.get_config(variant)
    teacher, gan, *_ = config.stages
    gan.update(name="gan_frozen", frozen="unet")
    config.stages = (teacher, gan)
    return config
