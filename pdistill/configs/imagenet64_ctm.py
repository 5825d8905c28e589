"""Consistency trajectory models (Kim et al. 2023) on class-conditional ImageNet 64x64.

    pip install '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_ctm.py --workdir=runs/imagenet64_ctm

The released settings, from the teacher of `imagenet64_pd` (theirs is EDM's): 10k updates of
consistency and denoising, then 24.5k with an adversary, with at most 39 and 20 of the teacher's
steps at once on 40 levels. Published: FID 1.92 at one evaluation, 1.73 at two; EDM's teacher 2.44
at 79.

They compare by LPIPS, with VGG16, and their discriminators also look at DeiT features; there is no
kept JAX library for either: here EfficientNet-Lite0 stands for both. Their RAdam is like Adam with
2,000 updates of warm-up, and their loss scaling is not needed. Dropout is left out. One update of
"ctm_gan" is two of theirs, the generator's and the discriminator's. "Released" are the settings of
sony/ctm; of the teacher, Salimans & Ho's of google-research/diffusion_distillation.
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_ctm has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "imagenet64", "flip": True, "resident": False},
            "model": {
                "network": {  # released
                    "name": "unet",
                    "arguments": {
                        "channels": 192,
                        "embedding_channels": 768,
                        "multipliers": (1, 2, 3, 4),
                        "attention_sizes": (8, 16, 32),
                        "head_channels": 64,
                        "num_labels": 1000,
                        "dropout": 0.1,  # students: none
                    },
                },
                "schedule": {  # released
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "mesh": {"data": -1, "fsdp": 4},  # ours
            "evaluation": {  # ours
                "metrics": ("fid", "is"),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1024,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1),  # ours
                    "loop": {
                        "num_updates": 550_000,  # paper, appendix
                        "batch_size": 2048,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {  # released
                        "learning_rate": 3e-4,
                        "warmup": 1000,
                        "ema_decay": 0.9999,
                    },
                },
                {
                    "name": "ctm",
                    "method": "ctm",
                    "teacher": "teacher",
                    "measured_at": (1, 2, 4, 18),
                    "layer": "up_0.block_3/conv2/kernel",
                    "grid_points": 40,  # released
                    "solver_steps": 39,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 10_000,  # paper
                        "batch_size": 1440,  # released
                        "substeps": 1,
                        "save_every": 2500,
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
                    "layer": "up_0.block_3/conv2/kernel",
                    "grid_points": 40,  # released
                    "solver_steps": 20,  # released, at the end
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 24_500,  # released: 49,000 of both sides
                        "batch_size": 2112,  # released, the third of four
                        "substeps": 1,
                        "save_every": 2500,
                    },
                    "optimizer": {  # released; warm-up instead of RAdam
                        "learning_rate": 8e-6,
                        "warmup": 2000,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },
                },
            ),
        }
    )
