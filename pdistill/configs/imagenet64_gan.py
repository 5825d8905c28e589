"""GAN fine-tuning (D2O, Zheng & Yang 2025) on class-conditional ImageNet 64x64.

    pip install '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_gan.py --workdir=runs/imagenet64_gan

The released settings, 10M images, from the teacher of `imagenet64_pd` (theirs is EDM's), with
EfficientNet-Lite0 as the only feature network (theirs: DeiT too). Published: FID 1.42, with most
weights frozen (`--config.stages[1].frozen=d2o_f`) 1.13 to 1.16, EDM's teacher 2.64.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_pd
from pdistill.configs.recipes import d2o


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_gan has no variants; got {variant!r}")
    config = d2o(imagenet64_pd.get_config(), batch_size=512, num_updates=20_000)
    gan = config.stages[1]
    gan.optimizer.learning_rate = 8e-6
    gan.optimizer.ema_decay = 0.5 ** (512 / 50e6)
    gan.discriminator_optimizer.learning_rate = 4e-5
    gan.judges = (dict(gan.judges[0]) | {"conditional": True},)
    return config
