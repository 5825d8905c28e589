"""PaGoDA (Kim et al. 2024) on CIFAR-10: 16x16 -> 32x32.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_pagoda.py --workdir=runs/cifar10_pagoda

The paper has no CIFAR-10: the network of `cifar10_pd` on images averaged to 16x16, and generators
with the settings that were released for ImageNet, 50k updates of each size.

"Released" are the settings of sony/pagoda (commands/data_latent_pair_generation.sh and
res64to64.sh to res64to512.sh, the defaults of cm/script_util.py, cm/karras_diffusion.py and
cm/train_util.py); of the teacher, Salimans & Ho's cifar_base.py of
google-research/diffusion_distillation. Differences:

    number                theirs                  ours              why
    teacher               EDM's                   `cifar10_pd`'s    trained here; or `:imported`
    teacher's head        x, max(SNR, 1)          v, SNR + 1        as in `cifar10_pd`
    distance, judges      EfficientNet, DeiT      EfficientNet      no kept JAX library has DeiT
    an update             generator or critic     both, one batch   two of theirs
    image                 the raw output          the denoised one  half of it, at first
    encoding              clamped images          not clamped       the flow, to be inverted
    augmentation          alike, in distance too  apart, not in it  each judge draws its own
    embedding, grown      added                   scale and shift   as in all other levels
    format                float16, scaled         float32           loss scaling is not needed
    data, batch, updates  ImageNet's              CIFAR-10's, ours  the paper has no CIFAR-10
    decoder that learns   7 of 16 blocks          the finest level  of three levels
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_pagoda has no variants; got {variant!r}")
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
                "metrics": ("fd_pixels", "precision_recall"),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1000,
                "features": "pixels",
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1),  # ours
                    "resolution": 16,
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
                # Released are the adversarial weights and the layers by which they adapt.
                pagoda(16, batch_size=128, adversarial=0.2, layer="up_0.block_3/conv2/kernel"),
                pagoda(
                    32,
                    batch_size=256,
                    start="pagoda/16",
                    grown=(256,),
                    fixed="pagoda",  # as the release
                    adversarial=1.0,
                    layer="grown_0.block_1/conv2/kernel",
                ),
                {
                    "name": "upsampled/32",
                    "method": "upsampled",
                    "teacher": "teacher",
                    "resolution": 32,
                    "factor": 2,
                    "measured_at": (1024,),
                },
            ),
        }
    )


def pagoda(resolution: int, *, batch_size: int, **changes: Any) -> dict[str, Any]:
    """A generator of images of this size."""
    radam = {"rule": "radam", "clip_norm": 0.0}  # released
    return {
        "name": f"pagoda/{resolution}",
        "method": "pagoda",
        "teacher": "teacher",
        "resolution": resolution,
        "latents": {"solver": "edm", "num_steps": 40},  # released
        "distance": "efficientnet_lite0",  # DeiT too in the release
        "adversary": {
            "judges": (
                {
                    "features": "efficientnet_lite0",
                    "halvings": (4, 3, 2, 1),
                    "resolution": 224,
                },
            ),
            "augmentations": ("color", "translation", "cutout"),  # released
            "loss": "hinge",  # released
            "mean_of_judges": True,  # released
            "r1": 0.0,  # released
            "optimizer": radam | {"learning_rate": 2e-3},  # released
        },
        "loop": {
            "num_updates": 50_000,  # ours
            "batch_size": batch_size,  # ours
            "substeps": 1,
            "save_every": 5000,
        },
        "optimizer": radam | {"learning_rate": 8e-6, "ema_decay": 0.999},  # released
        **changes,
    }
