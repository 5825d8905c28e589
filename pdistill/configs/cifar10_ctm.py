"""Consistency trajectory models (Kim et al. 2023) on CIFAR-10.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_ctm.py --workdir=runs/cifar10_ctm

The released settings for the unconditional model, from the teacher of `cifar10_pd`: 50k updates of
consistency and denoising, then 15k with an adversary. Published: FID 1.98 at one evaluation, 1.87
at two; without the adversary 5.19 at one. `cifar10_ctm.py:cpu` is the same on a laptop's scale:
expected (seed 0, with 600 and 300 updates for its 1,000 and 600, Frechet distance of pixels / of
EfficientNet-Lite0's features, 1,000 samples against 5,000 images) teacher 198 / 270 at 8 steps,
598 / 339 at one; ctm 141 / 290 at one and 119 / 291 at four; ctm_gan 136 / 240 and 105 / 244.

"Released" are the settings of Kim-Dongjun/ctm-cifar10 (commands/uncond_CTM+DSM+GAN_command.sh and
the checkpoint that it resumes, the defaults of cm/script_util.py, and cm/karras_diffusion.py,
cm/train_util.py); of the teacher, Salimans & Ho's cifar_base.py of
google-research/diffusion_distillation. Differences:

    number               theirs               ours             why
    teacher              EDM's DDPM++, VP     `cifar10_pd`'s   trained here; or `:imported`
    teacher's head       x, max(SNR, 1)       v, SNR + 1       as in `cifar10_pd`
    distance             LPIPS (VGG16)        EfficientNet     no kept JAX library has LPIPS
    judges               EfficientNet, DeiT   EfficientNet     nor DeiT
    students' dropout    0.13                 0                distilled without it
    an update            generator or critic  both             15k updates are 30k of theirs
    critic's batches     its own              the generator's  half the images in as many updates
    start of the target  EMA of 0.9999        EMA of 0.999     one average is exported
    updates              not released         50k, 15k         README: at least 10k to 50k, 30k
    s in the blocks      ordinary start       zeros            so that it starts as its teacher
    format               float16, scaled      float32          loss scaling is not needed
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return scale.ctm(scale.laptop("cifar10", flip=True))
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
                        "target_in_blocks": True,  # released
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
                    "name": "ctm",
                    "method": "ctm",
                    "teacher": "teacher",
                    "measured_at": (1, 2, 4, 18),
                    "layer": "conv_out/kernel",  # released
                    "data_std": 0.5,  # released
                    "grid_points": 18,  # released
                    "solver_steps": 17,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 50_000,  # released
                        "batch_size": 384,  # released
                        "substeps": 1,
                        "save_every": 5000,
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
                    "target_decay": 0.9999,  # released
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
                    "layer": "conv_out/kernel",  # released
                    "data_std": 0.5,  # released
                    "grid_points": 18,  # released
                    "solver_steps": 17,  # released
                    "distance": "efficientnet_lite0",  # LPIPS in the release
                    "loop": {
                        "num_updates": 15_000,  # released: at least 30k of both sides
                        "batch_size": 528,  # released
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {  # released
                        "rule": "radam",
                        "learning_rate": 4e-4,
                        "clip_norm": 0.0,
                        "ema_decay": 0.999,
                    },
                },
            ),
        }
    )
