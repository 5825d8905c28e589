"""GAN fine-tuning (Zheng & Yang 2025) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_gan.py --workdir=runs/digits_gan

The teacher of `digits_pd` becomes a one-step generator by a GAN objective alone: with all weights
("gan"), with a fifth of them ("gan_frozen"), and from scratch ("gan_scratch", the control). Two
judges look at pixels, one with batch norm, which keeps samples diverse, and one without, which
makes them exact. Of each run the model with the least Frechet distance of pixels is kept.

Expected (seed 0, Frechet distance to the training images of pixels / of the classifier's features):
teacher 0.40 / 12.9 at 64 DDIM steps, 17.1 / 506 at one; one step of gan 0.36 / 6.0, of gan_frozen
0.38 / 8.6, of gan_scratch 1.46 / 25.6. It takes 12 minutes on two cores of an x86 server.

`digits_gan.py:polish` compares with progressive distillation instead, whose
students of 4, 2 and 1 steps are polished in the same way.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs import digits_pd
from pdistill.configs.recipes import GAN, GAN_ADAM, LOOP, gan_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "polish"):
        raise ValueError(f"variants: '' and 'polish'; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation.update(
        metrics=(
            "fd_pixels",
            "fd_classifier",
            "precision_recall",
            "class_shares",
            "nearest_neighbour_ratio",
        ),
        references=("train",),
        features="classifier",
    )
    teacher, progressive = config.stages
    teacher["num_steps"] = (64, 4, 1)
    full = gan()
    frozen = {  # fewer parameters take a higher rate, and more updates
        "frozen": "dit",
        "loop": full["loop"] | {"num_updates": 3000},
        "optimizer": full["optimizer"] | {"learning_rate": 1e-3},
    }
    config = gan_stages(config, full, frozen=frozen, comparisons=not variant)
    if variant:
        polished = (
            ConfigDict(
                GAN
                | gan()
                | {
                    "name": f"polish/{steps}",
                    "teacher": f"progressive/{steps}",
                    "num_steps": steps,
                }
            )
            for steps in (4, 2, 1)
        )
        config.stages = (*config.stages, progressive, *polished)
    return config


def gan() -> dict[str, Any]:
    """The settings of every generator here."""
    judge = {"features": "pixels", "halvings": (2,), "width": 128, "mixing": 0}
    adam = GAN_ADAM | {"learning_rate": 5e-4, "anneal": "linear"}
    return {
        "judges": (judge, judge | {"batch_norm": False}),
        "r1": 0.5,
        "loop": LOOP | {"num_updates": 1800, "batch_size": 64, "save_every": 300},
        "optimizer": adam | {"ema_decay": 0.999, "ema_ramp": 0.1},
        "discriminator_optimizer": adam,
        "select": "fd_pixels",
    }
