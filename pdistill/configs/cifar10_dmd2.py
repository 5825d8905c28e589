"""Distribution matching (DMD2, Yin et al. 2024) on CIFAR-10.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_dmd2.py --workdir=runs/cifar10_dmd2

DMD2 has no CIFAR-10. Rate, batch, average and the weight of the generator's adversarial loss are
those of FastGen; the rest is as DMD2 has it for ImageNet, such as its warm-up, its range of noise
and the classifier on the fake score's encoder (FastGen's: on the teacher's, at three sizes). The
teacher is that of `cifar10_pd`.
Published, with labels: FID 2.13 and, by FastGen, 1.99; without, by DMD, 3.77.
`cifar10_dmd2.py:cpu` is on a laptop's scale: by the scores alone ("dm") and with the classifier
("dm_gan"), with two updates of the fake score for one of the generator; `cifar10_dmd2.py:gpu` is
that for minutes on one accelerator, as in `cifar10_methods`.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_methods, cifar10_pd
from pdistill.configs.recipes import dmd2, laptop_dmd


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return laptop_dmd(cifar10_pd.get_config("cpu"))
    if variant == "gpu":
        return gpu()
    if variant:
        raise ValueError(f"variants: '', 'cpu' and 'gpu'; got {variant!r}")
    return dmd2(
        cifar10_pd.get_config(),
        learning_rate=1e-4,
        adversarial=1e-3,
        batch_size=2048,
        num_updates=100_000,
        ema_decay=0.9999,
    )


def gpu() -> ConfigDict:
    """The teacher and the stages of this method of `cifar10_methods`."""
    config = cifar10_methods.get_config()
    teacher, *others = config.stages
    config.stages = (teacher, *(stage for stage in others if stage.method == "dmd"))
    return config
