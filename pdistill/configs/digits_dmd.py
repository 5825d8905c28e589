"""Distribution matching (Yin et al. 2023, 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_dmd.py --workdir=runs/digits_dmd

A teacher on patches of 2 x 2 pixels becomes a one-step generator ("dm"), which then also deceives
the classifier of DMD2 ("dm_gan") and at last becomes one of four steps ("dm_gan_multistep"); beside
it, one with the noise-image pairs of DMD ("dm_regression"; by LPIPS there, whose VGG16 has no kept
JAX library, and in pixels here) and one with the classifier alone ("gan"). All numbers are ours.

Expected (seed 0, Frechet distance to the training images of pixels / of the classifier's features):
teacher 0.39 / 12.4 at 64 DDIM steps, 17.1 / 505 at one; one evaluation of dm 0.46 / 10.4, of dm_gan
0.36 / 8.0, of dm_regression 0.46 / 15.3, of gan 3.0 / 65; four of dm_gan_multistep 0.33 / 7.4. It
takes 23 minutes on two cores of an x86 server. `digits_methods` has `dmd` from here.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.scale import ADVERSARIAL


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_dmd has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "digits"},
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {"patch": 2, "features": 64, "depth": 4, "heads": 4},
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels", "fd_classifier", "precision_recall", "class_shares"),
                "references": ("train",),
                "features": "classifier",
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (64, 4, 1),
                    "stratified": True,
                    "loop": {"num_updates": 3000, "batch_size": 64, "save_every": 500},
                    "optimizer": {
                        "learning_rate": 3e-3,
                        "warmup": 100,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
                dmd("gan", updates(1000), matching=0.0, adversarial=0.1, discriminating=0.1),
                dmd("dm", updates(5000, save_every=1000)),
                dmd("dm_gan", updates(2500), rates=(3e-4, 3e-4), start="dm", adversarial=3e-2),
                dmd(
                    "dm_regression",
                    updates(3000, save_every=1000),
                    regression=0.25,  # DMD, for CIFAR-10 with labels
                    pairs={"num": 5000, "num_steps": 18},
                ),
                dmd(
                    "dm_gan_multistep",
                    updates(6000),
                    rates=(3e-4, 3e-4),
                    start="dm_gan",
                    adversarial=3e-2,
                    generated_at=(-20.0, -1.0, 1.5, 4.0),  # DMD2's: -20, -2.75, -1 and 0.8
                    told_level=True,
                ),
            ),
        }
    )


def updates(num_updates: int, save_every: int = 500) -> dict[str, int]:
    return {"num_updates": num_updates, "batch_size": 64, "save_every": save_every}


def dmd(
    name: str,
    loop: dict[str, int],
    rates: tuple[float, float] = (7e-4, 1e-3),
    **changes: Any,
) -> dict[str, Any]:
    """A generator, with the learning rates of it and of its fake score."""
    generator, fake = (ADVERSARIAL | {"learning_rate": r, "anneal": "linear"} for r in rates)
    return {
        "name": name,
        "method": "dmd",
        "teacher": "teacher",
        "fake_updates": 2,
        "bottleneck": 1,  # the middle of the transformer
        "noise": {"data_std": 0.75},  # EDM's levels for data of unit deviation, with more noise
        "loop": loop,
        "optimizer": generator | {"ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": fake,
        "select": "fd_pixels",
        **changes,
    }
