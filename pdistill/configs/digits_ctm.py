"""Consistency trajectory models (Kim et al. 2023) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_ctm.py --workdir=runs/digits_ctm

A teacher on patches of 2 x 2 pixels becomes one network for any number of steps: by consistency
with the teacher's trajectories and denoising ("ctm"), then with an adversary too ("ctm_gan").
Rounds with the settings of `digits_pd` follow, for comparison. All numbers are ours.

Expected (seed 0, Frechet distance to the training images of pixels, at 1 / 2 / 4 / 8 jumps): ctm
0.47 / 0.41 / 0.35 / 0.32, ctm_gan 0.30 / 0.28 / 0.26 / 0.25; the teacher has 0.40 at 64 DDIM steps.

`digits_methods` has `ctm` and `ctm_gan` from here.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.digits_gan import pixel_adversary


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
                ctm("ctm", updates(3000)),
                ctm_gan(updates(900, save_every=300), start="ctm"),
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


def updates(num_updates: int, save_every: int = 500) -> dict[str, int]:
    return {"num_updates": num_updates, "batch_size": 64, "save_every": save_every}


def ctm(
    name: str, loop: dict[str, int], learning_rate: float = 1e-3, **changes: Any
) -> dict[str, Any]:
    """A network that jumps, by consistency with the teacher's trajectories and denoising."""
    return {
        "name": name,
        "method": "ctm",
        "teacher": "teacher",
        "measured_at": (1, 2, 4, 8),
        "layer": "pixels/kernel",
        "schedule": {"rho": 15.0},  # less noise in the middle of two and four steps than 7 has
        "grid_points": 18,
        "solver_steps": 4,
        "distance": "huber",
        "loop": loop,
        "optimizer": {
            "learning_rate": learning_rate,
            "anneal": "linear",
            "b2": 0.99,
            "ema_decay": 0.99,
        },
        **changes,
    }


def ctm_gan(loop: dict[str, int], **changes: Any) -> dict[str, Any]:
    """`ctm` with an adversary."""
    changes = {"adversary": pixel_adversary(), "select": "fd_pixels"} | changes
    return ctm("ctm_gan", loop, learning_rate=5e-4, **changes)
