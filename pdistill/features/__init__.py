"""Frozen feature extractors, from uint8 images [N, H, W, C] to features [N, D].

A new extractor is a small file and a line in EXTRACTORS.
"""

import functools
from collections.abc import Callable
from typing import Any

from pdistill.features import digits_classifier, efficientnet_lite0, inception, vision
from pdistill.features.base import Extractor, NetworkExtractor, fingerprint
from pdistill.features.pixels import Pixels, sixteen

EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "pixels": Pixels,
    "pixels_16": sixteen,
    "classifier": digits_classifier.load,
    "efficientnet_lite0": efficientnet_lite0.load,
    "inception": inception.load,
    **{name: functools.partial(vision.load, name) for name in vision.TOWERS},
}


def load_extractor(name: str, **options: Any) -> Extractor:
    """Loads the extractor `name`, a key of EXTRACTORS.

    Args:
      options: keyword arguments for its loader, such as `weights=PATH`.

    Raises:
      ValueError: the name is unknown. WeightsError: its weights cannot be had.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"features must be one of {', '.join(EXTRACTORS)}; got {name!r}")
    return EXTRACTORS[name](**options)


__all__ = ["EXTRACTORS", "Extractor", "NetworkExtractor", "fingerprint", "load_extractor"]
