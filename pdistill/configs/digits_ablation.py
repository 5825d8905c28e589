"""A network's head and its loss's weight: Table 1 of Salimans & Ho 2022, on digits.

    python -m pdistill.main --config=configs/digits_ablation.py --workdir=runs/digits_ablation

Twelve small teachers, sampled with 64 DDIM and ancestral steps, in half an hour on two cores. All
numbers are ours.

Expected (seed 0, Frechet distance of pixels, DDIM): the v pairs 0.34 to 0.36, the `both` pairs 0.31
to 0.40 and eps with SNR 0.44; eps with truncated SNR 2.7 and with SNR + 1 2.0; x 1.1 to 2.3.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_ablation has no variants; got {variant!r}")
    return ConfigDict(
        {
            "data": {"name": "digits"},
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {"patch": 2, "features": 64, "depth": 3, "heads": 4},
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels",),
                "references": ("train",),
                "solvers": ("ddim", "ancestral:medium:0.5"),
            },
            "stages": tuple(
                {
                    "name": f"{head}-{weighting}",
                    "method": "teacher",
                    "head": head,
                    "weighting": weighting,
                    "measured_at": (64,),
                    "stratified": True,
                    "loop": {"num_updates": 4000, "batch_size": 64, "save_every": 1000},
                    "optimizer": {
                        "learning_rate": 3e-3,
                        "warmup": 100,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                }
                for head in ("both", "x", "eps", "v")
                for weighting in ("snr", "snr_trunc", "v_mse")
            ),
        }
    )
