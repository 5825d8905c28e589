"""Progressive distillation on Fashion-MNIST, on a laptop.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_pd.py:cpu --workdir=runs/fashion

All numbers are ours.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"fashion_pd has the variant 'cpu'; got {variant!r}")
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
                "metrics": ("fd_pixels",),
                "references": ("train",),
                "num_samples": 1000,
                "batch_size": 500,
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
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 8,
                    "long_rounds": 1,
                    "stratified": True,
                    "loop": {
                        "num_updates": 300,
                        "batch_size": 16,
                        "substeps": 1,
                        "log_every": 50,
                        "save_every": 100,
                    },
                    "optimizer": {"learning_rate": 5e-4, "anneal": "linear", "b2": 0.99},
                },
            ),
        }
    )
