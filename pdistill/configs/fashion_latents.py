"""A codec of Fashion-MNIST, and a teacher and few-step students on its latents, on a laptop.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_latents.py:cpu --workdir=runs/fashion_latents

The codec makes 7 x 7 x 4 numbers of an image of 28 x 28. All networks after it are told the labels
and work on its latents; samples are decoded before they are measured. The first rows, of no
evaluations, are those of images that the codec has encoded and decoded. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"fashion_latents has the variant 'cpu'; got {variant!r}")
    return scale.latents("fashion_mnist", flip=False)
