"""LowDiff (Xu et al. 2025) on Fashion-MNIST, on a laptop: 8x8 -> 16x16 -> 32x32 in one network.

    python -m pdistill.data.prepare fashion_mnist
    python -m pdistill.main --config=configs/fashion_lowdiff.py --workdir=runs/fashion_lowdiff

The images of 28x28 pixels are padded to 32x32. A teacher of 32x32 pixels alone; the cascade, whose
network has the same layers but for a first and a last one of each size, trained with the same
FLOPs; and the cascade distilled to 8, 4, 2 and one step at each level.

Expected (seed 0, Frechet distance of 1,000 samples' pixels to 10,000 training images): the teacher
30.4 in 16 steps, 38.9 in 8, 69.8 in 4; the cascade 34.6 in 16+4+2, for which it takes 5.6
evaluations' operations; distilled 31.6, 32.9, 35.2 and 35.3 in 8, 4, 2 and one at each level. 20
minutes on two cores of an x86 server.
"""

from ml_collections import ConfigDict

from pdistill.configs import fashion_pd
from pdistill.configs.recipes import lowdiff_stages


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"fashion_lowdiff has no variants; got {variant!r}")
    config = fashion_pd.get_config()
    config.data.name = "fashion_mnist@32"
    config.model.network.arguments.update(multipliers=(1, 2, 2), attention_sizes=(4, 8))
    config.evaluation.update(references=("train[:10000]",), batch_size=250)
    teacher, progressive = config.stages
    teacher["num_steps"] = (16, 8, 4)
    teacher["loop"]["num_updates"] = 1600
    progressive["start_steps"] = 16
    progressive["loop"]["num_updates"] = 150
    lowdiff = {
        "resolutions": (8, 16, 32),
        # An image of 8 or 16 pixels costs 0.11 or 0.46 of one of 32: together 16 of those.
        "split": (20, 8, 10),
        "num_steps": ((16, 4, 2), (16, 4, 1), (1, 1, 1)),
    }
    return lowdiff_stages(config, lowdiff)
