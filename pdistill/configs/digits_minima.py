r"""The local-minima experiment of Zheng & Yang (2025, section 3) on handwritten digits.

    python -m pdistill.main --config=configs/digits_minima.py --workdir=runs/minima
    python -m pdistill.compare --teacher=runs/minima/teacher --reference=digits:train \
        --students=runs/minima/direct_2@2,runs/minima/direct_4@4,runs/minima/direct_8@8,runs/minima/direct_16@16

One-step students, all started from the same teacher, are regressed on its samples of 2, 4, 8 and
16 DDIM steps from the same noise. All numbers are ours.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_minima has no variants; got {variant!r}")
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
            "evaluation": {"metrics": ("fd_pixels", "fd_classifier"), "references": ("train",)},
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (16, 8, 4, 2, 1),
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
                *(
                    {
                        "name": f"direct_{steps}",
                        "method": "direct",
                        "teacher": "teacher",
                        "teacher_steps": steps,
                        "loop": {"num_updates": 1500, "batch_size": 64, "save_every": 500},
                        "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
                    }
                    for steps in (2, 4, 8, 16)
                ),
            ),
        }
    )
