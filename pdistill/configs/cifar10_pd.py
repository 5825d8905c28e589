"""Progressive distillation on CIFAR-10 (Salimans & Ho 2022).

    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_pd.py --workdir=runs/cifar10

The published experiment: 60,004,099 parameters, 800k teacher updates, 13 rounds from 8192 steps
to one (750k updates), batch 128. Variants: `cifar10_pd.py:x` has the paper's x head and truncated
SNR weight instead of v; `cifar10_pd.py:cpu` is the same on a laptop's scale and `cifar10_pd.py:gpu`
for minutes on one accelerator (see `cpu` and `gpu` below).

FID of the paper, 50k samples, DDIM: 2.51 for the undistilled x model at many steps; distilled
8 steps 2.57, 4 steps 3.00, 2 steps 4.51, 1 step 9.12 (Tables 1 and 2). The gap between teacher and
student in the first rounds (1e-4) is below bfloat16's: on TPU and GPU set
JAX_DEFAULT_MATMUL_PRECISION=float32.

Sources: "released" are the configs of google-research/diffusion_distillation, cifar_base.py and
cifar_distill.py, from which these numbers differ:

    number             theirs        ours     why
    head               x             v        conditioned at every noise level; `:x` has theirs
    loss weight        max(SNR, 1)   SNR + 1  that of v's own error; `:x` has theirs
    teacher's updates  not released  800k     the paper's appendix
    rounds to 2 and 1  50k updates   100k     the paper's; the release has one number for all
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant in ("cpu", "gpu"):
        return {"cpu": cpu, "gpu": gpu}[variant]()
    if variant not in ("", "x"):
        raise ValueError(f"variants: '' (v head), 'x' (the paper's), 'cpu', 'gpu'; got {variant!r}")
    head, weighting = ("x", "snr_trunc") if variant else ("v", "v_mse")  # released: the former
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
                "head": head,
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
                    "weighting": weighting,
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
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 8192,  # paper and released
                    "long_rounds": 2,  # paper: 100k updates for the rounds to 2 steps and to 1
                    "weighting": weighting,
                    "loop": {
                        "num_updates": 50_000,  # paper and released
                        "batch_size": 128,  # released
                        "save_every": 5000,
                    },
                    "optimizer": {"learning_rate": 5e-5, "anneal": "linear"},  # released
                },
            ),
        }
    )


def cpu() -> ConfigDict:
    """A small U-Net on the real data, 8 -> 1 steps.

    Expected (seed 0, Frechet distance of pixels, 1,000 samples): teacher 195 at 8 steps, 298 at 4,
    422 at 2, 599 at 1; students 199 at 4, 203 at 2, 208 at 1. 14 minutes on two cores of an x86
    server.
    """
    return scale.laptop("cifar10", flip=True)


def gpu() -> ConfigDict:
    """As `cpu`, with larger batches and a network of 18 million parameters, in bfloat16.

    Expected (seed 0, as `cifar10_methods` measures its first stages: Frechet distance of pixels of
    5,000 samples to 5,000 images): teacher 200 at 8 steps, 375 at 4, 550 at 2, 695 at 1; students
    202 at 4, 204 at 2, 205 at 1. An H100 makes up to 24 updates of either a second.
    """
    return scale.accelerator(cpu())
