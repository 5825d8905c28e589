"""The zoo's Fashion-MNIST: a codec, a teacher of labels, and students of 4 and 1 evaluations.

    pip install -e '.[features]'
    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_zoo.py --workdir=runs/fashion_zoo
    python -m benchmarks.zoo --model=runs/fashion_zoo/teacher --out=zoo/fashion/teacher

`fashion_latents` with a codec of twice its channels, a transformer of 1.9 million parameters, and a
teacher that sees 512,000 images instead of 40,000, on two cores. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_zoo has no variants; got {variant!r}")
    config = scale.zoo("fashion_mnist", flip=False)
    config.model.network.arguments.update(features=128, depth=6)
    codec, teacher, progressive, dmd = config.stages
    codec["network"].update(channels=(32, 64))
    codec["loop"].update(num_updates=4000)
    teacher["loop"].update(batch_size=64, num_updates=8000, save_every=1000)
    progressive["loop"].update(batch_size=64, num_updates=600, save_every=1000)
    dmd["loop"].update(batch_size=32, num_updates=1000, save_every=1000)
    return config
