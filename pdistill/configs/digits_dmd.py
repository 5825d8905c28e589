"""Distribution matching (Yin et al. 2023, 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_dmd.py --workdir=runs/digits_dmd

The teacher of `digits_pd` becomes a one-step generator ("dm"), which then also deceives the
classifier of DMD2 ("dm_gan") and at last becomes one of four steps ("dm_gan_multistep"); beside it,
one with the noise-image pairs of DMD ("dm_regression") and one with the classifier alone ("gan").

Expected (seed 0, Frechet distance to the training images of pixels / of the classifier's features):
teacher 0.39 / 12.4 at 64 DDIM steps, 17.1 / 505 at one; one evaluation of dm 0.46 / 10.4, of dm_gan
0.36 / 8.0, of dm_regression 0.46 / 15.3, of gan 3.0 / 65; four of dm_gan_multistep 0.33 / 7.4. It
takes 23 minutes on two cores of an x86 server.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs import digits_pd
from pdistill.configs.recipes import DMD, GAN_ADAM, LOOP


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_dmd has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation.update(
        metrics=("fd_pixels", "fd_classifier", "precision_recall", "class_shares"),
        references=("train",),
        features="classifier",
    )
    teacher, _ = config.stages
    teacher["num_steps"] = (64, 4, 1)
    stage = dmd() | {"select": "fd_pixels", "bottleneck": 1}  # the middle of the transformer
    loop = stage["loop"] | {"save_every": 500}
    slow = {name: stage[name] | {"learning_rate": 3e-4} for name in ("optimizer", "fake_optimizer")}
    alone = {
        "matching": 0.0,
        "adversarial": 0.1,
        "discriminating": 0.1,
        "loop": loop | {"num_updates": 1000},
    }
    judged = slow | {"adversarial": 3e-2}
    multistep = {
        "levels": (-20.0, -1.0, 1.5, 4.0),  # DMD2's four steps are at -20, -2.75, -1 and 0.8
        "told_level": True,
        "loop": loop | {"num_updates": 6000},
    }
    regression = {
        "regression": 0.25,
        "pairs": {"num": 5000, "num_steps": 18},
        "loop": stage["loop"] | {"num_updates": 3000},
    }
    stages = (
        stage | {"name": "gan"} | alone,
        stage | {"name": "dm"},
        stage | {"name": "dm_gan", "start": "dm"} | judged | {"loop": loop | {"num_updates": 2500}},
        stage | {"name": "dm_regression"} | regression,
        stage | {"name": "dm_gan_multistep", "start": "dm_gan"} | judged | multistep,
    )
    config.stages = (teacher, *map(ConfigDict, stages))
    return config


def dmd() -> dict[str, Any]:
    """The settings of every generator here."""
    adam = GAN_ADAM | {"anneal": "linear"}
    return DMD | {
        "fake_updates": 2,
        "noise": {"data_std": 0.75},  # EDM's levels for data of unit deviation, with more noise
        "loop": LOOP | {"num_updates": 5000, "batch_size": 64, "save_every": 1000},
        "optimizer": adam | {"learning_rate": 7e-4, "ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": adam | {"learning_rate": 1e-3},
    }
