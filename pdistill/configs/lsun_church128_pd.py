"""Progressive distillation on LSUN churches 128x128 (Salimans & Ho 2022).

    python -m pdistill.data.prepare --images=/data/church --name=lsun_church128 --resolution=128 --resize=bilinear
    python -m pdistill.main --config=configs/lsun_church128_pd.py --workdir=runs/church

Everything but the data as for bedrooms.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import lsun_bedroom128_pd


def get_config(variant: str = "") -> ConfigDict:
    return lsun_bedroom128_pd.get_config(variant, name="lsun_church128")
