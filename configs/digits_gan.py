"""draft"""

from ml_collections import ConfigDict

from configs import digits_pd
from configs.recipes import LOOP


def get_config(variant: str = "") -> ConfigDict:
    config = digits_pd.get_config()
    teacher, _ = config.stages
    teacher["num_steps"] = (64, 4, 1)
    gan = {
        "name": "gan",
        "method": "gan",
        "teacher": "teacher",
        "judges": (
            {
                "features": "pixels",
                "halvings": (2,),
                "width": 128,
                "mixing": 0,
                "batch_norm": False,
            },
        ),
        "r1": 1.0,
        "select": "",
        "loop": LOOP | {"num_updates": 1500, "batch_size": 128, "save_every": 500},
        "optimizer": {
            "learning_rate": 2e-4,
            "b1": 0.0,
            "b2": 0.99,
            "clip_norm": 0.0,
            "ema_decay": 0.999,
            "ema_ramp": 0.05,
        },
        "discriminator_optimizer": {"learning_rate": 4e-4, "b1": 0.0, "b2": 0.99, "clip_norm": 0.0},
    }
    config.stages = (teacher, ConfigDict(gan))
    config.evaluation.update(
        metrics=(
            "fd_pixels",
            "fd_classifier",
            "precision_recall",
            "class_shares",
            "nearest_neighbour_ratio",
        )
    )
    return config
