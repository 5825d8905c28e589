"""GAN fine-tuning (D2O, Zheng & Yang 2025) on class-conditional ImageNet 64x64.

    pip install -e '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_gan.py --workdir=runs/imagenet64_gan

The released settings, 10M images, from the teacher of `imagenet64_pd`. Published: FID 1.42, with
most weights frozen (`--config.stages[1].fixed=d2o_f`) 1.13 to 1.16, EDM's teacher 2.64.

"Released" are the settings of D2O's code (train.sh, train.py and training/training_loop.py of
Zyriix/D2O); of the teacher, Salimans & Ho's imagenet64_base.py of
google-research/diffusion_distillation. Differences:

    number          theirs              ours               why
    teacher         EDM's ADM           `imagenet64_pd`'s  trained here; or `:imported`
    teacher's head  both, max(SNR, 1)   v, SNR + 1         as in `imagenet64_pd`
    judges          EfficientNet, DeiT  EfficientNet       no kept JAX library has the other
    losses          sums over a device  means              the same for Adam; `r1` is smaller
    images          not mirrored        mirrored           as for the teacher
    format          bfloat16            float32            model.network.arguments.dtype
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_gan has no variants; got {variant!r}")
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
                    "name": "gan",
                    "method": "gan",
                    "teacher": "teacher",
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "resolution": 224,
                                "conditional": True,  # released
                            },
                        ),
                        "r1": 1e-4 / 128,  # released: 1e-4 for the sum over one of four devices
                        "optimizer": {  # released
                            "learning_rate": 4e-5,
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "loop": {
                        "num_updates": 20_000,  # released: 10M images
                        "batch_size": 512,  # released
                        "substeps": 1,
                        "save_every": 1000,
                    },
                    "optimizer": {  # released
                        "learning_rate": 8e-6,
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.5 ** (512 / 50e6),  # half-life in images
                        "ema_ramp": 0.05,
                    },
                    "select": "fid",
                },
            ),
        }
    )
