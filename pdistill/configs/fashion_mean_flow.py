"""MeanFlow on Fashion-MNIST from scratch, on a laptop.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_mean_flow.py:cpu --workdir=runs/fashion_flow

The network of `fashion_pd.py:cpu` with an embedding of time that can be differentiated, and 64,000
images, where its teacher and students see 59,200 together. All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"fashion_mean_flow has the variant 'cpu'; got {variant!r}")
    return scale.mean_flow(scale.laptop("fashion_mnist", flip=False))
