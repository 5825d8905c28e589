"""LowDiff (Xu et al. 2025) on FFHQ at 64x64: 16x16 -> 32x32 -> 64x64 in one network.

    python -m pdistill.data.prepare --images=/data/ffhq --name=ffhq64 --resolution=64 --resize=area --held_out=0
    python -m pdistill.main --config=configs/ffhq64_lowdiff.py --workdir=runs/ffhq64_lowdiff

The paper's abstract says an FID of 2.43; its settings could not be read, and what follows is ours:
as `cifar10_lowdiff`, with EDM's settings for FFHQ (Karras et al. 2022: DDPM++, 200 million
images). It has not been run.

LowDiff has released nothing. "EDM" is NVlabs/edm, train.py and training/training_loop.py with the
flags of README.md for FFHQ; the teacher differs from it:

    number          EDM's           ours       why
    network         SongUNet        UNet       its levels can take images of several sizes
    data deviation  0.5             1          all models here: v for data of unit deviation
    noise levels    N(-1.2, 1.2^2)  uniform t  the cosine schedule's, as for all teachers here
    augmentation    0.15            mirrors    EDM's are not here
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"ffhq64_lowdiff has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "ffhq64", "flip": True},
            "model": {
                "network": {  # sizes of EDM's DDPM++
                    "name": "unet",
                    "arguments": {
                        "channels": 128,
                        "embedding_channels": 512,
                        "multipliers": (1, 2, 2, 2),
                        "blocks": 4,
                        "attention_sizes": (16,),
                        "dropout": 0.05,  # students: none
                    },
                },
                "schedule": {  # ours
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {  # ours
                "metrics": ("fid", "is"),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1000,
                "solvers": ("heun",),
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (40, 18, 8),
                    "loop": {
                        "num_updates": 781_250,  # EDM: 200M images
                        "batch_size": 256,  # EDM
                        "save_every": 5000,
                    },
                    "optimizer": {  # EDM
                        "learning_rate": 2e-4,
                        "warmup": 39_062,  # 10M images
                        "ema_decay": 0.5 ** (256 / 500_000),  # half-life of 0.5M images
                        "ema_ramp": 0.05,
                        "clip_norm": 0.0,
                    },
                },
                {
                    "name": "lowdiff",
                    "method": "lowdiff",
                    "resolutions": (16, 32, 64),
                    "split": (192, 128, 160),  # of 0.14, 0.50 and 1 of the cost: 251 of the last
                    "measured_at": ((40, 20, 10), (18, 12, 8), (8, 8, 8), (1, 1, 1)),
                    "solver": "heun",
                    "loop": {
                        "num_updates": 781_250,  # as the teacher
                        "batch_size": 480,  # the split's
                        "save_every": 5000,
                    },
                    "optimizer": {  # as the teacher's
                        "learning_rate": 2e-4,
                        "warmup": 39_062,  # 10M images
                        "ema_decay": 0.5 ** (256 / 500_000),  # half-life of 0.5M images
                        "ema_ramp": 0.05,
                        "clip_norm": 0.0,
                    },
                },
                {
                    "name": "distilled",
                    "method": "progressive",
                    "teacher": "lowdiff",
                    "start_steps": 16,
                    "long_rounds": 2,  # Salimans & Ho: 100k updates to 2 steps and to 1
                    "split": (192, 128, 160),
                    "max_noise": 0.2,
                    "loop": {
                        "num_updates": 50_000,  # as Salimans & Ho
                        "batch_size": 480,
                        "save_every": 5000,
                    },
                    "optimizer": {"learning_rate": 2e-4 / 4, "anneal": "linear"},
                },
            ),
        }
    )
