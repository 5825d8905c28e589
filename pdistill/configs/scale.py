"""The papers' experiments scaled down: to a laptop (`:cpu`) and to one accelerator (`:gpu`).

All numbers here are ours. A published experiment's own file has its own.
"""

from ml_collections import ConfigDict

from pdistill.experiment.defaults import copied
from pdistill.methods.flow_map import PRESETS

ADVERSARIAL = {"b1": 0.0, "b2": 0.99, "clip_norm": 0.0}  # Adam of generators and discriminators


def laptop(name: str, *, flip: bool) -> ConfigDict:
    """A small U-Net and its rounds from 8 steps to one, for images of 28 or 32 pixels."""
    loop = {"batch_size": 16, "substeps": 1, "log_every": 50, "save_every": 100}
    return ConfigDict(
        {
            "data": {"name": name, "flip": flip},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "patch": 2,
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (1, 2),
                        "blocks": 1,
                        "attention_sizes": (7, 8),
                        "head_channels": 32,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels",),
                "references": ("train",),
                "num_samples": 1000,
                "batch_size": 500,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (8, 4, 2, 1),
                    "stratified": True,
                    "loop": loop | {"num_updates": 2500},
                    "optimizer": {
                        "learning_rate": 2e-3,
                        "warmup": 200,
                        "anneal": "cosine",
                        "b2": 0.99,
                        "ema_decay": 0.998,
                    },
                },
                {
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 8,
                    "long_rounds": 1,
                    "stratified": True,
                    "loop": loop | {"num_updates": 300},
                    "optimizer": {"learning_rate": 5e-4, "anneal": "linear", "b2": 0.99},
                },
            ),
        }
    )


def accelerator(config: ConfigDict) -> ConfigDict:
    """`laptop` with larger batches and a network of 18 million parameters, in bfloat16."""
    config.model.network.arguments.update(
        patch=1, channels=64, embedding_channels=256, multipliers=(1, 2, 4), blocks=2,
        attention_sizes=(8, 16), head_channels=64, dtype="bfloat16",
    )  # fmt: skip
    config.evaluation.update(num_samples=5000, batch_size=1000)
    teacher, progressive = config.stages
    common = {"substeps": 10, "log_every": 100}
    teacher["loop"].update(common, batch_size=512, num_updates=3000, save_every=1000)
    teacher["optimizer"].update(learning_rate=1e-3, ema_decay=0.999)
    progressive["loop"].update(common, batch_size=256, num_updates=400, save_every=400)
    progressive["long_rounds"] = 0
    return config


def gan(config: ConfigDict) -> ConfigDict:
    """D2O, D2O-F and a control from scratch after the teacher of `config`, judged at its size.

    EfficientNet-Lite0 hardly sees brightness and colour, which drift without the teacher's own
    encoder beside it. Pixels are the space that the discriminator does not use.
    """
    teacher = config.stages[0]
    config.evaluation.update(
        metrics=("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
        references=("train[:5000]",),
        features="pixels",
    )
    levels = len(config.model.network.arguments.multipliers)
    heads = {"width": 128, "mixing": 32}
    adam = ADVERSARIAL | {"learning_rate": 3e-4, "anneal": "linear"}
    stage = {
        "name": "gan",
        "method": "gan",
        "teacher": "teacher",
        "adversary": {
            "judges": (
                {"features": "efficientnet_lite0", "halvings": (2, 1, 1, 1)} | heads,
                {"features": "teacher", "halvings": tuple(range(levels, 0, -1))} | heads,
            ),
            "r1": 1e-3,
            "optimizer": adam,
        },
        "loop": dict(teacher["loop"]) | {"num_updates": 1200, "save_every": 200},
        "optimizer": adam | {"ema_decay": 0.998, "ema_ramp": 0.1},
        "select": "fd_pixels",
    }
    frozen = stage | {"name": "gan_frozen", "fixed": "unet"}
    scratch = stage | {"name": "gan_scratch", "scratch": True}
    config.stages = (teacher, *(ConfigDict(copied(s)) for s in (stage, frozen, scratch)))
    return config


def dmd(config: ConfigDict) -> ConfigDict:
    """Generators after the teacher of `config`: by its scores alone, and with a classifier."""
    teacher = config.stages[0]
    config.evaluation.references = ("train[:5000]",)
    adam = ADVERSARIAL | {"learning_rate": 2e-4, "anneal": "linear"}
    stage = {
        "name": "dm",
        "method": "dmd",
        "teacher": "teacher",
        "fake_updates": 2,
        "loop": dict(teacher["loop"]) | {"num_updates": 3000, "save_every": 500},
        "optimizer": adam | {"ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": adam,
        "select": "fd_pixels",
    }
    config.stages = (
        teacher,
        *map(ConfigDict, (stage, stage | {"name": "dm_gan", "adversarial": 3e-3})),
    )
    return config


def ctm(config: ConfigDict) -> ConfigDict:
    """Students that jump after the teacher of `config`, judged as those of `gan`.

    Few solver steps at once, since the teacher's evaluations take most of the time.
    """
    teacher, judged, *_ = gan(config).stages
    stage = {
        "name": "ctm",
        "method": "ctm",
        "teacher": "teacher",
        "measured_at": (1, 2, 4),
        "layer": "conv_out/kernel",
        "grid_points": 18,
        "solver_steps": 3,
        "distance": "huber",
        "loop": judged["loop"].to_dict() | {"num_updates": 1000},
        "optimizer": {"learning_rate": 5e-4, "b2": 0.99, "anneal": "linear", "ema_decay": 0.99},
    }
    adversarial = stage | {
        "name": "ctm_gan",
        "start": "ctm",
        "adversary": judged["adversary"].to_dict(),
        "loop": stage["loop"] | {"num_updates": 600},
        "select": "fd_pixels",
    }
    config.stages = (teacher, *map(ConfigDict, (stage, adversarial)))
    return config


def mean_flow(config: ConfigDict) -> ConfigDict:
    """MeanFlow from scratch in place of teacher and students, with as many images as they see.

    With a long last round, as on a laptop, they are 64,000 where those see 59,200: it takes twice
    the updates and is counted as three rounds, as in the results that there are.
    """
    teacher, progressive = config.stages
    rounds = 3 + 2 * progressive.get("long_rounds", 0)
    images = progressive["loop"]["num_updates"] * progressive["loop"]["batch_size"] * rounds
    config.model.network.arguments.time_scale = 16.0
    loop = dict(teacher["loop"])
    loop["num_updates"] += images // loop["batch_size"]
    config.stages = (
        ConfigDict(
            {
                "name": "mean_flow",
                "method": "flow_map",
                "measured_at": (1, 2, 4, 8),
                "jumps": {"to": "below", "instantaneous": 0.5, "stratified": True},
                "power": 0.75,
                "floor": 1e-2,
                "loop": loop,
                "optimizer": dict(teacher["optimizer"]),
            }
        ),
    )
    return config


def ect(config: ConfigDict) -> ConfigDict:
    """Easy consistency tuning after the teacher of `config`."""
    teacher = config.stages[0]
    config.model.network.arguments.time_scale = 16.0
    stage = {
        "name": "ect",
        "method": "flow_map",
        "start": "teacher",
        "measured_at": (1, 2),
        **copied(PRESETS["ect"]),
        "between": {"at": "ect", "q": 256.0, "stages": 1},
        "loop": dict(teacher["loop"]) | {"num_updates": 8000, "batch_size": 128},
        "optimizer": {
            "rule": "radam",
            "learning_rate": 1e-4,
            "clip_norm": 0.0,
            "ema_decay": 0.9993,
        },
    }
    config.stages = (teacher, ConfigDict(stage))
    return config


def latents(name: str, *, flip: bool) -> ConfigDict:
    """A codec that divides height and width by four, a small transformer, and its students."""
    loop = {"batch_size": 16, "substeps": 1, "log_every": 100, "save_every": 500}
    adam = {"warmup": 100, "anneal": "cosine", "b2": 0.99, "ema_decay": 0.998}
    return ConfigDict(
        {
            "data": {"name": name, "flip": flip},
            "codec": "codec",
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {
                        "patch": 1,
                        "features": 64,
                        "depth": 4,
                        "heads": 4,
                        "num_labels": 10,
                        "time_scale": 16.0,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels",),
                "references": ("train",),
                "num_samples": 1000,
                "batch_size": 500,
            },
            "stages": (
                {
                    "name": "codec",
                    "method": "codec",
                    "network": {"channels": (16, 32), "latent_channels": 4},
                    "loop": loop | {"num_updates": 1500},
                    "optimizer": adam | {"learning_rate": 4e-3},
                },
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (16, 8, 4, 2, 1),
                    "stratified": True,
                    "label_dropout": 0.1,
                    "loop": loop | {"num_updates": 2500},
                    "optimizer": adam | {"learning_rate": 3e-3},
                },
                {
                    "name": "mean_flow",
                    "method": "flow_map",
                    "start": "teacher",
                    "measured_at": (1, 2, 4),
                    "jumps": {"to": "below", "instantaneous": 0.5, "stratified": True},
                    "power": 0.75,
                    "floor": 1e-2,
                    "loop": loop | {"num_updates": 1500},
                    "optimizer": adam | {"learning_rate": 2e-3},
                },
                {
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 8,
                    "stratified": True,
                    "loop": loop | {"num_updates": 300, "save_every": 300},
                    "optimizer": {"learning_rate": 1e-3, "anneal": "linear", "b2": 0.99},
                },
                {
                    "name": "guided",
                    "method": "guided",
                    "measured_at": (8, 4),
                    "guidance": (0.0, 2.0),
                    "stratified": True,
                    "optimizer": adam | {"learning_rate": 1e-3},
                    "teacher": "teacher",
                    "loop": loop | {"num_updates": 1000},
                },
                {
                    "name": "dmd",
                    "method": "dmd",
                    "fake_updates": 2,
                    "optimizer": ADVERSARIAL
                    | {"learning_rate": 5e-4, "anneal": "linear", "ema_decay": 0.99},
                    "fake_optimizer": ADVERSARIAL | {"learning_rate": 1e-3, "anneal": "linear"},
                    "teacher": "teacher",
                    "loop": loop | {"num_updates": 1000},
                },
            ),
        }
    )


def zoo(name: str, *, flip: bool) -> ConfigDict:
    """`latents` for models to keep: more updates, a codec, a teacher and students of 4 and 1."""
    config = latents(name, flip=flip)
    config.evaluation.update(
        metrics=("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
        references=("train[:10000]",),
        features="pixels",
        num_samples=2000,
    )
    codec, teacher, _, progressive, _, dmd = config.stages
    codec["loop"].update(batch_size=32)
    codec["optimizer"].update(learning_rate=2e-3)
    teacher["optimizer"].update(learning_rate=2e-3, ema_decay=0.999)
    progressive["end_steps"] = 4
    for stage in (teacher, progressive, dmd):
        stage["loop"].update(substeps=10)
    config.stages = (codec, teacher, progressive, dmd)
    return config
