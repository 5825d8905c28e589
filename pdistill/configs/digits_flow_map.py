"""Flow maps on scikit-learn's handwritten digits: from scratch and from a teacher, on a CPU.

    python -m pdistill.main --config=configs/digits_flow_map.py --workdir=runs/digits_flow_map
    python -m pdistill.main --config=configs/digits_flow_map.py:sct --workdir=runs/digits_sct

`mean_flow` and `shortcut` learn from the data alone, 396,800 images; `mean_flow_tuned` and
`shortcut_tuned` go on from the teacher's network with the data's velocities, and the others learn
the teacher's: 128,000 images each, as the methods of `digits_methods`. The network is that of
`digits_methods`, with a time embedding that can be differentiated. `:sct` trains a consistency
model from scratch instead. All numbers that are not a preset's are ours: levels that are uniform in
the angle, with jumps to anywhere below, were better here than the papers' laws, which are for other
images. Shortcut models' targets are of the network itself, for the released average of the last
1000 updates would lag behind in so short a run, at each of the doublings.
"""

from ml_collections import ConfigDict

from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS

OPTIMIZER = {
    "learning_rate": 3e-3,
    "warmup": 100,
    "anneal": "cosine",
    "b2": 0.99,
    "ema_decay": 0.998,
}
LONG = OPTIMIZER | {"ema_decay": 0.999}
# Half of a batch has jumps of no length, and the other half jumps to any level below.
BELOW = {
    "jumps": {"to": "below", "instantaneous": 0.5, "stratified": True},
    "power": 0.75,
    "floor": 1e-2,
}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "sct"):
        raise ValueError(f"digits_flow_map has the variant 'sct'; got {variant!r}")
    measured = {"method": "flow_map", "measured_at": (1, 2, 4, 8)}
    loop = {"batch_size": 32, "substeps": 10}
    scratch = measured | {
        "loop": loop | {"num_updates": 12_400, "save_every": 3100},
        "optimizer": LONG,
    }
    taught = measured | {
        "loop": loop | {"num_updates": 4000, "save_every": 1000},
        "optimizer": LONG | {"learning_rate": 1e-3},
    }
    teacher = {
        "name": "teacher",
        "method": "teacher",
        "measured_at": (64, 8, 4, 2, 1),
        "stratified": True,
        "loop": {"num_updates": 3000, "batch_size": 64, "save_every": 500},
        "optimizer": OPTIMIZER,
    }
    given = {"teacher": "teacher"}
    shortcut = PRESETS["shortcut"] | {"power": 0.5, "floor": 1e-2, "target_decay": 0.0}
    stages = (
        teacher,
        {"name": "mean_flow", **scratch, **BELOW},
        {"name": "shortcut", **scratch, **shortcut},
        {"name": "mean_flow_tuned", "start": "teacher", **taught, **BELOW},
        {
            "name": "mean_flow_distilled",
            **given,
            **taught,
            "jumps": {"instantaneous": 0.5, "stratified": True},
        },
        {"name": "scd", **given, **taught, **PRESETS["scd"], "warmup": 1000},
        {
            "name": "shortcut_tuned",
            "start": "teacher",
            **measured,
            "loop": loop | {"num_updates": 8000, "batch_size": 16, "save_every": 2000},
            "optimizer": LONG | {"learning_rate": 2e-3},
            **shortcut,
            "jumps": shortcut["jumps"] | {"most": 32},
        },
        {"name": "tvm", **given, **taught, **BELOW, "identity": "lagrangian", "power": 0.5},
    )
    if variant == "sct":
        stages = ({"name": "sct", **scratch, **PRESETS["sct"], "warmup": 1000},)
    return ConfigDict(
        {
            "data": {"name": "digits"},
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {
                        "patch": 2,
                        "features": 64,
                        "depth": 4,
                        "heads": 4,
                        "time_scale": 16.0,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {"metrics": ("fd_pixels",), "references": ("train",)},
            "stages": copied(stages),
        }
    )
