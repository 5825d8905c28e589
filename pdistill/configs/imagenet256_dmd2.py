"""Distribution matching (DMD2, Yin et al. 2024) of a transformer of latents, ImageNet 256x256.

    python -m pdistill.main --config=configs/imagenet256_dmd2.py:imported \
        --config.teacher=models/sit --workdir=runs/imagenet256_dmd2

One step, of `imagenet256_latents`'s teacher or a converted one, guided by 0.5 as SiT is. Yin et al.
have no such teacher: the numbers are those of their ImageNet 64x64, `imagenet64_dmd2`, with its own
table, but for the batch and the weight of guidance. Not run here.
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_dmd2, imagenet256_latents


def get_config(variant: str = "") -> ConfigDict:
    config = imagenet256_latents.get_config(variant)
    config.evaluation.solvers = ("ddim",)
    *_, dmd = imagenet64_dmd2.get_config().stages
    dmd["loop"]["batch_size"] = 256  # ours
    dmd.update(guidance=5.7 if variant else 0.5, data_std=1.0)  # latents are scaled
    config.stages = (*config.stages, dmd)
    return config
