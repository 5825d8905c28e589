"""CIFAR-10 that grows: a small teacher that goes on from the zoo's, and its students.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_zoo.py --workdir=runs/cifar10_zoo
    python -m benchmarks.zoo --model=runs/cifar10_zoo/teacher --out=zoo/cifar10/teacher

From the repository's root the teacher goes on from zoo/cifar10/teacher, with a fresh optimizer
whose rate begins low, or from scratch where there is none; `benchmarks.zoo` puts what is a tenth
better in its place, where the next run goes on. `:teacher` trains it alone, and `:students` takes
the zoo's as it is. `:cpu` is all of it in small, from scratch, to try the way.

The network has the shape of EDM's for CIFAR-10 with a quarter of its channels: 3.9 million
parameters, blocks in bfloat16. EDM's noise levels and batch; mirrored images for its augmentation,
whose labels are no input here. Students by what came closest to the data at equal images: a mean
flow for four evaluations, and for one a GAN, whose EfficientNet-Lite0 sees 224 pixels, as D2O's
does. All numbers are ours; it has not been run at this size.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pdistill.configs.scale import ADVERSARIAL

ZOO = "zoo/cifar10/teacher"
VARIANTS = ("", "teacher", "students", "cpu")
WIDTHS = (0.05, 0.1)  # of averages; `pdistill average` makes others after training
HEADS = {"width": 128, "mixing": 32}  # of judges


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"cifar10_zoo has the variants {str(VARIANTS[1:])[1:-1]}; got {variant!r}")
    found = variant != "cpu" and Path(ZOO).is_dir()
    if variant == "students" and not found:
        raise ValueError(
            f"there is no {ZOO} here; go to the repository's root, or train it by the variant "
            "'teacher' and put it there by python -m benchmarks.zoo"
        )
    from_zoo = {"method": "imported", "path": ZOO, "measured_at": (18,)}
    teachers = ({"name": "zoo", **from_zoo}, teacher(start="zoo")) if found else (teacher(),)
    if variant == "students":
        teachers = ({"name": "teacher", **from_zoo},)
    config = ConfigDict(
        {
            "data": {"name": "cifar10", "flip": True},
            "model": {
                "network": {
                    "name": "unet",
                    "arguments": {
                        "channels": 32,
                        "embedding_channels": 128,
                        "multipliers": (2, 2, 2),
                        "blocks": 4,
                        "attention_sizes": (16,),
                        "time_scale": 16.0,
                        "dtype": "bfloat16",
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
                "references": ("train[:10000]",),
                "features": "pixels",  # which no judge sees
                "num_samples": 10_000,
                "batch_size": 1000,
            },
            "stages": teachers if variant == "teacher" else (*teachers, mean_flow(), gan()),
        }
    )
    return cpu(config) if variant == "cpu" else config


def loop(num_updates: int, **changes: int) -> dict[str, int]:
    common = {"batch_size": 512, "substeps": 10, "log_every": 100, "save_every": 2000}
    return {"num_updates": num_updates, **common, **changes}


def teacher(start: str = "") -> dict[str, Any]:
    """A diffusion model at EDM's noise levels, at a lower rate if it goes on."""
    return {
        "name": "teacher",
        "method": "teacher",
        "start": start,
        "measured_at": (18, 4, 1),
        "level": (-1.2, 1.2),
        "stratified": True,
        "loop": loop(12_000, snapshot_every=2000),
        "optimizer": {
            "learning_rate": 5e-4 if start else 2e-3,
            "warmup": 500,
            "anneal": "cosine",
            "b2": 0.99,
            "ema_widths": WIDTHS,
        },
    }


def mean_flow() -> dict[str, Any]:
    """One network for one to four jumps, on from the teacher's parameters."""
    return {
        "name": "mean_flow",
        "method": "flow_map",
        "start": "teacher",
        "measured_at": (4, 2, 1),
        "jumps": {"to": "below", "instantaneous": 0.5, "stratified": True},
        "power": 0.75,
        "floor": 1e-2,
        "loop": loop(6000, snapshot_every=2000),
        "optimizer": {
            "learning_rate": 1e-3,
            "warmup": 500,
            "anneal": "cosine",
            "b2": 0.99,
            "ema_widths": WIDTHS,
        },
    }


def gan() -> dict[str, Any]:
    """A generator of one evaluation; the best by pixels is kept."""
    adam = ADVERSARIAL | {"learning_rate": 3e-4, "anneal": "linear"}
    judges = (
        {"features": "efficientnet_lite0", "halvings": (4, 3, 2, 1), "resolution": 224},
        {"features": "teacher", "halvings": (3, 2, 1)},  # for brightness and colour
    )
    return {
        "name": "gan",
        "method": "gan",
        "teacher": "teacher",
        "adversary": {
            "judges": tuple(judge | HEADS for judge in judges),
            "r1": 1e-3,
            "optimizer": adam,
        },
        "loop": loop(4000, batch_size=256, save_every=1000),
        "optimizer": adam | {"ema_decay": 0.998, "ema_ramp": 0.1},
        "select": "fd_pixels",
    }


def cpu(config: ConfigDict) -> ConfigDict:
    """The same stages in some minutes of two cores: a very small network, and few of everything."""
    config.model.network.arguments.update(
        patch=2, channels=16, embedding_channels=32, multipliers=(1, 2), blocks=1,
        attention_sizes=(8,),
    )  # fmt: skip
    config.evaluation.update(references=("train[:500]",), num_samples=500, batch_size=250)
    few = {"batch_size": 16, "substeps": 1, "log_every": 20, "save_every": 40}
    for stage, num_updates in zip(config.stages, (400, 200, 80), strict=True):
        stage["loop"].update(few, num_updates=num_updates)
        if "warmup" in stage["optimizer"]:
            stage["loop"]["snapshot_every"] = num_updates
            stage["optimizer"]["warmup"] = 20
    efficientnet, encoder = config.stages[-1]["adversary"]["judges"]
    efficientnet.update(halvings=(3, 2, 1, 1), resolution=64)
    encoder["halvings"] = (2, 1)
    return config
