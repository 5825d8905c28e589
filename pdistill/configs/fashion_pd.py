"""Progressive distillation on Fashion-MNIST, on a laptop.

python -m pdistill.data.prepare fashion_mnist
python -m pdistill.main --config=configs/fashion_pd.py:cpu --workdir=runs/fashion
"""

from ml_collections import ConfigDict

from pdistill.configs.recipes import laptop


def get_config(variant: str = "cpu") -> ConfigDict:
    if variant != "cpu":
        raise ValueError(f"fashion_pd has the variant 'cpu'; got {variant!r}")
    return laptop({"name": "fashion_mnist", "flip": False})
