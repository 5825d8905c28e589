"""PD, GAN, DMD and CTM on CIFAR-10, at equal images seen and evaluations.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_methods.py --workdir=runs/cifar10_methods
    python -m benchmarks.across runs/cifar10_methods --out=runs/cifar10_methods

After the teacher of `cifar10_pd.py:gpu` each method has 1,200 updates of 256 images, all rounds of
progressive distillation together, and starts from the teacher, but for `gan_scratch`; its other
settings are those of `cifar10_gan.py:cpu`, `cifar10_dmd2.py:cpu` and `cifar10_ctm.py:cpu`.
`cifar10_dmd2.py:gpu` has its stages of that method, to run beside it. All numbers are ours.
Expected (seed 0): see `cifar10_pd.py:gpu`; what follows the rounds has not been run to its end.
`cifar10_methods.py:cpu` has the teacher of `cifar10_pd.py:cpu` and 800 updates of 16 images: an
hour on two cores of an x86 server.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")
    config = gpu()
    return cpu(config) if variant else config


def gpu() -> ConfigDict:
    """All methods for minutes on one accelerator."""
    return ConfigDict(
        {
            "data": {"name": "cifar10", "flip": True},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "patch": 1,
                        "channels": 64,
                        "embedding_channels": 256,
                        "multipliers": (1, 2, 4),
                        "blocks": 2,
                        "attention_sizes": (8, 16),
                        "head_channels": 64,
                        "dtype": "bfloat16",
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
                "num_samples": 5000,
                "batch_size": 1000,
                "features": "pixels",  # the space that the discriminator does not use
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (8, 4, 2, 1),
                    "stratified": True,
                    "loop": {
                        "num_updates": 3000,
                        "batch_size": 512,
                        "log_every": 100,
                        "save_every": 1000,
                    },
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "warmup": 200,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.999,
                    },
                },
                {
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 8,
                    "stratified": True,
                    "loop": {  # of each of three rounds
                        "num_updates": 400,
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 400,
                    },
                    "optimizer": {"learning_rate": 5e-4, "anneal": "linear", "b2": 0.99},
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
                            {
                                "features": "teacher",
                                "halvings": (3, 2, 1),
                                "width": 128,
                                "mixing": 32,
                            },
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
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
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
                            {
                                "features": "teacher",
                                "halvings": (3, 2, 1),
                                "width": 128,
                                "mixing": 32,
                            },
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
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
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
                            {
                                "features": "teacher",
                                "halvings": (3, 2, 1),
                                "width": 128,
                                "mixing": 32,
                            },
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
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
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
                    "name": "dm",
                    "method": "dmd",
                    "teacher": "teacher",
                    "fake_updates": 2,
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
                    },
                    "optimizer": {
                        "learning_rate": 2e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.99,
                        "ema_ramp": 0.1,
                    },
                    "fake_optimizer": {
                        "learning_rate": 2e-4,
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
                    "adversarial": 3e-3,
                    "fake_updates": 2,
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
                    },
                    "optimizer": {
                        "learning_rate": 2e-4,
                        "anneal": "linear",
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.99,
                        "ema_ramp": 0.1,
                    },
                    "fake_optimizer": {
                        "learning_rate": 2e-4,
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
                    "measured_at": (1, 2, 4),
                    "layer": "conv_out/kernel",
                    "grid_points": 18,
                    "solver_steps": 3,  # the teacher's evaluations take most of the time
                    "distance": "huber",
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
                    },
                    "optimizer": {
                        "learning_rate": 5e-4,
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
                        # EfficientNet-Lite0 hardly sees brightness and colour,
                        # which drift without the teacher's own encoder beside it.
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (2, 1, 1, 1),
                                "width": 128,
                                "mixing": 32,
                            },
                            {
                                "features": "teacher",
                                "halvings": (3, 2, 1),
                                "width": 128,
                                "mixing": 32,
                            },
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
                    "measured_at": (1, 2, 4),
                    "layer": "conv_out/kernel",
                    "grid_points": 18,
                    "solver_steps": 3,  # the teacher's evaluations take most of the time
                    "distance": "huber",
                    "loop": {
                        "num_updates": 1200,
                        "batch_size": 256,
                        "substeps": 10,
                        "log_every": 50,
                        "save_every": 300,
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


def cpu(config: ConfigDict) -> ConfigDict:
    """With the network, the teacher and the batches of `cifar10_pd.py:cpu`, and 800 updates."""
    small = scale.laptop("cifar10", flip=True)
    config.model = small.model
    config.evaluation.update(num_samples=1000, batch_size=500)
    teacher, progressive = small.stages
    short = {"batch_size": 16, "substeps": 1}
    progressive["loop"].update(num_updates=200, log_every=50, save_every=200)  # the last has 400
    others = config.stages[2:]
    for stage in others:
        stage["loop"].update(short, num_updates=800, save_every=200)
        if "adversary" in stage:
            stage["adversary"]["judges"][1]["halvings"] = (2, 1)  # of two levels
    config.stages = (teacher, progressive, *others)
    return config
