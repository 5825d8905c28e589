"""Progressive distillation on LSUN churches 128x128 (Salimans & Ho 2022).

    python -m pdistill.data.prepare --images=/data/church --name=lsun_church128 --resolution=128 --resize=bilinear --held_out=0
    python -m pdistill.main --config=configs/lsun_church128_pd.py --workdir=runs/church

139,578,502 parameters with the paper's `both` head (`lsun_church128_pd.py:both`); the default
predicts v. 400k teacher updates and 600k of distillation, 1024 -> 1 steps, batch 2048. The paper
plots FID without printing it.

All numbers, and their differences from the released ones (church128_base.py and
church128_distill.py of google-research/diffusion_distillation), are those of `lsun_bedroom128_pd`.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import lsun_bedroom128_pd


def get_config(variant: str = "") -> ConfigDict:
    config = lsun_bedroom128_pd.get_config(variant)
    config.data.name = "lsun_church128"
    return config
