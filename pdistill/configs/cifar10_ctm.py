"""Consistency trajectory models (Kim et al. 2023) on CIFAR-10.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_ctm.py --workdir=runs/cifar10_ctm

The released settings for the unconditional model, from the teacher of `cifar10_pd` (theirs is
EDM's, which has FID 1.97 at 35 evaluations): 50k updates of consistency and denoising, then 15k
with an adversary. Published: FID 1.98 at one evaluation, 1.87 at two; without the adversary 5.19
at one. `cifar10_ctm.py:cpu` is the same on a laptop's scale: expected (seed 0, Frechet distance of
pixels / of EfficientNet-Lite0's features, 1,000 samples against 5,000 images) teacher 198 / 270 at
8 steps, 598 / 339 at one; ctm 141 / 290 at one and 119 / 291 at four; ctm_gan 136 / 240 and
105 / 244.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import LOOP, laptop_ctm, released_ctm


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return laptop_ctm(cifar10_pd.get_config("cpu"))
    if variant:
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")
    loop = LOOP | {"substeps": 1, "save_every": 5000}
    config = released_ctm(
        cifar10_pd.get_config(),
        ctm={
            "layer": "conv_out/kernel",
            "levels": 18,
            "solver_steps": 17,
            "loop": loop | {"num_updates": 50_000, "batch_size": 256},
        },
        gan={"loop": loop | {"num_updates": 15_000, "batch_size": 528}},
    )
    config.evaluation.metrics += ("fd_pixels",)  # which no network trained on ImageNet has a say in
    return config
