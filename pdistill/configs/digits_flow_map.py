"""Flow maps on scikit-learn's handwritten digits: from scratch and from a teacher, on a CPU.

    python -m pdistill.main --config=configs/digits_flow_map.py --workdir=runs/digits_flow_map
    python -m pdistill.main --config=configs/digits_flow_map.py:sct --workdir=runs/digits_sct

`mean_flow` and `shortcut` learn from the data alone, 397,000 images; the others from the teacher,
128,000 images each, as the methods of `digits_methods`. The network is that of `digits_pd`, with a
time embedding that can be differentiated. `mean_flow_distilled` has levels that are uniform in time
and no adaptive weight. `:sct` trains a consistency model from scratch instead. All numbers that are
not a preset's are ours.
"""

from ml_collections import ConfigDict

from pdistill.methods.flow_map import PRESETS

SCRATCH = {"num_updates": 6200, "batch_size": 64, "save_every": 1000}
DISTILLED = {"num_updates": 2000, "batch_size": 64, "save_every": 500}
OPTIMIZER = {
    "learning_rate": 3e-3,
    "warmup": 100,
    "anneal": "cosine",
    "b2": 0.99,
    "ema_decay": 0.998,
}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "sct"):
        raise ValueError(f"digits_flow_map has the variant 'sct'; got {variant!r}")
    measured = {"method": "flow_map", "measured_at": (1, 2, 4, 8)}
    scratch = {**measured, "loop": SCRATCH, "optimizer": OPTIMIZER}
    distilled = {
        **measured,
        "teacher": "teacher",
        "loop": DISTILLED,
        "optimizer": OPTIMIZER | {"learning_rate": 1e-3},
    }
    teacher = {
        "name": "teacher",
        "method": "teacher",
        "measured_at": (64, 8, 4, 2, 1),
        "stratified": True,
        "loop": {"num_updates": 3000, "batch_size": 64, "save_every": 500},
        "optimizer": OPTIMIZER,
    }
    stages = (
        teacher,
        {"name": "mean_flow", **scratch, **PRESETS["mean_flow"]},
        {"name": "shortcut", **scratch, **PRESETS["shortcut"]},
        {"name": "mean_flow_distilled", **distilled, "jumps": {"instantaneous": 0.5}},
        {"name": "scd", **distilled, **PRESETS["scd"], "warmup": 500},
        {"name": "shortcut_distilled", **distilled, **PRESETS["shortcut"]},
        {"name": "tvm", **distilled, **PRESETS["tvm"], "own_velocity": False},
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
            "stages": stages,
        }
    )
