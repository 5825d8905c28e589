"""LowDiff (Xu et al. 2025) on latents of class-conditional ImageNet 256x256: 8x8 -> 16x16.

    python -m pdistill.convert --from=ldm --source=vavae-imagenet256-f16d32-dinov2.pt \
        --statistics=latents_stats.pt --out=models/codec
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet256 --resolution=256 \
        --codec=models/codec
    python -m pdistill.main --config=configs/imagenet256_lowdiff.py --workdir=runs/lowdiff256

Published, with LightningDiT-B/1: FID 4.00, inception score 195. The authors have released nothing
and do not say where latents are halved: here the latents themselves are averaged, in one
transformer of that size whose blocks all sizes share. Its options, batch and optimizer are those of
hustvl/LightningDiT; resolutions, split, steps and students are ours. Not run here.

    number         LightningDiT's              ours               why
    noise levels   logit-normal                uniform, shifted   LowDiff's cascade shifts levels
    loss           velocity's + 1 - cosine     velocity's         `direction` is a teacher's only
    positions      fixed sinusoids             learnt             those of our transformer
    number format  bfloat16                    float32            network.arguments.dtype
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet256_latents


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet256_lowdiff has no variants; got {variant!r}")
    config = imagenet256_latents.get_config("lightningdit")
    config.evaluation.guidance = (0.0, 1.5)
    config.model.network = ConfigDict(
        {
            "name": "dit",
            "arguments": {  # B/1
                "patch": 1, "features": 768, "depth": 12, "heads": 12, "num_labels": 1000,
                "rms_norm": True, "rope": True, "swiglu": True, "remat": "products",
            },
        }
    )  # fmt: skip
    optimizer = {"learning_rate": 2e-4, "b2": 0.95, "clip_norm": 0.0, "ema_decay": 0.9999}
    split = (1024, 768)  # of about 0.25 and 1 of the cost: 1024 of the last
    loop = {"batch_size": sum(split), "substeps": 1, "save_every": 5000}
    lowdiff = {
        "name": "lowdiff",
        "method": "lowdiff",
        "resolutions": (8, 16),
        "split": split,
        "label_dropout": 0.1,
        "weighting": "velocity_mse",
        "measured_at": ((100, 50), (30, 20), (8, 8), (1, 1)),
        "loop": loop | {"num_updates": 80_000},  # 64 epochs of 1024
        "optimizer": optimizer,
    }
    distilled = {
        "name": "distilled",
        "method": "progressive",
        "teacher": "lowdiff",
        "start_steps": 16,
        "long_rounds": 2,
        "split": split,
        "max_noise": 0.2,
        "loop": loop | {"num_updates": 20_000},
        "optimizer": optimizer | {"learning_rate": 5e-5, "anneal": "linear"},
    }
    config.stages = (ConfigDict(lowdiff), ConfigDict(distilled))
    return config
