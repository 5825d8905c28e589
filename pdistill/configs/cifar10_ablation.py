"""What a network predicts, and how its loss is weighted: Table 1 of Salimans & Ho 2022, CIFAR-10.

    python -m pdistill.main --config=configs/cifar10_ablation.py --workdir=runs/cifar10_ablation

One undistilled teacher for each head and weight, as in cifar10_pd.py, sampled with 1024 ancestral
and DDIM steps. The paper's FID with DDIM (and with its tuned stochastic sampler):

    head   SNR          truncated SNR   SNR + 1
    both   2.78 (2.54)  2.76 (2.47)     2.87 (2.52)
    x      2.75 (2.65)  2.51 (2.53)     2.65 (2.56)
    eps    2.91 (2.59)  diverges        3.27 (2.56)
    v      3.05 (2.65)  2.75 (2.45)     2.87 (2.49)
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import head_ablation


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_ablation has no variants; got {variant!r}")
    config = head_ablation(cifar10_pd.get_config(), num_steps=1024)
    config.evaluation.update(metrics=("fid", "is"), solvers=("ddim", "ancestral:medium:0.5"))
    return config
