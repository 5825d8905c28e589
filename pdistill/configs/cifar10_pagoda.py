"""PaGoDA (Kim et al. 2024) on CIFAR-10: 16x16 -> 32x32.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_pagoda.py --workdir=runs/cifar10_pagoda

The paper has no CIFAR-10: the network of `cifar10_pd` on images averaged to 16x16, and generators
with the settings that were released for ImageNet, 50k updates of each size.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import released_pagoda


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"cifar10_pagoda has no variants; got {variant!r}")
    config = cifar10_pd.get_config()
    config.evaluation.metrics = ("fd_pixels", "precision_recall")
    config.evaluation.features = "pixels"
    return released_pagoda(
        config, sizes=(16, 32), batch_sizes=(128, 256), num_updates=50_000, grown=(256,)
    )
