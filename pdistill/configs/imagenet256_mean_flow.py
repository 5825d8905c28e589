"""MeanFlow (Geng et al. 2025) on latents of ImageNet 256x256, from the parameters of a teacher.

    python -m pdistill.main --config=configs/imagenet256_mean_flow.py:imported \
        --config.teacher=models/sit --workdir=runs/imagenet256_mean_flow

Published, from scratch and of XL/2: FID 3.43 in one step. The law of times, the loss's weight,
batch, optimiser and average are those of the authors' code for ImageNet 256; these numbers differ:

    number    theirs                     ours                     why
    start     scratch                    a flow's parameters      as in DMF (Lee et al. 2025)
    guidance  w and kappa mixed, within  one weight, the          the teacher's, on its channels
              an interval of times       teacher's own
    updates   240 epochs, 1.2M           400k                     ours: it starts from a teacher

Not run here.
"""

from ml_collections import ConfigDict

from pdistill.configs import imagenet256_latents
from pdistill.methods.flow_map import PRESETS


def get_config(variant: str = "") -> ConfigDict:
    config = imagenet256_latents.get_config(variant)
    config.evaluation.update(guidance=(0.0,), solvers=("ddim",))
    mean_flow = {
        "name": "mean_flow",
        "method": "flow_map",
        "teacher": "teacher",
        "measured_at": (1, 2, 4),
        **PRESETS["mean_flow"],
        "guidance": (5.7 if variant else 0.5,),
        "loop": {"num_updates": 400_000, "batch_size": 256, "substeps": 1, "save_every": 5000},
        "optimizer": {"learning_rate": 1e-4, "b2": 0.95, "clip_norm": 0.0, "ema_decay": 0.9999},
    }
    config.stages = (*config.stages, ConfigDict(mean_flow))
    return config
