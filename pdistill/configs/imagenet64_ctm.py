"""Consistency trajectory models (Kim et al. 2023) on class-conditional ImageNet 64x64.

    pip install '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_ctm.py --workdir=runs/imagenet64_ctm

The released settings, from the teacher of `imagenet64_pd` (theirs is EDM's): 10k updates of
consistency and denoising, then 24.5k with an adversary, with at most 39 and 20 of the teacher's
steps at once on 40 levels. Published: FID 1.92 at one evaluation, 1.73 at two; EDM's teacher 2.44
at 79.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_pd
from pdistill.configs.recipes import LOOP, released_ctm


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_ctm has no variants; got {variant!r}")
    loop = LOOP | {"substeps": 1, "save_every": 2500}
    config = released_ctm(
        imagenet64_pd.get_config(),
        ctm={
            "layer": "up_0.block_3/conv2/kernel",
            "levels": 40,
            "solver_steps": 39,
            "loop": loop | {"num_updates": 10_000, "batch_size": 1440},
        },
        gan={
            "solver_steps": 20,
            "loop": loop | {"num_updates": 24_500, "batch_size": 2112},
        },
    )
    config.stages[2].optimizer.learning_rate = 8e-6
    return config
