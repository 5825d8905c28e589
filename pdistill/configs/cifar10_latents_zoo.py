"""The zoo's CIFAR-10: a codec, a teacher of labels, and students of 4 and 1 evaluations.

    pip install -e '.[features]'
    python -m pdistill.data.prepare cifar10
    python -m pdistill.main --config=configs/cifar10_latents_zoo.py --workdir=runs/cifar10
    python -m benchmarks.zoo --model=runs/cifar10/teacher --out=zoo/cifar10_latents/teacher

From the repository's root `:more` goes on from the zoo's teacher at a lower rate, in the latents of
its codec; `benchmarks.zoo` puts what is a tenth nearer to the data in its place, where the next run
goes on.

`cifar10_latents` with latents of 8 x 8 x 6, a codec of three times its channels, a transformer of
2.9 million parameters, and a teacher that sees 896,000 images instead of 40,000, on two cores. Its
students are of the teacher guided by w = 1. All numbers are ours.
"""

from pathlib import Path

from ml_collections import ConfigDict

from pdistill.configs import scale

GUIDANCE = 1.0  # of the teacher, by which it is measured and distilled
ZOO = "zoo/cifar10_latents"


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "more"):
        raise ValueError(f"cifar10_latents_zoo has the variant 'more'; got {variant!r}")
    if variant and not Path(ZOO).is_dir():
        raise ValueError(f"there is no {ZOO} here; go to the repository's root")
    config = scale.zoo("cifar10", flip=True)
    config.model.network.arguments.update(features=160, depth=6)
    config.evaluation.guidance = (GUIDANCE,)
    codec, teacher, progressive, dmd = config.stages
    codec["network"].update(channels=(48, 96), latent_channels=6)
    codec["loop"].update(num_updates=8000, save_every=500)
    teacher["measured_at"] = (16, 4)
    teacher["loop"].update(batch_size=64, num_updates=14_000, save_every=500)
    progressive.update(start_steps=16, guidance=GUIDANCE)
    progressive["loop"].update(batch_size=32, num_updates=600, save_every=500)
    dmd["guidance"] = GUIDANCE
    dmd["loop"].update(batch_size=32, num_updates=2000, save_every=500)
    if variant:
        config.codec = f"{ZOO}/codec"
        zoo = {"name": "zoo", "method": "imported", "path": f"{ZOO}/teacher", "measured_at": (16,)}
        teacher["start"] = "zoo"
        teacher["optimizer"].update(learning_rate=1e-3, warmup=500)
        config.stages = (ConfigDict(zoo), teacher, progressive, dmd)
    return config
