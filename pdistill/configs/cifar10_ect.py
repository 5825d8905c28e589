"""Easy consistency tuning (ECT, Geng et al. 2024) on CIFAR-10, from a diffusion model.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_ect.py:imported --config.teacher=models/edm \
        --workdir=runs/cifar10_ect_edm
    python -m pdistill.main --config=configs/cifar10_ect.py:gpu --workdir=runs/cifar10_ect

Published, unconditional, batch 128, at 1 / 2 evaluations: FID 4.54 / 2.20 after 100k updates,
3.86 / 2.15 after 200k (this config), 3.60 / 2.11 after 400k; FastGen has 2.92 at one. Not run here.
`:gpu` is for minutes on one accelerator, with the teacher of `cifar10_pd.py:gpu`: 8,000 updates with
q = 256, FastGen's fast form, and else our numbers. From locuslab/ect (run_ecm.sh, ct_train.py,
training/loss.py) these numbers differ:

    number       theirs                     ours              why
    start        EDM's DDPM++, VP           trained here      or `:imported`
    weight       (sigma^2 + .25) / (.25 sigma^2)  of unit length  the residual is that of F
    second level sigma 0.821                the grid's        one grid for all flow maps
    levels       all                        the schedule's    clipped at log-SNRs of -20 and 20
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import scale
from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS


def get_config(variant: str = "") -> ConfigDict:
    if variant == "gpu":
        return scale.ect(scale.accelerator(scale.laptop("cifar10", flip=True)))
    if variant:
        raise ValueError(f"variants: '', 'gpu' and 'imported'; got {variant!r}")
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
                    "name": "ect",
                    "method": "flow_map",
                    "start": "teacher",
                    "measured_at": (1, 2),
                    **copied(PRESETS["ect"]),
                    "network": {"dropout": 0.2},  # released: run_ecm.sh, also with EDM's network
                    "loop": {
                        "num_updates": 200_000,
                        "batch_size": 128,
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "rule": "radam",
                        "learning_rate": 1e-4,
                        "clip_norm": 0.0,
                        "ema_decay": 0.9999,
                    },
                },
            ),
        }
    )
