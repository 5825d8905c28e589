"""Multi-student distillation (Song et al. 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_msd.py --workdir=runs/digits_msd

A teacher that is told labels, and generators of half its width: two for five digits each ("msd"),
one for all of them that has as many updates as each of the two ("single"), and two that have not
learnt the teacher's scores first ("msd_no_tsm"). All numbers are ours.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.scale import ADVERSARIAL

HALF = {"features": 32, "heads": 2}  # of the teacher's width


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
                    "optimizer": adam(),
                },
                students("msd", 2, score_matching=score_matching(), student=generator()),
                students("single", 1, score_matching=score_matching(), student=generator()),
                students("msd_no_tsm", 2, student=generator(scratch=True, network=dict(HALF))),
            ),
        }
    )


def adam() -> dict[str, Any]:
    """The optimizer of diffusion models."""
    return {
        "learning_rate": 3e-3,
        "warmup": 100,
        "anneal": "cosine",
        "b2": 0.99,
        "ema_decay": 0.998,
    }


def students(name: str, parts: int, **stages: Any) -> dict[str, Any]:
    """A stage of several students, each by the stages `score_matching` and `student`."""
    return {"name": name, "method": "multi_student", "parts": parts, **stages}


def score_matching() -> dict[str, Any]:
    """A student's first stage: its network learns the teacher's scores."""
    return {
        "name": "tsm",
        "method": "score_matching",
        "teacher": "teacher",
        "network": dict(HALF),
        "stratified": True,
        "loop": {"num_updates": 1000, "batch_size": 64, "save_every": 1000},
        "optimizer": adam(),
    }


def generator(**changes: Any) -> dict[str, Any]:
    """A student's last stage: a generator of its digits, by distribution matching."""
    rate = ADVERSARIAL | {"anneal": "linear"}
    return {
        "name": "dmd",
        "method": "dmd",
        "teacher": "teacher",
        "fake_updates": 2,
        "noise": {"data_std": 0.75},  # EDM's levels for data of unit deviation, with more noise
        "loop": {"num_updates": 2500, "batch_size": 64, "save_every": 500},
        "optimizer": rate | {"learning_rate": 7e-4, "ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": rate | {"learning_rate": 1e-3},
        **changes,
    }
