"""A transformer of latents of class-conditional ImageNet 256x256: SiT-XL/2, or LightningDiT-XL/1.

    python -m pdistill.convert --from=diffusers --source=sd-vae-ft-ema --out=models/codec
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet256 --resolution=256 \
        --codec=models/codec
    python -m pdistill.main --config=configs/imagenet256_latents.py --workdir=runs/imagenet256

For `:lightningdit` the codec is VA-VAE: `convert --from=ldm`, with its statistics. Published, at
guidance 0.5 and 5.7: FID 2.06 after 7M updates of 256 (SiT; a stochastic sampler), 1.35 after 800
epochs, 2.11 after 64, which are the 80k updates here (LightningDiT). Not run here.

Sources: train.py and the configs of willisma/SiT and hustvl/LightningDiT. Differences:

    number               theirs                       ours          why
    number format        TF32, bfloat16               float32       network.arguments.dtype
    first weights        Xavier's, 0.02               LeCun's       Flax's; zero where theirs are

DiT is only converted: the loss of the variance that it learns is not here.
"""

from ml_collections import ConfigDict

LIGHTNINGDIT = {"patch": 1, "rms_norm": True, "rope": True, "swiglu": True}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "lightningdit"):
        raise ValueError(f"variants: '' (SiT-XL/2) and 'lightningdit'; got {variant!r}")
    lightning = bool(variant)
    return ConfigDict(
        {
            "data": {"name": "imagenet256", "flip": True, "resident": False},
            "codec": "models/codec",
            "model": {
                "network": {
                    "name": "sit",  # XL
                    "arguments": {"remat": "products"} | (LIGHTNINGDIT if lightning else {}),
                },
                "head": "velocity",
                "schedule": {
                    "name": "rectified_flow",
                    "arguments": {"shift": 1 / 0.3 if lightning else 1.0},  # the sampler's
                },
            },
            "mesh": {"data": -1, "fsdp": 8},  # ours
            "evaluation": {  # ours
                "metrics": ("fid", "is"),
                "references": ("train",),
                "num_samples": 50_000,
                "batch_size": 256,
                "guidance": (0.0, 0.5),
                "solvers": ("ddim" if lightning else "euler_maruyama",),  # theirs
            },
            "stages": (
                {
                    "name": "teacher",
                    "method": "teacher",
                    "measured_at": (249 if lightning else 250,),  # theirs
                    "weighting": "velocity_mse",
                    "label_dropout": 0.1,
                    "direction": lightning,
                    # Logit-normal times; the schedule's are uniform ones for SiT.
                    "level": (0.0, 1.0) if lightning else (),
                    "loop": {
                        "num_updates": 80_000 if lightning else 7_000_000,
                        "batch_size": 1024 if lightning else 256,
                        "substeps": 1,
                        "save_every": 5000,
                    },
                    "optimizer": {
                        "learning_rate": 2e-4 if lightning else 1e-4,
                        "b2": 0.95 if lightning else 0.999,
                        "clip_norm": 0.0,
                        "ema_decay": 0.9999,
                    },
                },
            ),
        }
    )
