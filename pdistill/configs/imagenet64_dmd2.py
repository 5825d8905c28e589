"""Distribution matching (DMD2, Yin et al. 2024) on class-conditional ImageNet 64x64.

    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_dmd2.py --workdir=runs/imagenet64_dmd2

The released settings, from the teacher of `imagenet64_pd`. Published: FID 1.51 after 200,000 updates
of the fake score, 40,000 of the generator; 1.28 after longer training; EDM's teacher 2.32 at 511
evaluations. They average no weights.

Sources: "released", of the teacher, is imagenet64_base.py of google-research/diffusion_distillation;
"DMD2" is the paper and tianweiy/DMD2 (experiments/imagenet/, its imagenet_gan_classifier_..._scratch;
main/edm/train_edm.py and edm_guidance.py), which agree. Differences:

    number          theirs             ours               why
    teacher         EDM's              `imagenet64_pd`'s  trained here; or `:imported`
    teacher's head  both, max(SNR, 1)  v, SNR + 1         as in `imagenet64_pd`
    noise levels    1,000              continuous         one law; 20 to 980 of 999: t 0.02 to 0.98
    warm-up         500 for 7 GPUs     71 and 14          theirs steps 7 times in an update: in 71
                                                          of the fake score, 14 of the generator
    images          not mirrored       mirrored           as for the teacher
    format          bfloat16           float32            model.network.arguments.dtype
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_dmd2 has no variants; got {variant!r}")
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
                    "name": "dmd",
                    "method": "dmd",
                    "teacher": "teacher",
                    "adversarial": 3e-3,  # DMD2
                    "data_std": 0.5,  # DMD2
                    "loop": {
                        "num_updates": 200_000,  # of the fake score, which DMD2's code counts too
                        "batch_size": 280,  # DMD2: 7 x 40
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
                    "select": "fid",
                },
            ),
        }
    )
