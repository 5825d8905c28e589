"""Progressive distillation (Salimans & Ho 2022) of a transformer of latents, ImageNet 256x256.

    python -m pdistill.main --config=configs/imagenet256_progressive.py:imported \
        --config.teacher=models/sit --workdir=runs/imagenet256_progressive

From 256 steps to one, of `imagenet256_latents`'s teacher or a converted one. The paper has no
latents: its rounds are those of `imagenet64_pd`, at the teacher's batch. Ours, and not run here.
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet256_latents


def get_config(variant: str = "") -> ConfigDict:
    config = imagenet256_latents.get_config(variant)
    config.evaluation.update(guidance=(0.0,), solvers=("ddim",))
    progressive = {
        "name": "progressive",
        "method": "progressive",
        "teacher": "teacher",
        "start_steps": 256,
        "long_rounds": 2,  # Salimans & Ho: 100k updates to 2 steps and to 1
        "weighting": "velocity_mse",
        "loop": {"num_updates": 50_000, "batch_size": 256, "substeps": 1, "save_every": 5000},
        "optimizer": {"learning_rate": 1e-4, "anneal": "linear"},  # Salimans & Ho
    }
    config.stages = (*config.stages, ConfigDict(progressive))
    return config
