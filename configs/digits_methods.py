"""PD, GAN, DMD and CTM on handwritten digits, at equal images seen and evaluations, on a laptop.

    python -m pdistill.main --config=configs/digits_methods.py --workdir=runs/digits_methods

After the teacher of `digits_pd` each method has 128,000 images (2,000 updates of 64), all rounds of
progressive distillation together, and starts from the teacher; its other settings are those of its
own config, which takes as long as the method needs. The report has the table and the figures. It
has not been run.
"""

from ml_collections import ConfigDict

from configs import digits_ctm, digits_dmd, digits_gan, digits_pd

UPDATES = 2000
METHODS = {
    digits_gan: ("gan", "gan_frozen"),
    digits_dmd: ("dm", "dm_gan"),
    digits_ctm: ("ctm", "ctm_gan"),
}


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"digits_methods has no variants; got {variant!r}")
    config = digits_pd.get_config()
    config.evaluation = digits_dmd.get_config().evaluation
    teacher, progressive = config.stages
    teacher["num_steps"] = (64, 8, 4, 2, 1)
    of_round = UPDATES // 8  # there are four, and two of twice the length
    progressive["loop"].update(num_updates=of_round, log_every=50, save_every=of_round)
    stages = [teacher, progressive]
    for source, names in METHODS.items():
        for stage in source.get_config().stages:
            if stage["name"] in names:
                stage.update(start="", select="")
                stage["loop"].update(num_updates=UPDATES, batch_size=64, save_every=500)
                stages.append(stage)
    config.stages = tuple(stages)
    return config
