"""MeanFlow (Geng et al. 2025) on CIFAR-10, from scratch, without a teacher.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_mean_flow.py --workdir=runs/cifar10_mean_flow
    python -m pdistill.main --config=configs/cifar10_mean_flow.py:gpu --workdir=runs/mean_flow_gpu

Published: FID 2.92 at one evaluation (the paper); 2.80 with the settings that follow (the authors'
second ones, v1 of Gsunshine/py-meanflow), 2.82 redone in FastGen. Not run here. `:gpu` is for
minutes on one accelerator, with the network of `cifar10_pd.py:gpu` and all numbers ours; `:cpu` has
that of `cifar10_pd.py:cpu`. From v1 these numbers differ:

    number             theirs                   ours             why
    network            EDM's DDPM++             the same sizes   our U-Net has other details
    its output         average velocity         F of the circle  one head; the same identity
    inputs             t, t - s                 t, s             one embedding of targets
    augmentation       EDM's, p = 0.12          flips            its labels are no input here
    averages           three, 0.9996 to .99995  0.9999           one is exported
    times              rectified flow's         the same rays    log(sigma / alpha) is their logit
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant in ("cpu", "gpu"):
        config = scale.laptop("cifar10", flip=True)
        return scale.mean_flow(scale.accelerator(config) if variant == "gpu" else config)
    if variant:
        raise ValueError(f"variants: '', 'gpu' and 'cpu'; got {variant!r}")
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
                    "name": "mean_flow",
                    "method": "flow_map",
                    "measured_at": (1, 2, 4),
                    "jumps": {"level": (-0.6, 1.6), "end": (-4.0, 1.6), "instantaneous": 0.25},
                    "power": 0.75,
                    "floor": 1e-3,
                    "loop": {
                        "num_updates": 800_000,
                        "batch_size": 1024,
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 6e-4,
                        "warmup": 10_000,  # 200 epochs
                        "clip_norm": 0.0,
                        "ema_decay": 0.9999,
                    },
                },
            ),
        }
    )
