"""Consistency trajectory models (Kim et al. 2023) on CIFAR-10.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_ctm.py --workdir=runs/cifar10_ctm

The released settings for the unconditional model, from the teacher of `cifar10_pd` (theirs is
EDM's, which has FID 1.97 at 35 evaluations): 50k updates of consistency and denoising, then 15k
with an adversary. Published: FID 1.98 at one evaluation, 1.87 at two; without the adversary 5.19
at one. `cifar10_ctm.py:cpu` is the same on a laptop's scale: expected (seed 0, Frechet distance of
pixels / of EfficientNet-Lite0's features, 1,000 samples against 5,000 images) teacher 198 / 270 at
8 steps, 598 / 339 at one; ctm 141 / 290 at one and 119 / 291 at four; ctm_gan 136 / 240 and
105 / 244.

They compare by LPIPS, with VGG16, and their discriminators also look at DeiT features; there is no
kept JAX library for either: here EfficientNet-Lite0 stands for both. Their RAdam is like Adam with
2,000 updates of warm-up, and their loss scaling is not needed. Dropout is left out. One update of
"ctm_gan" is two of theirs, the generator's and the discriminator's. "Released" are the settings of
Kim-Dongjun/ctm-cifar10; of the teacher, Salimans & Ho's of google-research/diffusion_distillation.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return scale.ctm(scale.laptop("cifar10", flip=True))
    if variant:
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "cifar10", "flip": True},  # released
            "model": {
                "network": {  # released
                    "name": "unet",
                    "arguments": {
                        "channels": 256,
                        "embedding_channels": 1024,
                        "multipliers": (1, 1, 1),
                        "attention_sizes": (8, 16),
                        "dropout": 0.2,  # students: none
                    },
                },
                "schedule": {  # released
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {  # ours
                "metrics": (
                    "fid",
                    "is",
                    "precision_recall",
                    "nearest_neighbour_ratio",
                    "fd_pixels",  # which no network trained on ImageNet has a say in
                ),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1000,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1),  # ours
                    "loop": {
                        "num_updates": 800_000,  # paper, appendix
                        "batch_size": 128,  # released
                        "save_every": 5000,
                    },
                    "optimizer": {  # released
                        "learning_rate": 2e-4,
                        "warmup": 1000,
                        "weight_decay": 1e-3,
                        "ema_decay": 0.9999,
                    },
                },
                {
                    "name": "ctm",
                    "method": "ctm",
                    "teacher": "teacher",
                    "measured_at": (1, 2, 4, 18),
                    "layer": "conv_out/kernel",
                    "grid_points": 18,  # released
                    "solver_steps": 17,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 50_000,  # released
                        "batch_size": 256,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {  # released; warm-up instead of RAdam
                        "learning_rate": 4e-4,
                        "warmup": 2000,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },
                },
                {
                    "name": "ctm_gan",
                    "method": "ctm",
                    "teacher": "teacher",
                    "start": "ctm",
                    "adversary": {
                        # In the release DeiT too.
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "resolution": 224,
                            },
                        ),
                        "augmentations": ("color", "translation", "cutout"),  # released
                        "loss": "hinge",  # released
                        "r1": 0.0,  # released
                        "optimizer": {  # released; warm-up instead of RAdam
                            "learning_rate": 2e-3,
                            "warmup": 2000,
                            "b1": 0.5,
                            "b2": 0.9,
                            "clip_norm": 0.0,
                        },
                    },
                    "measured_at": (1, 2, 4, 18),
                    "layer": "conv_out/kernel",
                    "grid_points": 18,  # released
                    "solver_steps": 17,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 15_000,  # their README: at least 30k of both sides
                        "batch_size": 528,  # released, at the end
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {  # released; warm-up instead of RAdam
                        "learning_rate": 4e-4,
                        "warmup": 2000,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },
                },
            ),
        }
    )
