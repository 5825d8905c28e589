"""PaGoDA (Kim et al. 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_pagoda.py --workdir=runs/digits_pagoda

A teacher of 4x4 digits, a one-step generator of them, and the generator grown to 8x8, beside the
teacher's samples enlarged.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_gan, digits_pd
from pdistill.configs.recipes import LOOP, pagoda_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_pagoda has no variants; got {variant!r}")
    config = digits_pd.get_config()
    network = {
        "channels": 32,
        "embedding_channels": 128,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention_sizes": (),
    }
    config.model.network = ConfigDict({"name": "unet", "arguments": network})
    config.evaluation.update(metrics=("fd_pixels",), references=("train",))
    judged = digits_gan.gan()
    loop = LOOP | {"batch_size": 64, "substeps": 1, "save_every": 500}
    teacher = config.stages[0]
    teacher["loop"] = loop | {"num_updates": 2000}
    teacher["num_steps"] = (64, 4, 1)
    return pagoda_stages(
        config,
        sizes=(4, 8),
        pagoda={
            "judges": judged["judges"],
            "discriminator_optimizer": judged["discriminator_optimizer"],
            "loss": "non_saturating",
            "r1": judged["r1"],
            "loop": loop | {"num_updates": 1000},
            "optimizer": {"learning_rate": 5e-4, "b2": 0.99, "anneal": "linear", "ema_decay": 0.99},
        },
    )
