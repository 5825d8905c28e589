"""Guided distillation (Meng et al. 2023) of a transformer of latents, ImageNet 256x256.

    python -m pdistill.main --config=configs/imagenet256_guided.py:imported \
        --config.teacher=models/sit --workdir=runs/imagenet256_guided

First one network for weights from 0 to 4, as in the paper, then half as many steps, again and
again, down to one. A converted teacher is guided as its authors guide it, on three channels. The
paper released no code and prints no learning rates: the rest is `imagenet256_progressive`'s. Ours,
and not run here.
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet256_progressive


def get_config(variant: str = "") -> ConfigDict:
    config = imagenet256_progressive.get_config(variant)
    config.evaluation.guidance = (0.5, 0.0, 4.0)
    teacher, progressive = config.stages
    guided = {
        "name": "guided",
        "method": "guided",
        "teacher": "teacher",
        "measured_at": (256,),
        "guidance": (0.0, 4.0),  # paper
        "weighting": "velocity_mse",
        "loop": dict(progressive["loop"]),
        "optimizer": {"learning_rate": 1e-4, "clip_norm": 0.0, "ema_decay": 0.9999},
    }
    progressive.update(name="guided_progressive", teacher="guided")
    config.stages = (teacher, ConfigDict(guided), progressive)
    return config
