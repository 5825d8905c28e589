"""sCM, continuous-time consistency models (Lu & Song 2024), on class-conditional ImageNet 64x64.

    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_scm.py --workdir=runs/imagenet64_scm

Published (sCD, EDM2's XL network): FID 1.48 at two evaluations. Not run here. Nothing was released;
the laws, the weight and the optimizer are those that FastGen has for CIFAR-10
(configs/methods/config_scm.py), network and teacher those of `imagenet64_pd`. Differences from the
paper:

    number          theirs              ours               why
    network         EDM2's, 0.28 to 1.5B  `imagenet64_pd`'s  or EDM2's, converted, `:imported`
    guidance        none in 1.48        none              as theirs
    batch, updates  not known to us     2048, 200k         ours
    second level    sigma 0.821         the grid's         one grid for all flow maps
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_pd
from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_scm has no variants but 'imported'; got {variant!r}")
    config = imagenet64_pd.get_config()
    config.model.network.arguments.time_scale = 16.0
    student = {
        "method": "flow_map",
        "measured_at": (1, 2),
        **PRESETS["sct"],
        "loop": {"num_updates": 200_000, "batch_size": 2048, "substeps": 1, "save_every": 5000},
        "optimizer": {
            "rule": "radam",
            "learning_rate": 1e-4,
            "b2": 0.99,
            "clip_norm": 0.0,
            "ema_decay": 0.9999,
        },
    }
    config.stages = (
        config.stages[0],
        {"name": "sct", "start": "teacher", **copied(student)},
        {"name": "scd", "teacher": "teacher", **copied(student)},
    )
    return config
