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

from pdistill.configs.digits_ctm import ctm, ctm_gan
from pdistill.configs.digits_dmd import dmd
from pdistill.configs.digits_gan import gan


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
                gan("gan", loop=loop()),
                # Fewer parameters take a higher rate.
                gan("gan_frozen", learning_rate=1e-3, fixed="dit", loop=loop()),
                dmd("dm", loop()),
                dmd("dm_gan", loop(), rates=(3e-4, 3e-4), adversarial=3e-2),
                ctm("ctm", loop()),
                ctm_gan(loop()),
            ),
        }
    )


def loop() -> dict[str, int]:
    return {"num_updates": 2000, "batch_size": 64, "save_every": 500, "log_every": 50}
