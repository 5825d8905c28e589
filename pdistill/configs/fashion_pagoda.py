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

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_pagoda has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "fashion_mnist@32", "train": "train[:10000]"},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "patch": 1,
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (1, 2),
                        "blocks": 1,
                        "attention_sizes": (4, 8),
                        "head_channels": 32,
                    },
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
                {
                    "name": "teacher",
                    "method": "teacher",
                    "resolution": 8,
                    "measured_at": (8, 4, 2, 1),
                    "stratified": True,
                    "loop": {
                        "num_updates": 1300,
                        "batch_size": 32,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {
                        "learning_rate": 2e-3,
                        "warmup": 200,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
                {
                    "name": "pagoda/8",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "resolution": 8,
                    "latents": {"num_steps": 8},
                    "adversarial": 0.2,
                    "layer": "conv_out/kernel",
                    "adversary": {
                        "judges": (  # halved to maps of 4 pixels a side
                            {"features": "pixels", "halvings": (1,), "width": 64, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (1,),
                                "width": 64,
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
                    "loop": {
                        "num_updates": 250,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                },
                {
                    "name": "pagoda/16",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "start": "pagoda/8",
                    "resolution": 16,
                    "grown": (32,),
                    "fixed": "pagoda",
                    "latents": {"num_steps": 8},
                    "adversarial": 1.0,
                    "layer": "conv_out/kernel",
                    "adversary": {
                        "judges": (  # halved to maps of 4 pixels a side
                            {"features": "pixels", "halvings": (2,), "width": 64, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (2,),
                                "width": 64,
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
                    "loop": {
                        "num_updates": 250,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                },
                {
                    "name": "pagoda/32",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "start": "pagoda/16",
                    "resolution": 32,
                    "grown": (32, 32),
                    "fixed": "pagoda",
                    "latents": {"num_steps": 8},
                    "adversarial": 1.0,
                    "layer": "conv_out/kernel",
                    "adversary": {
                        "judges": (  # halved to maps of 4 pixels a side
                            {"features": "pixels", "halvings": (3,), "width": 64, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (3,),
                                "width": 64,
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
                    "loop": {
                        "num_updates": 350,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                },
                {
                    "name": "upsampled/32",
                    "method": "upsampled",
                    "teacher": "teacher",
                    "resolution": 32,
                    "factor": 4,
                    "measured_at": (8,),
                },
                {
                    "name": "teacher_32",
                    "method": "teacher",
                    "network": {
                        "patch": 2,
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (1, 2),
                        "blocks": 1,
                        "attention_sizes": (7, 8),
                        "head_channels": 32,
                    },
                    "measured_at": (8, 4, 2, 1),
                    "stratified": True,
                    "loop": {
                        "num_updates": 2100,
                        "batch_size": 32,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {
                        "learning_rate": 2e-3,
                        "warmup": 200,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
            ),
        }
    )
