"""PaGoDA (Kim et al. 2024) on Fashion-MNIST, on a laptop: 8x8 -> 16x16 -> 32x32.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_pagoda.py --workdir=runs/fashion_pagoda

The images of 28x28 pixels are padded to 32x32. A teacher of 8x8 pixels, one-step generators that
grow from it, the teacher's samples enlarged, and a teacher of 32x32 pixels to compare with, whose
training has as many operations as all that `pagoda/32` needs.

Expected (seed 0, Frechet distance of pixels to 10,000 training images of the size): teacher 0.52 in
8 steps; one of pagoda/8 0.30, of pagoda/16 4.3, of pagoda/32 29.5; upsampled/32 104; teacher_32
31.6 in 8 steps. It takes 26 minutes on two cores of an x86 server. With 3,000 updates of the
teacher, 1,000 of each generator and latents of 10 steps pagoda/32 came to 15.5.
"""

from typing import Any

from ml_collections import ConfigDict

from pdistill.configs import fashion_pd
from pdistill.configs.recipes import GAN_ADAM, pagoda_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_pagoda has no variants; got {variant!r}")
    config = fashion_pd.get_config()
    config.data.update(name="fashion_mnist@32", train="train[:10000]")
    large = config.model.network.arguments.to_dict()
    config.model.network.arguments.update(patch=1, attention_sizes=(4, 8))
    config.evaluation.update(references=("train[:10000]",), num_samples=2000)
    teacher = config.stages[0]
    teacher["loop"] |= {"num_updates": 1300, "batch_size": 32}
    pagoda_stages(config, sizes=(8, 16, 32), pagoda=laptop(dict(teacher["loop"])))
    for small in config.stages[1:3]:
        small.loop.num_updates = 250
    alone = ConfigDict(teacher | {"name": "teacher_32", "network": large})
    alone["loop"]["num_updates"] = 2100
    config.stages = (*config.stages, alone)
    return config


def laptop(loop: dict[str, Any]) -> dict[str, Any]:
    """Settings of every generator."""
    adam = GAN_ADAM | {"learning_rate": 5e-4, "anneal": "linear"}
    judge = {"features": "pixels", "width": 64, "mixing": 0}
    return {
        "judges": (judge, judge | {"batch_norm": False}),
        "latents": {"num_steps": 8},
        "layer": "conv_out/kernel",
        "loss": "non_saturating",
        "r1": 0.5,
        "loop": loop | {"num_updates": 350, "batch_size": 16},
        "optimizer": adam | {"ema_decay": 0.998, "ema_ramp": 0.1},
        "discriminator_optimizer": adam,
    }
