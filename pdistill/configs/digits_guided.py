"""Guided distillation (Meng et al. 2023) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_guided.py --workdir=runs/digits_guided

A label-conditional teacher that can be guided, one network for guidance weights from 0 to 4 that
needs no pair of evaluations, and its students of 32 to 1 steps. Every model is measured at the
weights 0, 1, 2 and 4.

Expected (seed 0): Frechet distance of pixels of the teacher's guided pair at 64 steps 0.29 / 1.00 /
1.96 / 3.63 at those weights, students 0.33 / 1.06 / 2.15 / 4.06 at 4 steps and 0.38 / 1.17 / 2.46 /
4.79 at one; 13 minutes on two cores of an x86 server. Examples of large weights count less, because
their errors are larger.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_pd
from pdistill.configs.recipes import guided


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_guided has no variants; got {variant!r}")
    config = guided(digits_pd.get_config(), num_labels=10, num_updates=8000)
    config.evaluation.update(
        metrics=("fd_pixels", "label_accuracy", "precision_recall"), references=("train",)
    )
    _, stage, progressive = config.stages
    stage["optimizer"]["learning_rate"] = 1e-3
    progressive["loop"]["num_updates"] = 800
    for student in (stage, progressive):
        student["discount"] = 1.5
    return config
