"""Multi-student distillation (Song et al. 2024) on class-conditional ImageNet 64x64.

    python -m pdistill.data.prepare --images=/data/imagenet --name=imagenet64 --resolution=64 --resize=area
    python -m pdistill.main --config=configs/imagenet64_msd.py --workdir=runs/imagenet64_msd

Four students of the teacher's size, for 250 consecutive classes each. The paper names the partition
and the batch of a student; the rest is `imagenet64_dmd2`'s, with the classifier from the beginning
(theirs comes in after matching alone). Published: FID 1.20; with matching alone 2.37.
"""  # noqa: E501

from ml_collections import ConfigDict

from pdistill.configs import imagenet64_dmd2


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"imagenet64_msd has no variants; got {variant!r}")
    config = imagenet64_dmd2.get_config()
    teacher, student = config.stages
    student["loop"]["batch_size"] = 128
    student["select"] = ""
    stage = {"name": "msd", "method": "multi_student", "parts": 4, "student": student}
    config.stages = (teacher, ConfigDict(stage))
    return config
