"""sCD (Lu & Song 2024) from EDM2's networks, on latents of class-conditional ImageNet 512x512.

    python -m pdistill.convert --from=edm2 --source=sd-vae-ft-mse --out=models/edm2_codec
    python -m pdistill.convert --from=edm2 --source=edm2-img512-s-2147483-0.130.pkl --out=models/s
    python -m pdistill.convert --from=edm2 --source=edm2-img512-xs-uncond-2147483-0.045.pkl \
        --out=models/xs_uncond
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet512 --resolution=512 \
        --codec=models/edm2_codec
    python -m pdistill.main --config=configs/imagenet512_edm2_scd.py:imported \
        --config.teacher=models/s --config.guide=models/xs_uncond --config.codec=models/edm2_codec \
        --workdir=runs/imagenet512

Published (sCD, the XXL network): FID 1.88 at two evaluations. Its teacher has 1.81 with guidance at
63 pairs of evaluations, and 1.25 with autoguidance (EDM2). Not run here. sCD was not released;
law, weight and optimizer are those that FastGen has for CIFAR-10 (configs/methods/config_scm.py).
Differences:

    number           theirs                     ours                why
    teacher          trained again for sCM      EDM2's as it is     what is released
    embedding of     the angle                  log(sigma) / 4,     the released network's; its
    the level                                   as EDM2's           slope is largest at the ends
    size             0.28 to 1.5B               0.28B (S)           others by the teacher's file
    guidance         not known to us            w of [0, 1] as an   0.4 is S's published weight, by
                                                input               XS without labels
    batch, updates   not known to us            2048, 200k          ours
    second level     sigma 0.821                the grid's          one grid for all flow maps

Without `:imported` the teacher is trained here, which is ours and not EDM2's training:

    number           theirs                     ours                why
    weights          set to unit length after   left as they are    each call divides them by their
                     each update                                    length, as theirs does too
    rate             falls as 1 / sqrt(step)    cosine              ours
    weight of loss   learnt, for each level     1                   ours
    labels           all; another network       left out at times   one network for both
"""

from ml_collections import ConfigDict

from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet512_edm2_scd has no variants but 'imported'; got {variant!r}")
    loop = {"batch_size": 2048, "substeps": 1, "save_every": 5000}
    return ConfigDict(
        {
            "data": {"name": "imagenet512", "resident": False},  # EDM2's has no flips
            "codec": "models/edm2_codec",
            "model": {
                "network": {  # released: S
                    "name": "edm2_unet",
                    "arguments": {
                        "channels": 192,
                        "multipliers": (1, 2, 3, 4),
                        "blocks": 3,
                        "attention_sizes": (16, 8),
                        "num_labels": 1000,
                        "convention": ("edm", 0.5),
                    },
                },
                "head": "v",
                "schedule": {"name": "karras", "arguments": {}},  # released
            },
            "mesh": {"data": -1, "fsdp": 8},  # ours
            "evaluation": {
                "metrics": ("fid", "is"),
                "references": ("train",),
                "solvers": ("edm",),  # released
                "guidance": (0.4, 0.0),  # released, without a guide
                "num_samples": 50_000,
                "batch_size": 256,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (32,),  # released
                    "level": (-0.4, 1.0),  # released
                    "label_dropout": 0.1,
                    "loop": loop | {"num_updates": 1_048_576},  # released: 2^31 images
                    "optimizer": {
                        "learning_rate": 1e-3,
                        "b2": 0.99,  # released
                        "warmup": 5_000,
                        "anneal": "cosine",
                        "ema_decay": 0.9999,
                    },
                },
                {
                    "name": "scd",
                    "method": "flow_map",
                    "teacher": "teacher",
                    "measured_at": (1, 2),
                    **copied(PRESETS["scd"]),
                    "guidance": (0.0, 1.0),
                    "loop": loop | {"num_updates": 200_000},
                    "optimizer": {
                        "rule": "radam",
                        "learning_rate": 1e-4,
                        "b2": 0.99,
                        "clip_norm": 0.0,
                        "ema_decay": 0.9999,
                    },
                },
            ),
        }
    )
