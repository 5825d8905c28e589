"""GAN fine-tuning (D2O, Zheng & Yang 2025) on CIFAR-10.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_gan.py --workdir=runs/cifar10_gan

The released settings for the unconditional model, 5M images, from the teacher of `cifar10_pd`.
Published: FID 1.54 to 1.56 for D2O-F (`cifar10_gan_frozen`), EDM's teacher 1.98 at 35 evaluations.
`cifar10_gan.py:cpu` is the same on a laptop's scale, with D2O-F and a control from scratch;
`cifar10_gan.py:gpu` is D2O alone for minutes on one accelerator (see `gpu` below).

"Released" are the settings of D2O's code (train.sh, train.py and training/training_loop.py of
Zyriix/D2O); of the teacher, Salimans & Ho's cifar_base.py of
google-research/diffusion_distillation. Differences:

    number          theirs               ours            why
    teacher         EDM's NCSN++         `cifar10_pd`'s  trained here; or `:imported`
    teacher's head  x, max(SNR, 1)       v, SNR + 1      as in `cifar10_pd`
    judges          EfficientNet, VGG16  EfficientNet    no kept JAX library has the other
    losses          sums over a device   means           the same for Adam; `r1` is smaller
    images          not mirrored         mirrored        as for the teacher
    format          bfloat16             float32         model.network.arguments.dtype
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return scale.gan(scale.laptop("cifar10", flip=True))
    if variant == "gpu":
        return gpu()
    if variant:
        raise ValueError(f"variants: '', 'cpu' and 'gpu'; got {variant!r}")
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
                    "name": "gan",
                    "method": "gan",
                    "teacher": "teacher",
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


def gpu() -> ConfigDict:
    """From the teacher of `cifar10_pd.py:gpu`, otherwise as `cpu`: 3,000 updates of 256 images.

    Expected (seed 0, Frechet distance of pixels / EfficientNet-Lite0, 5,000 samples to 5,000
    images): teacher 202 / 139 at 8 steps, one evaluation of the generator 30 / 47. 13 minutes on an
    H100, about five of them compilation.
    """
    config = scale.gan(scale.accelerator(scale.laptop("cifar10", flip=True)))
    teacher, gan, *_ = config.stages
    gan.loop.update(batch_size=256, num_updates=3000, save_every=1000)
    config.stages = (teacher, gan)
    return config
