"""PaGoDA (Kim et al. 2024) on class-conditional ImageNet: 64x64 -> 128x128 -> 256x256 -> 512x512.

    pip install '.[features]'
    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet512 --resolution=512 --resize=area
    python -m pdistill.main --config=configs/imagenet64_to_512_pagoda.py --workdir=runs/imagenet512

The teacher is that of `imagenet64_pd`, on the images averaged to 64x64 (theirs is EDM's, of images
made small from the originals); batches, weights and rates are the released ones, with 90k updates
of each size, which the release does not say. `recipes.released_pagoda` says what differs. Published,
one evaluation without guidance: FID 1.21 at 64x64, 1.48 at 128, 1.56 at 256, 1.80 at 512.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_pd
from pdistill.configs.recipes import released_pagoda


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_to_512_pagoda has no variants; got {variant!r}")
    config = imagenet64_pd.get_config()
    config.data.name = "imagenet512"
    return released_pagoda(
        config,
        sizes=(64, 128, 256, 512),
        batch_sizes=(96, 256, 360, 512),
        num_updates=90_000,
        grown=(192, 192, 96),
    )
