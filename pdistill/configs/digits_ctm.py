"""Consistency trajectory models (Kim et al. 2023) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_ctm.py --workdir=runs/digits_ctm

The teacher of `digits_pd` becomes one network for any number of steps: by consistency with the
teacher's trajectories and denoising ("ctm"), then with an adversary too ("ctm_gan"). The rounds of
`digits_pd` follow, for comparison.

Expected (seed 0, Frechet distance to the training images of pixels, at 1 / 2 / 4 / 8 jumps): ctm
0.47 / 0.41 / 0.35 / 0.32, ctm_gan 0.30 / 0.28 / 0.26 / 0.25; the teacher has 0.40 at 64 DDIM steps.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_gan, digits_pd
from pdistill.configs.recipes import LOOP, ctm_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_ctm has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation.update(
        metrics=("fd_pixels", "fd_classifier", "precision_recall"),
        references=("train",),
        features="classifier",
        gammas=(0.0, 0.5, 1.0),
    )
    judged = digits_gan.gan()
    loop = LOOP | {"batch_size": 64, "save_every": 500}
    adam = {"learning_rate": 1e-3, "b2": 0.99, "anneal": "linear", "ema_decay": 0.99}
    _, progressive = config.stages
    config = ctm_stages(
        config,
        ctm={
            "num_steps": (1, 2, 4, 8),
            "layer": "pixels/kernel",
            "rho": 15.0,  # two and four steps with less noise at their middle than 7 has
            "levels": 18,
            "solver_steps": 4,
            "distance": "huber",
            "loop": loop | {"num_updates": 3000},
            "optimizer": adam,
        },
        gan={
            "judges": judged["judges"],
            "discriminator_optimizer": judged["discriminator_optimizer"],
            "loss": "non_saturating",
            "r1": judged["r1"],
            "loop": loop | {"num_updates": 900, "save_every": 300},
            "optimizer": adam | {"learning_rate": 5e-4},
            "select": "fd_pixels",
        },
    )
    config.stages = (*config.stages, progressive)  # to compare with
    return config
