"""PD, GAN, DMD and CTM on handwritten digits, at equal images seen and evaluations, on a laptop.

    python -m pdistill.main --config=configs/digits_methods.py --workdir=runs/digits_methods
    python -m benchmarks.across runs/digits_methods --out=runs/digits_methods

After the teacher of `digits_pd` each method has 128,000 images (2,000 updates of 64), all rounds of
progressive distillation together, and starts from the teacher; its other settings are those of its
own config, which takes as long as the method needs. The second command makes one table and one
figure of it, as the report does for each metric. Expected: see README.md; 18 minutes on two cores
of an x86 server.
"""

from ml_collections import ConfigDict

from pdistill.configs import digits_ctm, digits_dmd, digits_gan, digits_pd
from pdistill.configs.recipes import side_by_side


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_methods has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation = digits_dmd.get_config().evaluation
    config.stages[0]["num_steps"] = (64, 8, 4, 2, 1)
    others = (
        (digits_gan.get_config(), ("gan", "gan_frozen")),
        (digits_dmd.get_config(), ("dm", "dm_gan")),
        (digits_ctm.get_config(), ("ctm", "ctm_gan")),
    )
    return side_by_side(config, others, updates=2000)
