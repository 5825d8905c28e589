"""What a network predicts, and how its loss is weighted: Table 1 of Salimans & Ho 2022, on digits.

    python -m pdistill.main --config=configs/digits_ablation.py --workdir=runs/digits_ablation

Twelve small teachers, sampled with 64 DDIM and ancestral steps, in ten minutes on two cores.
"""

from ml_collections import ConfigDict

from configs import digits_pd
from configs.recipes import head_ablation


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_ablation has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.model.network.arguments.depth = 3
    config.stages[0]["loop"].update(num_updates=1000, save_every=500)
    config = head_ablation(config, num_steps=64)
    config.evaluation.update(
        metrics=("fd_pixels",), references=("train",), solvers=("ddim", "ancestral:medium:0.5")
    )
    return config
