"""Progressive distillation on Fashion-MNIST, on a laptop.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_pd.py:cpu --workdir=runs/fashion

All numbers are ours.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"fashion_pd has the variant 'cpu'; got {variant!r}")
    return scale.laptop("fashion_mnist", flip=False)
