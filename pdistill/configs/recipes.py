"""Settings that several experiments share."""

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from pdistill.experiment.config import DataConfig, EvaluationConfig, MeshConfig, defaults
from pdistill.methods import STAGES, halvings
from pdistill.training import LoopConfig

COSINE = {"name": "cosine", "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0}}

# Every key that has a default, so that --config.mesh.fsdp=8 and the like can change it.
DATA, MESH, EVALUATION, LOOP = map(defaults, (DataConfig, MeshConfig, EvaluationConfig, LoopConfig))
GAN, DMD, CTM, PAGODA = (
    defaults(STAGES[method]) | {"name": method, "method": method, "teacher": "teacher"}
    for method in ("gan", "dmd", "ctm", "pagoda")
)
LOWDIFF = defaults(STAGES["lowdiff"]) | {"name": "lowdiff", "method": "lowdiff"}
GAN_ADAM = {"b1": 0.0, "b2": 0.99, "clip_norm": 0.0}  # of generators and discriminators


def powers_of_two(start: int, end: int = 1) -> tuple[int, ...]:
    """start, start / 2, ..., end."""
    return (start, *powers_of_two(start // 2, end)) if start > end else (start,)


def salimans_ho(
    *,
    data: dict[str, Any],
    network: dict[str, Any],
    teacher: dict[str, Any],
    progressive: dict[str, Any],
    evaluation: dict[str, Any],
    mesh: dict[str, int] | None = None,
    paper_head: str,
    variant: str,
) -> ConfigDict:
    """Teacher and progressive rounds as in Salimans & Ho 2022, appendix.

    Args:
      teacher, progressive: what these stages add to the paper's common settings.
      paper_head: the paper's network output on this data; used by the variant of that name, with
        the truncated SNR weight. The default variant "" predicts v with the SNR + 1 weight.
    """
    if variant not in ("", paper_head):
        raise ValueError(f"variants: '' (v head) and {paper_head!r} (the paper's); got {variant!r}")
    weighting = "snr_trunc" if variant else "v_mse"
    return ConfigDict(
        {
            "seed": 0,
            "data": DATA | data,
            "model": {"network": network, "head": variant or "v", "schedule": COSINE},
            "mesh": MESH | (mesh or {}),
            "evaluation": EVALUATION | evaluation,
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "num_steps": powers_of_two(min(progressive["start_steps"], 1024)),
                    "weighting": weighting,
                    "loop": LOOP | teacher["loop"],
                    "optimizer": {"warmup": 1000, "ema_decay": 0.9999} | teacher["optimizer"],
                },
                {
                    "name": "progressive",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": progressive["start_steps"],
                    "long_rounds": 2,  # 100k updates for the rounds to 2 steps and to 1
                    "weighting": weighting,
                    "loop": LOOP | {"num_updates": 50_000} | progressive["loop"],
                    "optimizer": {"anneal": "linear"} | progressive["optimizer"],
                },
            ),
        }
    )


def laptop(data: dict[str, Any]) -> ConfigDict:
    """A small U-Net and its rounds from 8 steps to one, for images of 28 or 32 pixels."""
    network = {
        "patch": 2,
        "channels": 32,
        "embedding_channels": 128,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention_sizes": (7, 8),
        "head_channels": 32,
    }
    loop = LOOP | {"batch_size": 16, "substeps": 1, "log_every": 50, "save_every": 100}
    optimizer = {"b2": 0.99}
    return ConfigDict(
        {
            "seed": 0,
            "data": DATA | data,
            "model": {"network": {"name": "unet", "arguments": network}, "schedule": COSINE},
            "mesh": MESH,
            "evaluation": EVALUATION
            | {
                "metrics": ("fd_pixels",),
                "references": ("train",),
                "num_samples": 1000,
                "batch_size": 500,
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "num_steps": powers_of_two(8),
                    "stratified": True,
                    "loop": loop | {"num_updates": 2500},
                    "optimizer": optimizer
                    | {
                        "learning_rate": 2e-3,
                        "warmup": 200,
                        "anneal": "cosine",
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
                    "optimizer": optimizer | {"learning_rate": 5e-4, "anneal": "linear"},
                },
            ),
        }
    )


def head_ablation(config: ConfigDict, num_steps: int) -> ConfigDict:
    """The teacher of `config` once for each head and weighting, named like "v-snr_trunc"."""
    teacher = config.stages[0]
    config.stages = tuple(
        teacher
        | {
            "name": f"{head}-{weighting}",
            "head": head,
            "weighting": weighting,
            "num_steps": (num_steps,),
        }
        for head in ("both", "x", "eps", "v")
        for weighting in ("snr", "snr_trunc", "v_mse")
    )
    return config


def gan_stages(
    config: ConfigDict, gan: dict[str, Any], *, frozen: dict[str, Any], comparisons: bool = True
) -> ConfigDict:
    """The teacher of `config`, and generators that start from it, instead of its rounds.

    Args:
      gan: settings of `methods.GanStage`. frozen: what differs in the stage "gan_frozen".
      comparisons: besides "gan" also "gan_frozen" and, as the control, "gan_scratch".
    """
    teacher = config.stages[0]
    gan = GAN | gan
    stages = [gan]
    if comparisons:
        stages += [
            gan | {"name": "gan_frozen"} | frozen,
            gan | {"name": "gan_scratch", "scratch": True},
        ]
    config.stages = (teacher, *map(ConfigDict, stages))
    return config


def laptop_gan(config: ConfigDict) -> ConfigDict:
    """Generators from the teacher of `laptop`, judged at the images' size.

    EfficientNet-Lite0 hardly sees brightness and colour, which drift without the teacher's own
    encoder beside it. Pixels are the space that the discriminator does not use.
    """
    adam = GAN_ADAM | {"learning_rate": 3e-4, "anneal": "linear"}
    levels = len(config.model.network.arguments.multipliers)
    config.evaluation.update(
        metrics=("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
        references=("train[:5000]",),
        features="pixels",
    )
    gan = {
        "judges": (
            {
                "features": "efficientnet_lite0",
                "halvings": (2, 1, 1, 1),
                "width": 128,
                "mixing": 32,
            },
            {
                "features": "teacher",
                "halvings": tuple(range(levels, 0, -1)),
                "width": 128,
                "mixing": 32,
            },
        ),
        "r1": 1e-3,
        "loop": dict(config.stages[0]["loop"]) | {"num_updates": 1200, "save_every": 200},
        "optimizer": adam | {"ema_decay": 0.998, "ema_ramp": 0.1},
        "discriminator_optimizer": adam,
        "select": "fd_pixels",
    }
    return gan_stages(config, gan, frozen={"frozen": "unet"})


def laptop_dmd(config: ConfigDict) -> ConfigDict:
    """Generators from the teacher of `laptop`, by its scores alone and with DMD2's classifier."""
    teacher = config.stages[0]
    config.evaluation.references = ("train[:5000]",)
    adam = GAN_ADAM | {"learning_rate": 2e-4, "anneal": "linear"}
    stage = DMD | {
        "name": "dm",
        "fake_updates": 2,
        "loop": dict(teacher["loop"]) | {"num_updates": 3000, "save_every": 500},
        "optimizer": adam | {"ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": adam,
        "select": "fd_pixels",
    }
    stages = (stage, stage | {"name": "dm_gan", "adversarial": 3e-3})
    config.stages = (teacher, *map(ConfigDict, stages))
    return config


def side_by_side(
    config: ConfigDict, others: Iterable[tuple[ConfigDict, Sequence[str]]], updates: int
) -> ConfigDict:
    """Teacher and rounds of `config`, and other methods with that teacher, at equal images seen.

    Args:
      others: configs, and which of their stages; all but where they start and how long they train
        is as it is there. updates: of each method, with the rounds' batch; the rounds have them
        together.
    """
    teacher, progressive = config.stages
    counts = halvings(progressive["start_steps"], progressive.get("end_steps", 1))
    length = updates // sum(2 if count <= progressive["long_rounds"] else 1 for count in counts)
    loop = dict(progressive["loop"]) | {"log_every": 50}
    progressive["loop"] = loop | {"num_updates": length, "save_every": length}
    stages = [teacher, progressive]
    for other, names in others:
        for stage in other.stages:
            if stage["name"] in names:
                stage["start"] = ""
                stage["loop"] = loop | {"num_updates": updates, "save_every": updates // 4}
                stages.append(stage)
    config.stages = tuple(map(ConfigDict, stages))
    return config


def d2o(config: ConfigDict, *, batch_size: int, num_updates: int) -> ConfigDict:
    """`config` with the released settings of D2O (Zheng & Yang 2025) instead of its rounds.

    Their discriminators also look at VGG16 or DeiT features, for which there is no kept JAX
    library: here EfficientNet-Lite0 is alone. Their R1 weight is 1e-4 for the sum over the images
    of one of four devices. They do not mirror images; here it is as for the teacher.
    """
    adam = GAN_ADAM | {"learning_rate": 1e-4}
    gan = {
        "judges": (
            {"features": "efficientnet_lite0", "halvings": (4, 3, 2, 1), "resolution": 224},
        ),
        "r1": 1e-4 / (batch_size // 4),
        "loop": LOOP
        | {
            "num_updates": num_updates,
            "batch_size": batch_size,
            "substeps": 1,
            "save_every": 1000,
        },
        "optimizer": adam | {"ema_decay": 0.5 ** (batch_size / 500_000), "ema_ramp": 0.05},
        "discriminator_optimizer": adam,
        "select": "fid",
    }
    return gan_stages(config, gan, frozen={}, comparisons=False)


def dmd2(
    config: ConfigDict,
    *,
    learning_rate: float,
    adversarial: float,
    batch_size: int,
    num_updates: int,
    ema_decay: float = 0.0,
) -> ConfigDict:
    """`config` with the common settings of DMD2 (Yin et al. 2024) instead of its rounds.

    Args:
      num_updates: of the fake score, which its code counts too.
    """
    adam = {"learning_rate": learning_rate, "warmup": 500, "weight_decay": 0.01, "clip_norm": 10.0}
    stage = DMD | {
        "adversarial": adversarial,
        "loop": LOOP
        | {
            "num_updates": num_updates,
            "batch_size": batch_size,
            "substeps": 5,
            "save_every": 2000,
        },
        "optimizer": adam | {"ema_decay": ema_decay},
        "fake_optimizer": adam,
        "select": "fid",
    }
    config.stages = (config.stages[0], ConfigDict(stage))
    return config


def guided(config: ConfigDict, num_labels: int, num_updates: int) -> ConfigDict:
    """Teacher and rounds of `config`, with labels and the guided stage between them."""
    config.model.network.arguments.num_labels = num_labels
    config.evaluation.guidance = (0.0, 1.0, 2.0, 4.0)
    teacher, progressive = config.stages
    teacher.update(label_dropout=0.1, num_steps=(min(progressive["start_steps"], 1024), 4, 1))
    progressive.update(name="guided_progressive", teacher="guided")
    progressive["start_steps"] = teacher["num_steps"][0]
    stage = {
        "name": "guided",
        "method": "guided",
        "teacher": "teacher",
        "guidance": (0.0, 4.0),
        "num_steps": teacher["num_steps"][:1],
        "stratified": teacher.get("stratified", False),
        "loop": dict(teacher["loop"]) | {"num_updates": num_updates},
        "optimizer": dict(teacher["optimizer"]),
    }
    config.stages = (teacher, ConfigDict(stage), progressive)
    return config


def ctm_stages(config: ConfigDict, ctm: dict[str, Any], gan: dict[str, Any]) -> ConfigDict:
    """The teacher of `config`, and students that jump to any time, instead of its rounds.

    Args:
      ctm: settings of `methods.CtmStage`. gan: what differs in the stage "ctm_gan", which goes on
        from "ctm" with an adversary.
    """
    teacher = config.stages[0]
    ctm = CTM | ctm
    gan = ctm | {"name": "ctm_gan", "start": "ctm", "loss": "hinge", "r1": 0.0} | gan
    config.stages = (teacher, ConfigDict(ctm), ConfigDict(gan))
    return config


def laptop_ctm(config: ConfigDict) -> ConfigDict:
    """Students of the teacher of `laptop`, judged as those of `laptop_gan`.

    Few solver steps at once, since the teacher's evaluations take most of the time.
    """
    gan = laptop_gan(config).stages[1]
    loop = dict(gan["loop"])
    ctm = {
        "num_steps": (1, 2, 4),
        "layer": "conv_out/kernel",
        "levels": 18,
        "solver_steps": 3,
        "distance": "huber",
        "loop": loop | {"num_updates": 1000},
        "optimizer": {
            "learning_rate": 5e-4,
            "b2": 0.99,
            "anneal": "linear",
            "clip_norm": 1.0,
            "ema_decay": 0.99,
        },
    }
    judged = {name: gan[name] for name in ("judges", "discriminator_optimizer", "r1", "select")}
    judged |= {"loss": "non_saturating", "loop": loop | {"num_updates": 600}}
    return ctm_stages(config, ctm, judged)


def released_ctm(config: ConfigDict, ctm: dict[str, Any], gan: dict[str, Any]) -> ConfigDict:
    """`config` with the released settings of CTM (Kim et al. 2023) instead of its rounds.

    They compare by LPIPS, with VGG16, and their discriminators also look at DeiT features; there
    is no kept JAX library for either: here EfficientNet-Lite0 stands for both. Their RAdam is like
    Adam with 2,000 updates of warm-up, and their loss scaling is not needed. Dropout is left out.
    One update of "ctm_gan" is two of theirs, the generator's and the discriminator's.
    """
    ctm = {
        "num_steps": (1, 2, 4, 18),
        "distance": "efficientnet_lite0",
        "optimizer": {
            "learning_rate": 4e-4,
            "warmup": 2000,
            "clip_norm": 0.0,
            "ema_decay": 0.999,
        },
    } | ctm
    gan = {
        "judges": (
            {"features": "efficientnet_lite0", "halvings": (4, 3, 2, 1), "resolution": 224},
        ),
        "augmentations": ("color", "translation", "cutout"),
        "strength": 1.0,
        "r1_interval": 16,
        "discriminator_optimizer": {
            "learning_rate": 2e-3,
            "warmup": 2000,
            "b1": 0.5,
            "b2": 0.9,
            "clip_norm": 0.0,
        },
    } | gan
    return ctm_stages(config, ctm, gan)


def released_pagoda(
    config: ConfigDict,
    *,
    sizes: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    num_updates: int,
    grown: tuple[int, ...],
) -> ConfigDict:
    """`config` with the released settings of PaGoDA (Kim et al. 2024) instead of its rounds.

    As in `released_ctm`, EfficientNet-Lite0 stands for their feature networks too, in the distance
    and in the judges, and an update is two of theirs. Beyond 256 pixels theirs is updated for each
    loss in turn and has a second discriminator for reconstructions; that is left out. Generated
    and real images are augmented apart (theirs: alike), and not in the distance; the embedding
    scales and shifts in grown levels too (theirs: it is added); encoding takes the teacher's own
    grid of noise levels and clamps nothing.

    Args:
      batch_sizes: of each of `sizes`. num_updates: of each, which the release does not say.
    """
    labelled = bool(config.model.network.arguments.get("num_labels", 0))
    released = {
        "distance": "efficientnet_lite0",
        "augmentations": ("color", "translation", "cutout"),
        "optimizer": {"learning_rate": 8e-6, "clip_norm": 0.0, "ema_decay": 0.999},
        "discriminator_optimizer": {"learning_rate": 2e-3, "clip_norm": 0.0},
        "judges": (
            {
                "features": "efficientnet_lite0",
                "halvings": (4, 3, 2, 1),
                "conditional": labelled,
            },
        ),
    }
    config = pagoda_stages(config, sizes=sizes, grown=grown, pagoda=released)
    generators = (s for s in config.stages if s.method == "pagoda")
    for stage, size, batch_size in zip(generators, sizes, batch_sizes, strict=True):
        loop = {"num_updates": num_updates, "batch_size": batch_size, "substeps": 1}
        stage.loop = ConfigDict(LOOP | loop | {"save_every": 5000})
        stage.judges = tuple(
            judge | {"resolution": 224 if size < 256 else 0} for judge in stage.judges
        )
        if size <= 2 * sizes[0]:
            stage.layer = "up_0.block_3/conv2/kernel"
        if size > sizes[0] == 64:
            stage.frozen = "pagoda_64"
    return config


def pagoda_stages(
    config: ConfigDict,
    *,
    sizes: tuple[int, ...],
    pagoda: dict[str, Any],
    grown: tuple[int, ...] = (),
) -> ConfigDict:
    """The teacher of `config` at the first of `sizes`, and generators that grow from it to others.

    Args:
      pagoda: settings of `methods.PagodaStage`, of all sizes; its judges of pixels halve images to
        maps of 4 pixels a side.
      grown: channels of each further size; those of the network's first level by default.
    """
    teacher = config.stages[0] | {"resolution": sizes[0]}
    grown = grown or (config.model.network.arguments.channels,) * (len(sizes) - 1)
    stages = [teacher]
    for i, size in enumerate(sizes):
        halvings = (max(size.bit_length() - 3, 1),)
        judges = tuple({"halvings": halvings} | judge for judge in pagoda["judges"])
        stages.append(
            PAGODA
            | {
                "name": f"pagoda/{size}",
                "start": f"pagoda/{sizes[i - 1]}" if i else "",
                "resolution": size,
                "grown": grown[:i],
                "frozen": "pagoda" if i else "none",
                "adversarial": 1.0 if i else 0.2,
            }
            | pagoda
            | {"judges": judges}
        )
    stages.append(
        {
            "name": f"upsampled/{sizes[-1]}",
            "method": "upsampled",
            "teacher": "teacher",
            "resolution": sizes[-1],
            "num_steps": teacher["num_steps"][:1],
        }
    )
    config.stages = tuple(map(ConfigDict, stages))
    return config


def edm_sized(
    name: str,
    *,
    batch_size: int,
    learning_rate: float,
    multipliers: tuple[int, ...],
    dropout: float,
) -> ConfigDict:
    """Teacher and rounds with the sizes and the length of EDM's DDPM++ (Karras et al. 2022).

    200 million images, the average's half-life half a million; the network is ours, predicts v, and
    is trained without their augmentation. The teacher is measured with Heun's method.
    """
    loop = {"batch_size": batch_size, "save_every": 5000}
    config = salimans_ho(
        variant="",
        paper_head="v",
        data={"name": name, "flip": True},
        network={
            "name": "unet",
            "arguments": {
                "channels": 128,
                "embedding_channels": 512,
                "multipliers": multipliers,
                "blocks": 4,
                "attention_sizes": (16,),
                "dropout": dropout,
            },
        },
        teacher={
            "loop": loop | {"num_updates": 200_000_000 // batch_size // 10 * 10},
            "optimizer": {
                "learning_rate": learning_rate,
                "warmup": 10_000_000 // batch_size,
                "ema_decay": 0.5 ** (batch_size / 500_000),
            },
        },
        progressive={
            "start_steps": 16,
            "loop": loop,
            "optimizer": {"learning_rate": learning_rate / 4},
        },
        evaluation={
            "metrics": ("fid", "is"),
            "references": ("train",),
            "num_samples": 50_000,
            "batch_size": 1000,
            "solvers": ("heun",),
        },
    )
    config.stages[0]["num_steps"] = (40, 18, 8)
    return config


def lowdiff_stages(config: ConfigDict, lowdiff: dict[str, Any]) -> ConfigDict:
    """The teacher of `config`, a cascade trained like it, and rounds of fewer steps a level.

    Args:
      lowdiff: settings of `methods.LowDiffStage`; the teacher's loop but for the batch, which is
        the sum of `split`.
    """
    teacher, progressive = config.stages
    loop = dict(teacher["loop"]) | {"batch_size": sum(lowdiff["split"])}
    alike = {"loop": loop, "optimizer": dict(teacher["optimizer"])}
    alike |= {name: teacher[name] for name in ("stratified", "weighting") if name in teacher}
    rounds = dict(progressive["loop"]) | {"batch_size": loop["batch_size"]}
    few = dict(progressive) | {"name": "distilled", "teacher": "lowdiff", "loop": rounds}
    stages = (teacher, LOWDIFF | alike | lowdiff, few)
    config.stages = tuple(map(ConfigDict, stages))
    return config
