"""Multi-student distillation (Song et al. 2024) on handwritten digits, on a laptop.

    python -m pdistill.main --config=configs/digits_msd.py --workdir=runs/digits_msd

A teacher that is told labels, and generators of half its width: two for five digits each ("msd"),
one for all of them that has as many updates as each of the two ("single"), and two that have not
learnt the teacher's scores first ("msd_no_tsm").
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_dmd, digits_pd
from pdistill.configs.recipes import LOOP


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_msd has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.model.network.arguments.num_labels = 10
    config.evaluation = digits_dmd.get_config().evaluation
    teacher, _ = config.stages
    teacher["num_steps"] = (64, 4, 1)
    student = digits_dmd.dmd() | {"name": "dmd", "select": ""}
    student["loop"] |= {"num_updates": 2500, "save_every": 500}
    small = {"features": 32, "heads": 2}
    score_matching = {
        "name": "tsm",
        "teacher": "teacher",
        "network": small,
        "stratified": True,
        "loop": LOOP | {"num_updates": 1000, "batch_size": 64, "save_every": 1000},
        "optimizer": dict(teacher["optimizer"]),
    }
    stage = {
        "method": "multi_student",
        "parts": 2,
        "student": student,
        "score_matching": score_matching,
    }
    scratch = {"student": student | {"scratch": True, "network": small}, "score_matching": None}
    stages = (
        stage | {"name": "msd"},
        stage | {"name": "single", "parts": 1},
        stage | {"name": "msd_no_tsm"} | scratch,
    )
    config.stages = (teacher, *map(ConfigDict, stages))
    return config
