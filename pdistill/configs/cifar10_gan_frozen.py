"""GAN fine-tuning of a tenth of the weights (D2O-F, Zheng & Yang 2025) on CIFAR-10.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_gan_frozen.py --workdir=runs/cifar10_gan_frozen

As `cifar10_gan`, but the blocks' convolutions, attention's output and, since they are larger in
this network than in theirs, the embedding's layers stay as they are. Published for D2O-F: FID 1.54
to 1.56. `cifar10_gan_frozen.py:cpu` is that part of `cifar10_gan.py:cpu`.

"Released" are the settings of D2O's code (train.sh, train.py and training/training_loop.py of
Zyriix/D2O); of the teacher, Salimans & Ho's cifar_base.py of
google-research/diffusion_distillation. Differences:

    number          theirs               ours             why
    teacher         EDM's NCSN++         `cifar10_pd`'s   trained here; or `:imported`
    teacher's head  x, max(SNR, 1)       v, SNR + 1       as in `cifar10_pd`
    judges          EfficientNet, VGG16  EfficientNet     no kept JAX library has the other
    losses          sums over a device   means            the same for Adam; `r1` is smaller
    images          not mirrored         mirrored         as for the teacher
    frozen          convolutions         embedding's too  those layers are larger in this network
    format          bfloat16             float32          model.network.arguments.dtype
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        config = scale.gan(scale.laptop("cifar10", flip=True))
        config.stages = tuple(s for s in config.stages if s["name"] in ("teacher", "gan_frozen"))
        return config
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
                    "name": "gan_frozen",
                    "method": "gan",
                    "teacher": "teacher",
                    "fixed": "unet",  # released, and the embedding's layers
                    "adversary": {
                        "judges": (
                            {
                                "features": "efficientnet_lite0",
                                "halvings": (4, 3, 2, 1),
                                "resolution": 224,
                            },
                        ),
                        "r1": 1e-4 / 64,  # released: 1e-4 for the sum over one of four devices
                        "optimizer": {  # released
                            "learning_rate": 1e-4,
                            "b1": 0.0,
                            "b2": 0.99,
                            "clip_norm": 0.0,
                        },
                    },
                    "loop": {
                        "num_updates": 20_000,  # released: 5M images
                        "batch_size": 256,  # released
                        "substeps": 1,
                        "save_every": 1000,
                    },
                    "optimizer": {  # released
                        "learning_rate": 1e-4,
                        "b1": 0.0,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.5 ** (256 / 500_000),  # half-life in images
                        "ema_ramp": 0.05,
                    },
                    "select": "fid",
                },
            ),
        }
    )
