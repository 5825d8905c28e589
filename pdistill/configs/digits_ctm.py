"""Consistency trajectory models (Kim et al. 2023) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_ctm.py --workdir=runs/digits_ctm

A teacher on patches of 2 x 2 pixels becomes one network for any number of steps: by consistency
with the teacher's trajectories and denoising ("ctm"), then with an adversary too ("ctm_gan").
Rounds with the settings of `digits_pd` follow, for comparison. All numbers are ours.

Expected (seed 0, Frechet distance to the training images of pixels, at 1 / 2 / 4 / 8 jumps): ctm
0.47 / 0.41 / 0.35 / 0.32, ctm_gan 0.30 / 0.28 / 0.26 / 0.25; the teacher has 0.40 at 64 DDIM steps.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_ctm has no variants; got {variant!r}")
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
                "metrics": ("fd_pixels", "fd_classifier", "precision_recall"),
                "references": ("train",),
                "features": "classifier",
                "gammas": (0.0, 0.5, 1.0),
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (64, 32, 16, 8, 4, 2, 1),
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
                {
                    "name": "ctm",
                    "method": "ctm",
                    "teacher": "teacher",
                    "measured_at": (1, 2, 4, 8),
                    "layer": "pixels/kernel",
                    "schedule": {
                        "rho": 15.0
                    },  # two and four steps with less noise at their middle than 7 has
                    "grid_points": 18,
                    "solver_steps": 4,
                    "distance": "huber",
                    "loop": {"num_updates": 3000, "batch_size": 64, "save_every": 500},
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "anneal": "linear",
                        "b2": 0.99,
                        "ema_decay": 0.99,
                    },
                },
                {
                    "name": "ctm_gan",
                    "method": "ctm",
                    "teacher": "teacher",
                    "start": "ctm",
                    "adversary": {
                        "judges": (
                            {"features": "pixels", "halvings": (2,), "width": 128, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (2,),
                                "width": 128,
                                "mixing": 0,
                                "batch_norm": False,
                            },
                        ),
                        "r1": 0.5,
                        "optimizer": {
                            "learning_rate": 5e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "measured_at": (1, 2, 4, 8),
                    "layer": "pixels/kernel",
                    "schedule": {
                        "rho": 15.0
                    },  # two and four steps with less noise at their middle than 7 has
                    "grid_points": 18,
                    "solver_steps": 4,
                    "distance": "huber",
                    "loop": {"num_updates": 900, "batch_size": 64, "save_every": 300},
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b2": 0.99,
                        "ema_decay": 0.99,
                    },
                    "select": "fd_pixels",
                },
                {
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 64,
                    "long_rounds": 2,
                    "stratified": True,
                    "loop": {"num_updates": 400, "batch_size": 64, "save_every": 200},
                    "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
                },
            ),
        }
    )
