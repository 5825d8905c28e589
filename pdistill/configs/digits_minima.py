r"""The local-minima experiment of Zheng & Yang (2025, section 3) on handwritten digits.

    python -m pdistill.main --config=configs/digits_minima.py --workdir=runs/minima
    python -m pdistill.compare --teacher=runs/minima/teacher --reference=digits:train \
        --students=runs/minima/direct_2@2,runs/minima/direct_4@4,runs/minima/direct_8@8,runs/minima/direct_16@16

One-step students, all started from the same teacher, are regressed on its samples of 2, 4, 8 and
16 DDIM steps from the same noise.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_pd
from pdistill.configs.recipes import LOOP


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_minima has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation.update(metrics=("fd_pixels", "fd_classifier"), references=("train",))
    teacher, progressive = config.stages
    teacher["num_steps"] = (16, 8, 4, 2, 1)
    students = (
        ConfigDict(
            {
                "name": f"direct_{steps}",
                "method": "direct",
                "teacher": "teacher",
                "teacher_steps": steps,
                "loop": LOOP | {"num_updates": 1500, "batch_size": 64, "save_every": 500},
                "optimizer": progressive["optimizer"],
            }
        )
        for steps in (2, 4, 8, 16)
    )
    config.stages = (teacher, *students)
    return config
