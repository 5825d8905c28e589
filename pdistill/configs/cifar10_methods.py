"""PD, GAN, DMD and CTM on CIFAR-10, at equal images seen and evaluations.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_methods.py --workdir=runs/cifar10_methods
    python -m benchmarks.across runs/cifar10_methods --out=runs/cifar10_methods

After the teacher of `cifar10_pd.py:gpu` each method has 1,200 updates of 256 images, all rounds of
progressive distillation together, and starts from the teacher, but for `gan_scratch`; its other
settings are those of `cifar10_gan.py:cpu`, `cifar10_dmd2.py:cpu` and `cifar10_ctm.py:cpu`.
`cifar10_dmd2.py:gpu` has its stages of that method, to run beside it.
Expected (seed 0): see `cifar10_pd.py:gpu`; what follows the rounds has not been run to its end.
`cifar10_methods.py:cpu` has the teacher of `cifar10_pd.py:cpu` and 800 updates of 16 images: an
hour on two cores of an x86 server.
"""

from ml_collections import ConfigDict

from pdistill.configs import cifar10_pd
from pdistill.configs.recipes import laptop_ctm, laptop_dmd, laptop_gan, side_by_side

UPDATES = {"gpu": 1200, "cpu": 800}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")
    scale = variant or "gpu"

    def base() -> ConfigDict:
        return cifar10_pd.get_config(scale)

    gan = laptop_gan(base())
    others = (
        (gan, ("gan", "gan_frozen", "gan_scratch")),
        (laptop_dmd(base()), ("dm", "dm_gan")),
        (laptop_ctm(base()), ("ctm", "ctm_gan")),
    )
    config = base()
    config.evaluation = gan.evaluation
    return side_by_side(config, others, UPDATES[scale])
