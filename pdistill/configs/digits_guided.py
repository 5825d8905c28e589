"""Guided distillation (Meng et al. 2023) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_guided.py --workdir=runs/digits_guided

A label-conditional teacher that can be guided, one network for guidance weights from 0 to 4 that
needs no pair of evaluations, and its students of 32 to 1 steps. Every model is measured at the
weights 0, 1, 2 and 4.

Expected (seed 0): Frechet distance of pixels of the teacher's guided pair at 64 steps 0.29 / 1.00 /
1.96 / 3.63 at those weights, students 0.33 / 1.06 / 2.15 / 4.06 at 4 steps and 0.38 / 1.17 / 2.46 /
4.79 at one; 13 minutes on two cores of an x86 server. Examples of large weights count less, because
their errors are larger. All numbers are ours but for the range of weights.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_guided has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "digits"},
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {
                        "patch": 2,
                        "features": 64,
                        "depth": 4,
                        "heads": 4,
                        "num_labels": 10,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels", "label_accuracy", "precision_recall"),
                "references": ("train",),
                "guidance": (0.0, 1.0, 2.0, 4.0),
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "label_dropout": 0.1,
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
                {
                    "name": "guided",
                    "method": "guided",
                    "teacher": "teacher",
                    "measured_at": (64,),
                    "guidance": (0.0, 4.0),  # paper
                    "discount": 1.5,
                    "stratified": True,
                    "loop": {"num_updates": 8000, "batch_size": 64, "save_every": 500},
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "warmup": 100,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
                {
                    "name": "guided_progressive",
                    "method": "progressive",
                    "teacher": "guided",
                    "start_steps": 64,
                    "long_rounds": 2,
                    "discount": 1.5,
                    "stratified": True,
                    "loop": {"num_updates": 800, "batch_size": 64, "save_every": 200},
                    "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
                },
            ),
        }
    )
