"""Distribution matching (DMD2, Yin et al. 2024) on CIFAR-10.

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_dmd2.py --workdir=runs/cifar10_dmd2

DMD2 has no CIFAR-10. Rate, batch, average and the weight of the generator's adversarial loss are
those of FastGen; the rest is as DMD2 has it for ImageNet. The teacher is that of `cifar10_pd`.
Published, with labels: FID 2.13 and, by FastGen, 1.99; without, by DMD, 3.77.
`cifar10_dmd2.py:cpu` is on a laptop's scale: by the scores alone ("dm") and with the classifier
("dm_gan"), with two updates of the fake score for one of the generator; `cifar10_dmd2.py:gpu` is
that for minutes on one accelerator, as in `cifar10_methods`.

Sources: "released", of the teacher, is cifar_base.py of google-research/diffusion_distillation;
"FastGen" is NVlabs/FastGen (fastgen/configs/experiments/EDM/config_dmd2_cifar10.py and
configs/methods/config_dmd2.py), and "DMD2" the paper and tianweiy/DMD2, as in `imagenet64_dmd2`.
Differences from FastGen:

    number               FastGen           ours                 why
    teacher              EDM's, labels     `cifar10_pd`'s       trained here, without labels
    warm-up              none              71 and 14            DMD2's
    range of t           (0.002, 0.998)    (0.02, 0.98)         DMD2's for matching; elsewhere all
    fake score's weight  1                 SNR + 4              DMD2's, which is EDM's
    classifier           on 3 maps         on the fake score's  DMD2's
    weight of its loss   1                 0.01                 DMD2's
    updates              1 and 4, in turn  1 with 5             DMD2's
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant == "cpu":
        return scale.dmd(scale.laptop("cifar10", flip=True))
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
                "metrics": ("fid", "is", "precision_recall", "nearest_neighbour_ratio"),
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
                    "name": "dmd",
                    "method": "dmd",
                    "teacher": "teacher",
                    "adversarial": 1e-3,  # FastGen
                    "data_std": 0.5,  # DMD2
                    "loop": {
                        "num_updates": 100_000,  # of the fake score; FastGen's most
                        "batch_size": 2048,  # FastGen
                        "substeps": 5,
                        "save_every": 2000,
                    },
                    "optimizer": {
                        "learning_rate": 1e-4,  # FastGen
                        "warmup": 14,  # DMD2: while the fake score has 71
                        "weight_decay": 0.01,  # DMD2
                        "clip_norm": 10.0,  # DMD2
                        "ema_decay": 0.9999,  # FastGen; DMD2 averages nothing
                    },
                    "fake_optimizer": {
                        "learning_rate": 1e-4,  # FastGen
                        "warmup": 71,  # DMD2
                        "weight_decay": 0.01,
                        "clip_norm": 10.0,
                    },
                    "select": "fid",
                },
            ),
        }
    )


def gpu() -> ConfigDict:
    """Both of `cpu`, from the teacher of `cifar10_pd.py:gpu`: 1,200 updates of 256 images."""
    config = scale.dmd(scale.accelerator(scale.laptop("cifar10", flip=True)))
    config.evaluation.update(
        metrics=("fd_pixels", "fd_efficientnet_lite0", "precision_recall"), features="pixels"
    )
    _, *generators = config.stages
    for stage in generators:
        stage.loop.update(num_updates=1200, batch_size=256, log_every=50, save_every=300)
    return config
