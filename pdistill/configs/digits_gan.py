"""GAN fine-tuning (Zheng & Yang 2025) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_gan.py --workdir=runs/digits_gan

A teacher on patches of 2 x 2 pixels becomes a one-step generator by a GAN objective alone: with all
weights ("gan"), with a fifth of them ("gan_frozen"), and from scratch ("gan_scratch", the control).
Two judges look at pixels, one with batch norm, which keeps samples diverse, and one without, which
makes them exact. The model of each run with the least Frechet distance of pixels is kept. All
numbers are ours.

Expected (seed 0, Frechet distance to the training images of pixels / of the classifier's features):
teacher 0.40 / 12.9 at 64 DDIM steps, 17.1 / 506 at one; one step of gan 0.36 / 6.0, of gan_frozen
0.38 / 8.6, of gan_scratch 1.46 / 25.6. It takes 12 minutes on two cores of an x86 server.

`digits_gan.py:polish` compares with progressive distillation instead, whose
students of 4, 2 and 1 steps are polished in the same way. `digits_methods` has `gan` from here, and
other configs have the judges.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.scale import ADVERSARIAL


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "polish"):
        raise ValueError(f"variants: '' and 'polish'; got {variant!r}")
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
                "metrics": (
                    "fd_pixels",
                    "fd_classifier",
                    "precision_recall",
                    "class_shares",
                    "nearest_neighbour_ratio",
                ),
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
                gan("gan"),
                *(polish() if variant else comparisons()),
            ),
        }
    )


def gan(
    name: str, num_updates: int = 1800, learning_rate: float = 5e-4, **changes: Any
) -> dict[str, Any]:
    """A generator from the teacher's weights; `learning_rate` is its own, not its judges'."""
    adam = ADVERSARIAL | {"learning_rate": learning_rate, "anneal": "linear"}
    return {
        "name": name,
        "method": "gan",
        "teacher": "teacher",
        "adversary": pixel_adversary(),
        "loop": {"num_updates": num_updates, "batch_size": 64, "save_every": 300},
        "optimizer": adam | {"ema_decay": 0.999, "ema_ramp": 0.1},
        "select": "fd_pixels",
        **changes,
    }


def pixel_adversary(halvings: int = 2, width: int = 128) -> dict[str, Any]:
    """Two judges of pixels: batch norm keeps samples diverse, and none makes them exact."""
    judge = {"features": "pixels", "halvings": (halvings,), "width": width, "mixing": 0}
    return {
        "judges": (judge, judge | {"batch_norm": False}),
        "r1": 0.5,
        "optimizer": ADVERSARIAL | {"learning_rate": 5e-4, "anneal": "linear"},
    }


def comparisons() -> tuple:
    """A fifth of the weights, and the control from scratch."""
    # Fewer parameters take a higher rate, and more updates.
    frozen = gan("gan_frozen", num_updates=3000, learning_rate=1e-3, fixed="dit")
    return frozen, gan("gan_scratch", scratch=True)


def polish() -> tuple:
    """Rounds with the settings of `digits_pd`, and three of their students polished."""
    rounds = {
        "name": "progressive",
        "method": "progressive",
        "teacher": "teacher",
        "start_steps": 64,
        "long_rounds": 2,
        "stratified": True,
        "loop": {"num_updates": 400, "batch_size": 64, "save_every": 200},
        "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
    }
    polished = (
        gan(f"polish/{steps}", teacher=f"progressive/{steps}", num_steps=steps)
        for steps in (4, 2, 1)
    )
    return rounds, *polished
