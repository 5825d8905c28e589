"""The zoo's Fashion-MNIST: a codec, a teacher told labels, and students of one to four evaluations.

    pip install '.[features]'
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_zoo.py --workdir=runs/fashion_zoo

`fashion_latents` with a wider codec, a transformer of 1.9 million parameters and twenty times as
many images, for an hour of two cores. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_zoo has no variants; got {variant!r}")
    config = scale.latents("fashion_mnist", flip=False)
    config.model.network.arguments.update(features=128, depth=6)
    config.evaluation.update(
        metrics=("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
        references=("train[:10000]",),
        features="pixels",
        num_samples=2000,
    )
    codec, teacher, _, progressive, _, dmd = config.stages
    codec["network"].update(channels=(32, 64))
    codec["loop"].update(batch_size=32, num_updates=4000)
    codec["optimizer"].update(learning_rate=2e-3)
    loop = {"batch_size": 64, "substeps": 10, "save_every": 1000}
    teacher["loop"].update(loop, num_updates=8000)
    teacher["optimizer"].update(learning_rate=2e-3, ema_decay=0.999)
    progressive["loop"].update(loop, num_updates=800)
    dmd["loop"].update(loop, batch_size=32, num_updates=1500)
    config.stages = (codec, teacher, progressive, dmd)
    return config
