"""PD, GAN, DMD and CTM on handwritten digits, at equal images seen and evaluations, on a laptop.

    python -m pdistill.main --config=configs/digits_methods.py --workdir=runs/digits_methods
    python -m benchmarks.across runs/digits_methods --out=runs/digits_methods

Each method has 128,000 images (2,000 updates of 64), all rounds of progressive distillation
together, and starts from the teacher, a transformer on patches of 2 x 2 pixels; its other settings
are those of its own config, which takes as long as the method needs. The second command makes one
table and one figure of it, as the report does for each metric. See docs/results.md; 18 minutes
on two cores of an x86 server. All numbers are ours.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_methods has no variants; got {variant!r}")
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
                    "measured_at": (64, 8, 4, 2, 1),
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
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 64,
                    "long_rounds": 2,
                    "stratified": True,
                    "loop": {  # the last two rounds have 500: 2,000 together
                        "num_updates": 250,
                        "batch_size": 64,
                        "save_every": 250,
                        "log_every": 50,
                    },
                    "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
                },
                {
                    "name": "gan",
                    "method": "gan",
                    "teacher": "teacher",
                    "adversary": {
                        "judges": (
                            {"features": "pixels", "halvings": (2,), "width": 128, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (2,),
                                "width": 128,
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
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                        "ema_ramp": 0.1,
                    },
                    "select": "fd_pixels",
                },
                {
                    "name": "gan_frozen",
                    "method": "gan",
                    "teacher": "teacher",
                    "fixed": "dit",  # fewer parameters take a higher rate
                    "adversary": {
                        "judges": (
                            {"features": "pixels", "halvings": (2,), "width": 128, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (2,),
                                "width": 128,
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
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                        "ema_ramp": 0.1,
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
                    "loop": {
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
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
                    "adversarial": 3e-2,
                    "fake_updates": 2,
                    "bottleneck": 1,  # the middle of the transformer
                    "noise": {
                        "data_std": 0.75
                    },  # EDM's levels for data of unit deviation, with more noise
                    "loop": {
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
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
                    "name": "ctm",
                    "method": "ctm",
                    "teacher": "teacher",
                    "measured_at": (1, 2, 4, 8),
                    "layer": "pixels/kernel",
                    "schedule": {
                        "rho": 15.0
                    },  # two and four steps with less noise at their middle than 7 has
                    "grid_points": 18,
                    "solver_steps": 4,
                    "distance": "huber",
                    "loop": {
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "anneal": "linear",
                        "b2": 0.99,
                        "ema_decay": 0.99,
                    },
                },
                {
                    "name": "ctm_gan",
                    "method": "ctm",
                    "teacher": "teacher",
                    "adversary": {
                        "judges": (
                            {"features": "pixels", "halvings": (2,), "width": 128, "mixing": 0},
                            {
                                "features": "pixels",
                                "halvings": (2,),
                                "width": 128,
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
                    "measured_at": (1, 2, 4, 8),
                    "layer": "pixels/kernel",
                    "schedule": {
                        "rho": 15.0
                    },  # two and four steps with less noise at their middle than 7 has
                    "grid_points": 18,
                    "solver_steps": 4,
                    "distance": "huber",
                    "loop": {
                        "num_updates": 2000,
                        "batch_size": 64,
                        "save_every": 500,
                        "log_every": 50,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
                        "anneal": "linear",
                        "b2": 0.99,
                        "ema_decay": 0.99,
                    },
                    "select": "fd_pixels",
                },
            ),
        }
    )
