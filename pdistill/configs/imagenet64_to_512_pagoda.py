"""PaGoDA (Kim et al. 2024) on class-conditional ImageNet: 64x64 -> 128x128 -> 256x256 -> 512x512.

    pip install '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet512 --resolution=512 --resize=area
    python -m pdistill.main --config=configs/imagenet64_to_512_pagoda.py --workdir=runs/imagenet512

The teacher is that of `imagenet64_pd`, on the images averaged to 64x64 (theirs is EDM's, of images
made small from the originals); batches, weights and rates are the released ones, with 90k updates
of each size, which the release does not say. Published, one evaluation without guidance: FID 1.21
at 64x64, 1.48 at 128, 1.56 at 256, 1.80 at 512.

EfficientNet-Lite0 stands for their feature networks, in the distance and in the judges, and an
update is two of theirs. Beyond 256 pixels theirs is updated for each loss in turn and has a second
discriminator for reconstructions; that is left out. Generated and real images are augmented apart
(theirs: alike), and not in the distance; the embedding scales and shifts in grown levels too
(theirs: it is added); encoding takes the teacher's own grid of noise levels and clamps nothing.
"Released" are the settings of sony/pagoda; of the teacher, Salimans & Ho's of
google-research/diffusion_distillation.
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_to_512_pagoda has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "imagenet512", "flip": True, "resident": False},
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
                    "resolution": 64,
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
                    "name": "pagoda/64",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "resolution": 64,
                    "distance": "efficientnet_lite0",  # DeiT too in the release
                    "adversarial": 0.2,  # released
                    "layer": "up_0.block_3/conv2/kernel",  # released
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "conditional": True,  # released
                                "resolution": 224,
                            },
                        ),
                        "augmentations": ("color", "translation", "cutout"),  # released
                        "loss": "hinge",  # released
                        "r1": 0.0,  # released
                        "optimizer": {"learning_rate": 2e-3, "clip_norm": 0.0},  # released
                    },
                    "loop": {
                        "num_updates": 90_000,  # ours; they sampled after 180,000 of both
                        "batch_size": 96,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 8e-6,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },  # released
                },
                {
                    "name": "pagoda/128",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "start": "pagoda/64",
                    "resolution": 128,
                    "grown": (192,),
                    "fixed": "pagoda_64",  # released
                    "distance": "efficientnet_lite0",  # DeiT too in the release
                    "adversarial": 1.0,  # released
                    "layer": "up_0.block_3/conv2/kernel",  # released
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "conditional": True,  # released
                                "resolution": 224,
                            },
                        ),
                        "augmentations": ("color", "translation", "cutout"),  # released
                        "loss": "hinge",  # released
                        "r1": 0.0,  # released
                        "optimizer": {"learning_rate": 2e-3, "clip_norm": 0.0},  # released
                    },
                    "loop": {
                        "num_updates": 90_000,  # ours
                        "batch_size": 256,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 8e-6,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },  # released
                },
                {
                    "name": "pagoda/256",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "start": "pagoda/128",
                    "resolution": 256,
                    "grown": (192, 192),
                    "fixed": "pagoda_64",  # released
                    "distance": "efficientnet_lite0",  # DeiT too in the release
                    "adversarial": 1.0,  # released
                    "layer": "",  # released: the weight does not adapt
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "conditional": True,  # released
                                "resolution": 0,
                            },
                        ),
                        "augmentations": ("color", "translation", "cutout"),  # released
                        "loss": "hinge",  # released
                        "r1": 0.0,  # released
                        "optimizer": {"learning_rate": 2e-3, "clip_norm": 0.0},  # released
                    },
                    "loop": {
                        "num_updates": 90_000,  # ours
                        "batch_size": 360,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 8e-6,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },  # released
                },
                {
                    "name": "pagoda/512",
                    "method": "pagoda",
                    "teacher": "teacher",
                    "start": "pagoda/256",
                    "resolution": 512,
                    "grown": (192, 192, 96),
                    "fixed": "pagoda_64",  # released
                    "distance": "efficientnet_lite0",  # DeiT too in the release
                    "adversarial": 1.0,  # released
                    "layer": "",  # released: the weight does not adapt
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "conditional": True,  # released
                                "resolution": 0,
                            },
                        ),
                        "augmentations": ("color", "translation", "cutout"),  # released
                        "loss": "hinge",  # released
                        "r1": 0.0,  # released
                        "optimizer": {"learning_rate": 2e-3, "clip_norm": 0.0},  # released
                    },
                    "loop": {
                        "num_updates": 90_000,  # ours
                        "batch_size": 512,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 8e-6,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },  # released
                },
                {
                    "name": "upsampled/512",
                    "method": "upsampled",
                    "teacher": "teacher",
                    "resolution": 512,
                    "factor": 8,
                    "measured_at": (1024,),
                },
            ),
        }
    )
