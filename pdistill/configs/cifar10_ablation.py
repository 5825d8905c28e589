"""A network's head and its loss's weight: Table 1 of Salimans & Ho 2022, CIFAR-10.

    python -m pdistill.main --config=configs/cifar10_ablation.py --workdir=runs/cifar10_ablation

One undistilled teacher for each head and weight, as in cifar10_pd.py, sampled with 1024 ancestral
and DDIM steps. The paper's FID with DDIM (and with its tuned stochastic sampler):

    head   SNR          truncated SNR   SNR + 1
    both   2.78 (2.54)  2.76 (2.47)     2.87 (2.52)
    x      2.75 (2.65)  2.51 (2.53)     2.65 (2.56)
    eps    2.91 (2.59)  diverges        3.27 (2.56)
    v      3.05 (2.65)  2.75 (2.45)     2.87 (2.49)

Sources: "released" is the config cifar_base.py of google-research/diffusion_distillation, which has
the x head and truncated SNR alone; besides head and weight these numbers differ or are not in it:

    number              theirs          ours  why
    updates             not released    800k  those of the base model, in the paper's appendix
    ancestral variance  tuned, unknown  0.5   the middle; to be tuned as they did
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_ablation has no variants; got {variant!r}")
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
                        "dropout": 0.2,
                    },
                },
                "schedule": {  # released
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fid", "is"),  # paper, Table 1
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 1000,
                "solvers": ("ddim", "ancestral:medium:0.5"),  # the paper tunes the 0.5
            },
            "stages": tuple(
                {
                    "name": f"{head}-{weighting}",
                    "method": "teacher",
                    "head": head,
                    "weighting": weighting,
                    "measured_at": (1024,),
                    "loop": {
                        "num_updates": 800_000,  # of the base model, paper, appendix
                        "batch_size": 128,  # released
                        "save_every": 5000,
                    },
                    "optimizer": {  # released
                        "learning_rate": 2e-4,
                        "warmup": 1000,
                        "weight_decay": 1e-3,
                        "ema_decay": 0.9999,
                    },
                }
                for head in ("both", "x", "eps", "v")
                for weighting in ("snr", "snr_trunc", "v_mse")
            ),
        }
    )
