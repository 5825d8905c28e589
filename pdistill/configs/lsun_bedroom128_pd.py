"""Progressive distillation on LSUN bedrooms 128x128 (Salimans & Ho 2022).

    python -m pdistill.data.prepare --images=/data/bedroom --name=lsun_bedroom128 --resolution=128 --resize=bilinear
    python -m pdistill.main --config=configs/lsun_bedroom128_pd.py --workdir=runs/bedroom

139,578,502 parameters with the paper's `both` head (`lsun_bedroom128_pd.py:both`); the default
predicts v. 400k teacher updates and 600k of distillation, 1024 -> 1 steps, batch 2048. The paper
plots FID without printing it.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs.recipes import salimans_ho


def get_config(variant: str = "", name: str = "lsun_bedroom128") -> ConfigDict:
    loop = {"batch_size": 2048, "substeps": 1, "save_every": 5000}
    return salimans_ho(
        variant=variant,
        paper_head="both",
        data={"name": name, "flip": True, "resident": False},
        network={
            "name": "unet",
            "arguments": {
                "channels": 64,
                "embedding_channels": 768,
                "multipliers": (1, 2, 4, 6, 8),
                "attention_sizes": (8, 16, 32),
                "head_channels": 64,
                "dropout": 0.1,
            },
        },
        teacher={
            "loop": loop | {"num_updates": 400_000},
            "optimizer": {"learning_rate": 3e-4},
        },
        progressive={
            "start_steps": 1024,
            "loop": loop,
            "optimizer": {"learning_rate": 1e-4},
        },
        evaluation={
            "metrics": ("fid",),
            "references": ("train",),
            "num_samples": 50_000,
            "batch_size": 512,
        },
        mesh={"data": -1, "fsdp": 2},
    )
