"""PaGoDA (Kim et al. 2024) on Fashion-MNIST, on a laptop: 8x8 -> 16x16 -> 32x32.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_pagoda.py --workdir=runs/fashion_pagoda

The images of 28x28 pixels are padded to 32x32. A teacher of 8x8 pixels, one-step generators that
grow from it, the teacher's samples enlarged, and a teacher of 32x32 pixels to compare with, whose
training has as many operations as all that `pagoda/32` needs. All numbers are ours.

Expected (seed 0, Frechet distance of pixels to 10,000 training images of the size): teacher 0.52 in
8 steps; one of pagoda/8 0.30, of pagoda/16 4.3, of pagoda/32 29.5; upsampled/32 104; teacher_32
31.6 in 8 steps. It takes 26 minutes on two cores of an x86 server. With 3,000 updates of the
teacher, 1,000 of each generator and latents of 10 steps pagoda/32 came to 15.5.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.digits_gan import pixel_adversary
from pdistill.configs.scale import ADVERSARIAL

NETWORK = {
    "channels": 32,
    "embedding_channels": 128,
    "multipliers": (1, 2),
    "blocks": 1,
    "head_channels": 32,
}
GROWN = {"fixed": "pagoda", "adversarial": 1.0}  # its new levels learn


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_pagoda has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "fashion_mnist@32", "train": "train[:10000]"},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": NETWORK | {"patch": 1, "attention_sizes": (4, 8)},
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels",),
                "references": ("train[:10000]",),
                "num_samples": 2000,
                "batch_size": 500,
            },
            "stages": (
                teacher("teacher", num_updates=1300, resolution=8),
                # Judges halve their maps to 4 pixels a side.
                pagoda(8, num_updates=250, halvings=1, adversarial=0.2),
                pagoda(16, num_updates=250, halvings=2, start="pagoda/8", grown=(32,), **GROWN),
                pagoda(32, num_updates=350, halvings=3, start="pagoda/16", grown=(32, 32), **GROWN),
                {
                    "name": "upsampled/32",
                    "method": "upsampled",
                    "teacher": "teacher",
                    "resolution": 32,
                    "factor": 4,
                    "measured_at": (8,),
                },
                teacher(
                    "teacher_32",
                    num_updates=2100,
                    network=NETWORK | {"patch": 2, "attention_sizes": (7, 8)},
                ),
            ),
        }
    )


def loop(num_updates: int, batch_size: int) -> dict[str, int]:
    common = {"substeps": 1, "log_every": 50, "save_every": 100}
    return {"num_updates": num_updates, "batch_size": batch_size, **common}


def teacher(name: str, *, num_updates: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "method": "teacher",
        "measured_at": (8, 4, 2, 1),
        "stratified": True,
        "loop": loop(num_updates, batch_size=32),
        "optimizer": {
            "learning_rate": 2e-3,
            "warmup": 200,
            "anneal": "cosine",
            "b2": 0.99,
            "ema_decay": 0.998,
        },
        **changes,
    }


def pagoda(resolution: int, *, num_updates: int, halvings: int, **changes: Any) -> dict[str, Any]:
    """A generator of images of this size."""
    adam = ADVERSARIAL | {"learning_rate": 5e-4, "anneal": "linear"}
    return {
        "name": f"pagoda/{resolution}",
        "method": "pagoda",
        "teacher": "teacher",
        "resolution": resolution,
        "latents": {"num_steps": 8},
        "layer": "conv_out/kernel",
        "adversary": pixel_adversary(halvings, width=64),
        "loop": loop(num_updates, batch_size=16),
        "optimizer": adam | {"ema_decay": 0.998, "ema_ramp": 0.1},
        **changes,
    }
