"""Progressive distillation on class-conditional ImageNet 64x64 (Salimans & Ho 2022).

    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_pd.py --workdir=runs/imagenet64

295,905,222 parameters with the paper's `both` head (`imagenet64_pd.py:both`); the default predicts
v. 550k teacher updates and 600k of distillation, 1024 -> 1 steps, batch 2048. The paper plots FID
without printing it: near the teacher's down to 4 or 8 steps, faster loss at 2 and 1. The gap
between teacher and student in the first rounds (1e-4) is below bfloat16's: on TPU and GPU set
JAX_DEFAULT_MATMUL_PRECISION=float32.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs.recipes import salimans_ho


def get_config(variant: str = "") -> ConfigDict:
    loop = {"batch_size": 2048, "substeps": 1, "save_every": 5000}
    return salimans_ho(
        variant=variant,
        paper_head="both",
        data={"name": "imagenet64", "flip": True, "resident": False},
        network={
            "name": "unet",
            "arguments": {
                "channels": 192,
                "embedding_channels": 768,
                "multipliers": (1, 2, 3, 4),
                "attention_sizes": (8, 16, 32),
                "head_channels": 64,
                "num_labels": 1000,
                "dropout": 0.1,
            },
        },
        teacher={
            "loop": loop | {"num_updates": 550_000},
            "optimizer": {"learning_rate": 3e-4},
        },
        progressive={
            "start_steps": 1024,
            "loop": loop,
            "optimizer": {"learning_rate": 1e-4},
        },
        evaluation={
            "metrics": ("fid", "is"),
            "references": ("train",),
            "num_samples": 50_000,
            "batch_size": 1024,
        },
        mesh={"data": -1, "fsdp": 4},
    )
