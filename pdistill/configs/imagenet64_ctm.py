"""Consistency trajectory models (Kim et al. 2023) on class-conditional ImageNet 64x64.

    pip install -e '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_ctm.py --workdir=runs/imagenet64_ctm

The released settings, from the teacher of `imagenet64_pd`: 10k updates of consistency and
denoising, then 24.5k with an adversary, with at most 39 and 20 of the teacher's steps at once on 40
levels. Published: FID 1.92 at one evaluation, 1.73 at two; EDM's teacher 2.44 at 79.

"Released" are the settings of sony/ctm (commands/CTM+DSM_command.sh, CTM+DSM+GAN_command.sh and
sampling_command.sh, the defaults of code/cm/script_util.py, and code/cm/karras_diffusion.py,
train_util.py); of the teacher, Salimans & Ho's imagenet64_base.py of
google-research/diffusion_distillation. Differences:

    number                theirs               ours               why
    teacher               EDM's                `imagenet64_pd`'s  trained here; or `:imported`
    teacher's head        both, max(SNR, 1)    v, SNR + 1         as in `imagenet64_pd`
    distance              LPIPS (VGG16)        EfficientNet       no kept JAX library has LPIPS
    judges                EfficientNet, DeiT   EfficientNet       nor DeiT
    updates before        not released         10k                the paper's; README: 10k to 50k
    batch of the GAN      264 to 4224          2112               for all: 52M images, theirs 61M
    solver's steps in it  10, then 20          20                 the released command's
    an update             generator or critic  both               24,500 are 49,000 of theirs
    critic's batches      its own              the generator's    half the images in as many updates
    s in the blocks       ordinary start       zeros              so that it starts as its teacher
    format                float16, scaled      float32            loss scaling is not needed
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
                        "target_in_blocks": True,  # released
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
                    "layer": "up_0.block_3/conv2/kernel",  # released
                    "data_std": 0.5,  # released
                    "grid_points": 40,  # released
                    "solver_steps": 39,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 10_000,  # paper
                        "batch_size": 1440,  # released
                        "substeps": 1,
                        "save_every": 2500,
                    },
                    "optimizer": {  # released
                        "rule": "radam",
                        "learning_rate": 4e-4,
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
                        "mean_of_judges": True,  # released
                        "r1": 0.0,  # released
                        "optimizer": {  # released
                            "rule": "radam",
                            "learning_rate": 2e-3,
                            "b1": 0.5,
                            "b2": 0.9,
                            "clip_norm": 0.0,
                        },
                    },
                    "measured_at": (1, 2, 4, 18),
                    "layer": "up_0.block_3/conv2/kernel",  # released
                    "data_std": 0.5,  # released
                    "grid_points": 40,  # released
                    "solver_steps": 20,  # released, at the end
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 24_500,  # released: 49,000 of both sides
                        "batch_size": 2112,  # released: the third of four
                        "substeps": 1,
                        "save_every": 2500,
                    },
                    "optimizer": {  # released
                        "rule": "radam",
                        "learning_rate": 8e-6,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },
                },
            ),
        }
    )
