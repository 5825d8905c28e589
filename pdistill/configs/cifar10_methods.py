"""PD, GAN, DMD and CTM on CIFAR-10, at equal images seen and evaluations.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_methods.py --workdir=runs/cifar10_methods
    python -m benchmarks.across runs/cifar10_methods --out=runs/cifar10_methods

After the teacher of `cifar10_pd.py:gpu` each method has 1,200 updates of 256 images, all rounds of
progressive distillation together, and starts from the teacher, but for `gan_scratch`; its other
settings are those of `cifar10_gan.py:cpu`, `cifar10_dmd2.py:cpu` and `cifar10_ctm.py:cpu`.
`cifar10_dmd2.py:gpu` has its stages of that method, to run beside it. All numbers are ours.
Expected (seed 0): see `cifar10_pd.py:gpu`; what follows the rounds has not been run to its end.
`cifar10_methods.py:cpu` has the teacher of `cifar10_pd.py:cpu` and 800 updates of 16 images: an
hour on two cores of an x86 server.
"""

from ml_collections import ConfigDict

from pdistill.configs import scale


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "cpu"):
        raise ValueError(f"variants: '' and 'cpu'; got {variant!r}")
    num_updates, save_every = (800, 200) if variant else (1200, 300)
    lengths = (1, 1, 2) if variant else (1, 1, 1)  # of the rounds, in units of the first
    config = start(variant)
    teacher, progressive = config.stages
    loop = progressive["loop"]
    first = num_updates // sum(lengths)
    loop.update(log_every=50, num_updates=first, save_every=first)
    students = {
        stage["name"]: stage
        for after in (scale.gan, scale.dmd, scale.ctm)
        for stage in after(start(variant)).stages[1:]  # the first is the teacher
    }
    for stage in students.values():
        stage["loop"].update(loop, num_updates=num_updates, save_every=save_every)
    del students["ctm_gan"]["start"]  # the teacher's network, as that of all others
    config.evaluation = {
        "metrics": ("fd_pixels", "fd_efficientnet_lite0", "precision_recall"),
        "references": ("train[:5000]",),
        "num_samples": 1000 if variant else 5000,
        "batch_size": 500 if variant else 1000,
        "features": "pixels",  # the space that no judge uses
    }
    config.stages = (teacher, progressive, *students.values())
    return config


def start(variant: str) -> ConfigDict:
    """The teacher and the rounds to go on from."""
    config = scale.laptop("cifar10", flip=True)
    return config if variant else scale.accelerator(config)
