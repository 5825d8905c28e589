"""Multi-student distillation (Song et al. 2024) on class-conditional ImageNet 64x64.

    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_msd.py --workdir=runs/imagenet64_msd

Four students of the teacher's size, for 250 consecutive classes each. The paper names the partition
and the batch of a student; the rest is `imagenet64_dmd2`'s, with the classifier from the beginning
(theirs comes in after matching alone). Published: FID 1.20; with matching alone 2.37.

Sources: "released", of the teacher, is imagenet64_base.py of google-research/diffusion_distillation;
"DMD2" is the paper and tianweiy/DMD2, from which the same differs as in `imagenet64_dmd2`. No code
of multi-student distillation is released:

    number          theirs               ours    why
    stages          matching, then both  both    the lengths of theirs are unknown
    rates, updates  unknown              DMD2's  each student is trained by DMD2
    pairs           perhaps              none    DMD2 needs no regression
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_msd has no variants; got {variant!r}")
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
                    "name": "msd",
                    "method": "multi_student",
                    "parts": 4,  # paper: of consecutive classes
                    "student": {
                        "name": "dmd",
                        "method": "dmd",
                        "teacher": "teacher",
                        "adversarial": 3e-3,  # DMD2
                        "data_std": 0.5,  # DMD2
                        "loop": {
                            "num_updates": 200_000,  # of the fake score; DMD2
                            "batch_size": 128,  # paper
                            "substeps": 5,
                            "save_every": 2000,
                        },
                        "optimizer": {
                            "learning_rate": 2e-6,  # DMD2
                            "warmup": 14,  # DMD2: while the fake score has 71
                            "weight_decay": 0.01,  # DMD2
                            "clip_norm": 10.0,  # DMD2
                        },
                        "fake_optimizer": {
                            "learning_rate": 2e-6,  # DMD2
                            "warmup": 71,  # DMD2
                            "weight_decay": 0.01,
                            "clip_norm": 10.0,
                        },
                    },
                },
            ),
        }
    )
