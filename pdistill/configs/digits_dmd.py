"""Distribution matching (Yin et al. 2023, 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_dmd.py --workdir=runs/digits_dmd

A teacher on patches of 2 x 2 pixels becomes a one-step generator ("dm"), which then also deceives
the classifier of DMD2 ("dm_gan") and at last becomes one of four steps ("dm_gan_multistep"); beside
it, one with the noise-image pairs of DMD ("dm_regression"; by LPIPS there, whose VGG16 has no kept
JAX library, and in pixels here) and one with the classifier alone ("gan"). All numbers are ours.

Expected (seed 0, Frechet distance to the training images of pixels / of the classifier's features):
teacher 0.39 / 12.4 at 64 DDIM steps, 17.1 / 505 at one; one evaluation of dm 0.46 / 10.4, of dm_gan
0.36 / 8.0, of dm_regression 0.46 / 15.3, of gan 3.0 / 65; four of dm_gan_multistep 0.33 / 7.4. It
takes 23 minutes on two cores of an x86 server.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_dmd has no variants; got {variant!r}")
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
                    "name": "gan",
                    "method": "dmd",
                    "teacher": "teacher",
                    "matching": 0.0,
                    "adversarial": 0.1,
                    "discriminating": 0.1,
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {"num_updates": 1000, "batch_size": 64, "save_every": 500},
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
                    "select": "fd_pixels",
                },
                {
                    "name": "dm",
                    "method": "dmd",
                    "teacher": "teacher",
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {"num_updates": 5000, "batch_size": 64, "save_every": 1000},
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
                    "select": "fd_pixels",
                },
                {
                    "name": "dm_gan",
                    "method": "dmd",
                    "teacher": "teacher",
                    "start": "dm",
                    "adversarial": 3e-2,
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {"num_updates": 2500, "batch_size": 64, "save_every": 500},
                    "optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.99,
                        "ema_ramp": 0.1,
                    },
                    "fake_optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                    },
                    "select": "fd_pixels",
                },
                {
                    "name": "dm_regression",
                    "method": "dmd",
                    "teacher": "teacher",
                    "regression": 0.25,  # DMD, for CIFAR-10 with labels
                    "pairs": {"num": 5000, "num_steps": 18},
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {"num_updates": 3000, "batch_size": 64, "save_every": 1000},
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
                    "select": "fd_pixels",
                },
                {
                    "name": "dm_gan_multistep",
                    "method": "dmd",
                    "teacher": "teacher",
                    "start": "dm_gan",
                    "adversarial": 3e-2,
                    "generated_at": (
                        -20.0,
                        -1.0,
                        1.5,
                        4.0,
                    ),  # DMD2's four are at -20, -2.75, -1 and 0.8
                    "told_level": True,
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {"num_updates": 6000, "batch_size": 64, "save_every": 500},
                    "optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.99,
                        "ema_ramp": 0.1,
                    },
                    "fake_optimizer": {
                        "learning_rate": 3e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                    },
                    "select": "fd_pixels",
                },
            ),
        }
    )
