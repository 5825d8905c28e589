"""What a network predicts, and how its loss is weighted: Table 1 of Salimans & Ho 2022, on digits.

    python -m pdistill.main --config=configs/digits_ablation.py --workdir=runs/digits_ablation

Twelve small teachers, sampled with 64 DDIM and ancestral steps, in half an hour on two cores.

Expected (seed 0, Frechet distance of pixels, DDIM): the v pairs 0.34 to 0.36, the `both` pairs 0.31
to 0.40 and eps with SNR 0.44; eps with truncated SNR 2.7 and with SNR + 1 2.0; x 1.1 to 2.3.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_pd
from pdistill.configs.recipes import head_ablation


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_ablation has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.model.network.arguments.depth = 3
    config.stages[0]["loop"].update(num_updates=4000, save_every=1000)
    config = head_ablation(config, num_steps=64)
    config.evaluation.update(
        metrics=("fd_pixels",), references=("train",), solvers=("ddim", "ancestral:medium:0.5")
    )
    return config
