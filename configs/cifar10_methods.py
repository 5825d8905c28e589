"""PD, GAN, DMD and CTM on CIFAR-10, at equal images seen and evaluations.

    pip install '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_methods.py --workdir=runs/cifar10_methods
    python -m benchmarks.across runs/cifar10_methods --out=runs/cifar10_methods

In minutes on one GPU; `cifar10_methods.py:cpu` is the same on a laptop's scale. After the teacher
of `cifar10_pd.py:gpu` each method has 102,400 images (800 updates of 128; on a laptop of 16), all
rounds of progressive distillation together, and starts from the teacher; its other
settings are those of `cifar10_gan.py:cpu`, `cifar10_dmd2.py:cpu` and `cifar10_ctm.py:cpu`.
"""

from ml_collections import ConfigDict

from configs import cifar10_pd
from configs.recipes import laptop_ctm, laptop_dmd, laptop_gan, side_by_side

UPDATES = 800


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")

    def base() -> ConfigDict:
        return cifar10_pd.get_config(variant or "gpu")

    gan = laptop_gan(base())
    others = (
        (gan, ("gan", "gan_frozen", "gan_scratch")),
        (laptop_dmd(base()), ("dm", "dm_gan")),
        (laptop_ctm(base()), ("ctm", "ctm_gan")),
    )
    config = base()
    judged = {name: gan.evaluation[name] for name in ("metrics", "features", "references")}
    config.evaluation.update(judged)
    return side_by_side(config, others, UPDATES)
