"""The papers' choices of a flow map, as values of a stage.

Levels are those of log(sigma / alpha). A paper's schedule and network are not in them.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "mean_flow": {  # Geng et al. 2025; code of ImageNet 256
        "jumps": {"level": (-0.4, 1.0), "instantaneous": 0.75},
        "power": 1.0,
        "floor": 1e-2,
    },
    "improved_mean_flow": {  # Geng et al. 2025b
        "own_velocity": True,
        "jumps": {"level": (-0.4, 1.0), "instantaneous": 0.5},
        "power": 1.0,
        "floor": 1e-2,
    },
    "alpha_flow": {  # Zhang et al. 2025; theirs ends in MeanFlow's identity where ours stays a step
        "identity": "semigroup",
        "jumps": {"level": (-0.4, 1.0), "instantaneous": 0.25},
        "between": {"at": "sigmoid", "least": 5e-3},
        "power": 1.0,
        "floor": 1e-3,
    },
    "dmf": {  # Lee et al. 2025, without its Cauchy loss; theirs tells the last 8 blocks of 28
        "jumps": {
            "level": (0.4, 1.0),
            "to": "sorted",
            "end": (-1.2, 1.0),
            "instantaneous": 0.5,  # both losses have a half, each on a batch of its own
            "still": (0.0, 1.0),
        },
        "learnt_weight": True,
        "network": {"target_blocks": 8},
    },
    "sct": {  # Lu & Song 2024; the same with a teacher is sCD
        "jumps": {"level": (-1.0, 1.4), "to": "data"},
        "learnt_weight": True,
        "normalised": 0.1,
        "warmup": 10_000,
    },
    "ict": {  # Song & Dhariwal 2023, on CIFAR-10: floor is 0.00054^2 times 3072 values
        "identity": "semigroup",
        "jumps": {"level": (-1.1, 2.0), "to": "data"},
        "between": {"at": "ict", "stages": 8},
        "power": 0.5,
        "floor": 9e-4,
    },
    "ect": {  # Geng et al. 2024
        "identity": "semigroup",
        "jumps": {"level": (-1.1, 2.0), "to": "data"},
        "between": {"at": "ect", "q": 2.0, "stages": 8},
        "power": 0.5,
        "floor": 1e-8,
    },
    "tcm": {  # Lee et al. 2024, its second stage; "below" is ect's model, the law of levels ours
        "identity": "semigroup",
        # a quarter at the border, whose own mean counts 0.1: 0.1 / 0.25 to 1 / 0.75
        "jumps": {"level": (0.9, 1.4), "least": (0.0,), "to": "data", "border": 0.3},
        "between": {"at": "ect", "q": 2.0, "stages": 1, "first": 9},  # their ratio_limit, 0.999
        "power": 0.5,
        "floor": 1e-8,
    },
    "shortcut": {  # Frans et al. 2024
        "identity": "semigroup",
        "jumps": {"to": "dyadic", "most": 64, "instantaneous": 0.75},
        "target_decay": 0.999,  # for long runs: each doubling hears of the one before so late
    },
    "soflow": {  # Luo et al. 2025, on CIFAR-10: floor is 0.001 times 3072 values
        "identity": "semigroup",
        "jumps": {"level": (-0.9, 1.6), "end": (-4.0, 1.6)},
        "between": {"at": "shrinking", "least": 3.125e-4},
        "power": 0.75,
        "floor": 3.072,
    },
    "tvm": {  # Zhou et al. 2025; with a teacher, leave own_velocity and target_decay out
        "identity": "lagrangian",
        "own_velocity": True,
        "target_decay": 0.99,
        "jumps": {
            "level": (-0.4, 1.0),
            "to": "gap",
            "end": (-0.8, 1.0),
            "instantaneous": 0.5,
            "still": (-0.4, 1.0),
        },
    },
    "ayf": {  # Sabour et al. 2025, from a teacher; law of jumps and end of warm-up are ours
        "jumps": {"to": "below"},
        "normalised": 0.1,
        "warmup": 10_000,
    },
}
PRESETS["scd"] = PRESETS["sct"]
