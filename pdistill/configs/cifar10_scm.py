"""sCM, continuous-time consistency models (Lu & Song 2024), on CIFAR-10: training and distillation.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_scm.py --workdir=runs/cifar10_scm
    python -m pdistill.main --config=configs/cifar10_scm.py:imported --config.teacher=models/edm \
        --workdir=runs/cifar10_scm_edm

Stage `sct` starts from the teacher's network and learns from the data; `scd` has its velocity too.
Published, unconditional, at 1 / 2 evaluations: sCT 2.85 / 2.06, sCD 3.66 / 2.52; redone in FastGen
3.23 and 3.22 at one. Not run here. No code was released with the paper; "theirs" are the paper's
numbers as FastGen has them (configs/methods/config_scm.py). Differences:

    number        theirs                   ours            why
    teacher       EDM's, in TrigFlow form  trained here    or `:imported`
    its training  EDM's, 200M images       200M, batch 512 flips for its augmentation
    levels        to sigma 80; sCT 800     the schedule's  drawn by the same law, clipped there
    second level  sigma 0.821              the grid's      one grid for all flow maps
    data          scaled to deviation 0.5  as they are     a level's sigma / alpha is the same
    unit residual of its mean square       of its norm     their 0.1 is 5.5 here, of 3072
"""

from ml_collections import ConfigDict

from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_scm has no variants but 'imported'; got {variant!r}")
    student = {
        "method": "flow_map",
        "measured_at": (1, 2),
        **PRESETS["sct"],
        "optimizer": {
            "rule": "radam",
            "learning_rate": 1e-4,
            "b2": 0.99,
            "clip_norm": 0.0,
            "ema_decay": 0.9999,
            "ema_ramp": 0.05,
        },
    }
    loop = {"batch_size": 512, "substeps": 1, "save_every": 5000}
    return ConfigDict(
        {
            "data": {"name": "cifar10", "flip": True},
            "model": {
                "network": {  # EDM's DDPM++ in our U-Net
                    "name": "unet",
                    "arguments": {
                        "channels": 128,
                        "embedding_channels": 512,
                        "multipliers": (2, 2, 2),
                        "blocks": 4,
                        "attention_sizes": (16,),
                        "time_scale": 16.0,
                        "dropout": 0.2,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {  # ours
                "metrics": ("fid", "is", "precision_recall", "nearest_neighbour_ratio"),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1000,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (64, 18),
                    "loop": {"num_updates": 400_000, "batch_size": 512, "save_every": 5000},
                    "optimizer": {"learning_rate": 1e-3, "warmup": 20_000, "ema_decay": 0.9999},
                },
                {
                    "name": "sct",
                    "start": "teacher",
                    "network": {"dropout": 0.2},  # FastGen's config_scm.py; 0 for sCD, as here
                    "loop": loop | {"num_updates": 350_000},
                    **copied(student),
                },
                {
                    "name": "scd",
                    "teacher": "teacher",
                    "loop": loop | {"num_updates": 500_000},
                    **copied(student),
                },
            ),
        }
    )
