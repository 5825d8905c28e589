"""PaGoDA (Kim et al. 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_pagoda.py --workdir=runs/digits_pagoda

A teacher of 4x4 digits, a one-step generator of them, and the generator grown to 8x8, beside the
teacher's samples enlarged. All numbers are ours.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.digits_gan import pixel_adversary


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_pagoda has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "digits"},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (1, 2),
                        "blocks": 1,
                        "attention_sizes": (),
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {"metrics": ("fd_pixels",), "references": ("train",)},
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "resolution": 4,
                    "measured_at": (64, 4, 1),
                    "stratified": True,
                    "loop": {
                        "num_updates": 2000,
                        "batch_size": 64,
                        "substeps": 1,
                        "save_every": 500,
                    },
                    "optimizer": {
                        "learning_rate": 3e-3,
                        "warmup": 100,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
                pagoda(4, adversarial=0.2),
                pagoda(8, adversarial=1.0, start="pagoda/4", grown=(32,), fixed="pagoda"),
                {
                    "name": "upsampled/8",
                    "method": "upsampled",
                    "teacher": "teacher",
                    "resolution": 8,
                    "factor": 2,
                    "measured_at": (64,),
                },
            ),
        }
    )


def pagoda(resolution: int, **changes: Any) -> dict[str, Any]:
    """A generator of images of this size."""
    return {
        "name": f"pagoda/{resolution}",
        "method": "pagoda",
        "teacher": "teacher",
        "resolution": resolution,
        "adversary": pixel_adversary(),
        "loop": {"num_updates": 1000, "batch_size": 64, "substeps": 1, "save_every": 500},
        "optimizer": {"learning_rate": 5e-4, "anneal": "linear", "b2": 0.99, "ema_decay": 0.99},
        **changes,
    }
