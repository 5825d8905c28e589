"""GAN fine-tuning (Zheng & Yang 2025) on Fashion-MNIST, on a laptop.

    pip install -e '.[features]'
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_gan.py --workdir=runs/fashion_gan

The teacher of `fashion_pd` becomes a generator: with all weights, with the blocks' convolutions
fixed, and from scratch as a control. All numbers are ours.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_gan has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "fashion_mnist"},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "patch": 2,
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (1, 2),
                        "blocks": 1,
                        "attention_sizes": (7, 8),
                        "head_channels": 32,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
                "references": ("train[:5000]",),
                "num_samples": 1000,
                "batch_size": 500,
                "features": "pixels",  # the space that the discriminator does not use
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (8, 4, 2, 1),
                    "stratified": True,
                    "loop": {
                        "num_updates": 2500,
                        "batch_size": 16,
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
                    "name": "gan",
                    "method": "gan",
                    "teacher": "teacher",
                    "adversary": {
                        # EfficientNet-Lite0 hardly sees brightness and colour,
                        # which drift without the teacher's own encoder beside it.
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (2, 1, 1, 1),
                                "width": 128,
                                "mixing": 32,
                            },
                            {"features": "teacher", "halvings": (2, 1), "width": 128, "mixing": 32},
                        ),
                        "r1": 1e-3,
                        "optimizer": {
                            "learning_rate": 3e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 200,
                    },
                    "optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                    "select": "fd_pixels",
                },
                {
                    "name": "gan_frozen",
                    "method": "gan",
                    "teacher": "teacher",
                    "fixed": "unet",
                    "adversary": {
                        # EfficientNet-Lite0 hardly sees brightness and colour,
                        # which drift without the teacher's own encoder beside it.
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (2, 1, 1, 1),
                                "width": 128,
                                "mixing": 32,
                            },
                            {"features": "teacher", "halvings": (2, 1), "width": 128, "mixing": 32},
                        ),
                        "r1": 1e-3,
                        "optimizer": {
                            "learning_rate": 3e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 200,
                    },
                    "optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                    "select": "fd_pixels",
                },
                {
                    "name": "gan_scratch",
                    "method": "gan",
                    "teacher": "teacher",
                    "scratch": True,
                    "adversary": {
                        # EfficientNet-Lite0 hardly sees brightness and colour,
                        # which drift without the teacher's own encoder beside it.
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (2, 1, 1, 1),
                                "width": 128,
                                "mixing": 32,
                            },
                            {"features": "teacher", "halvings": (2, 1), "width": 128, "mixing": 32},
                        ),
                        "r1": 1e-3,
                        "optimizer": {
                            "learning_rate": 3e-4,
                            "anneal": "linear",
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 200,
                    },
                    "optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.998,
                        "ema_ramp": 0.1,
                    },
                    "select": "fd_pixels",
                },
            ),
        }
    )
