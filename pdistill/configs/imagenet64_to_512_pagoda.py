"""PaGoDA (Kim et al. 2024) on class-conditional ImageNet: 64x64 -> 128x128 -> 256x256 -> 512x512.

    pip install -e '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet512 --resolution=512 --resize=area
    python -m pdistill.main --config=configs/imagenet64_to_512_pagoda.py --workdir=runs/imagenet512

The teacher is that of `imagenet64_pd`, on the images averaged to 64x64; batches, weights and rates
are the released ones. Published, one evaluation without guidance: FID 1.21 at 64x64, 1.48 at 128,
1.56 at 256, 1.80 at 512.

"Released" are the settings of sony/pagoda (commands/data_latent_pair_generation.sh and
res64to64.sh to res64to512.sh, the defaults of cm/script_util.py, cm/karras_diffusion.py and
cm/train_util.py); of the teacher, Salimans & Ho's imagenet64_base.py of
google-research/diffusion_distillation. Differences:

    number            theirs                  ours                why
    teacher           EDM's                   `imagenet64_pd`'s   trained here; or `:imported`
    teacher's head    both, max(SNR, 1)       v, SNR + 1          as in `imagenet64_pd`
    distance, judges  EfficientNet, DeiT      EfficientNet        no kept JAX library has DeiT
    an update         generator or critic     both, one batch     two of theirs
    image             the raw output          the denoised one    half of it, at first
    encoding          clamped images          not clamped         the flow, to be inverted
    augmentation      alike, in distance too  apart, not in it    each judge draws its own
    embedding, grown  added                   scale and shift     as in all other levels
    format            float16, scaled         float32             loss scaling is not needed
    updates           not released            90k of each size    they sample 64x64 after 180,000 of both
    256x256 and more  losses in turn          together            one update of the generator
    512x512           a second critic         none                of reconstructions; left out
    images of 64x64   of the originals        of the larger ones  one data set for all sizes
"""  # noqa: E501

from typing import Any

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
                # Released are batches, weights and the layers by which these adapt: none from 256
                # on, where judges see images as they are.
                pagoda(64, batch_size=96, adversarial=0.2, layer="up_0.block_3/conv2/kernel"),
                grown(
                    128,
                    channels=(192,),
                    batch_size=256,
                    adversarial=1.0,
                    layer="grown_0.block_1/conv2/kernel",
                ),
                grown(
                    256,
                    channels=(192, 192),
                    batch_size=360,
                    adversarial=1.0,
                    layer="",
                    judged_at=0,
                ),
                grown(
                    512,
                    channels=(192, 192, 96),
                    batch_size=512,
                    adversarial=1.0,
                    layer="",
                    judged_at=0,
                ),
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


def pagoda(
    resolution: int, *, batch_size: int, judged_at: int = 224, **changes: Any
) -> dict[str, Any]:
    """A generator of images of this size; judges see `judged_at` pixels a side, 0: as they are."""
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
                    "conditional": True,  # released
                    "resolution": judged_at,
                },
            ),
            "augmentations": ("color", "translation", "cutout"),  # released
            "loss": "hinge",  # released
            "mean_of_judges": True,  # released
            "r1": 0.0,  # released
            "optimizer": radam | {"learning_rate": 2e-3},  # released
        },
        "loop": {
            "num_updates": 90_000,  # ours; they sampled 64x64 after 180,000 of both
            "batch_size": batch_size,  # released
            "substeps": 1,
            "save_every": 5000,
        },
        "optimizer": radam | {"learning_rate": 8e-6, "ema_decay": 0.999},  # released
        **changes,
    }


def grown(resolution: int, *, channels: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """A generator of images of this size, on from the one of half of it.

    `channels` are those of all levels that were grown on 64x64, the new one's last.
    """
    return pagoda(
        resolution,
        start=f"pagoda/{resolution // 2}",
        grown=channels,
        fixed="pagoda_64",  # released
        **changes,
    )
