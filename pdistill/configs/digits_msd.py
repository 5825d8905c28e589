"""Multi-student distillation (Song et al. 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_msd.py --workdir=runs/digits_msd

A teacher that is told labels, and generators of half its width: two for five digits each ("msd"),
one for all of them that has as many updates as each of the two ("single"), and two that have not
learnt the teacher's scores first ("msd_no_tsm"). All numbers are ours.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_msd has no variants; got {variant!r}")
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
                {
                    "name": "msd",
                    "method": "multi_student",
                    "parts": 2,
                    "score_matching": {
                        "name": "tsm",
                        "method": "score_matching",
                        "teacher": "teacher",
                        "network": {"features": 32, "heads": 2},
                        "stratified": True,
                        "loop": {"num_updates": 1000, "batch_size": 64, "save_every": 1000},
                        "optimizer": {
                            "learning_rate": 3e-3,
                            "warmup": 100,
                            "anneal": "cosine",
                            "b2": 0.99,
                            "ema_decay": 0.998,
                        },
                    },
                    "student": {
                        "name": "dmd",
                        "method": "dmd",
                        "teacher": "teacher",
                        "fake_updates": 2,
                        "noise": {
                            "data_std": 0.75
                        },  # EDM's levels for data of unit deviation, with more noise
                        "loop": {"num_updates": 2500, "batch_size": 64, "save_every": 500},
                        "optimizer": {
                            "learning_rate": 7e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                            "ema_decay": 0.99,
                            "ema_ramp": 0.1,
                        },
                        "fake_optimizer": {
                            "learning_rate": 1e-3,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                },
                {
                    "name": "single",
                    "method": "multi_student",
                    "parts": 1,
                    "score_matching": {
                        "name": "tsm",
                        "method": "score_matching",
                        "teacher": "teacher",
                        "network": {"features": 32, "heads": 2},
                        "stratified": True,
                        "loop": {"num_updates": 1000, "batch_size": 64, "save_every": 1000},
                        "optimizer": {
                            "learning_rate": 3e-3,
                            "warmup": 100,
                            "anneal": "cosine",
                            "b2": 0.99,
                            "ema_decay": 0.998,
                        },
                    },
                    "student": {
                        "name": "dmd",
                        "method": "dmd",
                        "teacher": "teacher",
                        "fake_updates": 2,
                        "noise": {
                            "data_std": 0.75
                        },  # EDM's levels for data of unit deviation, with more noise
                        "loop": {"num_updates": 2500, "batch_size": 64, "save_every": 500},
                        "optimizer": {
                            "learning_rate": 7e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                            "ema_decay": 0.99,
                            "ema_ramp": 0.1,
                        },
                        "fake_optimizer": {
                            "learning_rate": 1e-3,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                },
                {
                    "name": "msd_no_tsm",
                    "method": "multi_student",
                    "parts": 2,
                    "student": {
                        "name": "dmd",
                        "method": "dmd",
                        "teacher": "teacher",
                        "scratch": True,
                        "network": {"features": 32, "heads": 2},
                        "fake_updates": 2,
                        "noise": {
                            "data_std": 0.75
                        },  # EDM's levels for data of unit deviation, with more noise
                        "loop": {"num_updates": 2500, "batch_size": 64, "save_every": 500},
                        "optimizer": {
                            "learning_rate": 7e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                            "ema_decay": 0.99,
                            "ema_ramp": 0.1,
                        },
                        "fake_optimizer": {
                            "learning_rate": 1e-3,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                },
            ),
        }
    )
