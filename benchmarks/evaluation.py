"""Speed of measuring samples, in images a second in each feature space, and of the distances.

    python -m benchmarks.evaluation

Random 32x32 images. The Frechet distance of 2,048 features is beside its usual computation, by
`scipy.linalg.sqrtm` of the product of the covariances, as in pytorch-fid; `ratio` is ours over that
one, and `difference` how far the two are apart, relatively. `benchmarks.inception_speed` has the
features of FID beside PyTorch's.
"""

import numpy as np
import scipy.linalg

from benchmarks.common import medians, options_of, parser, take_turns, tell
from pdistill.evaluation import Moments, Statistics, frechet_distance
from pdistill.evaluation.precision_recall import precision_recall
from pdistill.features import load_extractor

SPACES = ("pixels", "efficientnet_lite0")


def by_sqrtm(a: Statistics, b: Statistics) -> float:
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    means = np.sum((a.mean - b.mean) ** 2)
    return float(means + np.trace(a.covariance + b.covariance - 2 * np.real(root)))


def statistics(features: int, seed: int) -> Statistics:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(2 * features, features)) @ random.normal(size=(features, features))
    return Moments().add(rows / np.sqrt(features)).statistics()


def main() -> None:
    arguments = parser("evaluation", __doc__)
    arguments.add_argument("--num", type=int, default=5000, help="images; default: %(default)s")
    arguments.add_argument("--features", type=int, default=2048, help="default: %(default)s")
    arguments.add_argument("--rounds", type=int, default=3)
    options = options_of(arguments)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (options.num, 32, 32, 3), np.uint8)
    extractors = {name: load_extractor(name) for name in SPACES}
    calls = {
        name: lambda extractor=extractor: extractor(images)["features"]
        for name, extractor in extractors.items()
    }
    rows = random.normal(size=(2, options.num, 1280)).astype(np.float32)
    calls["precision and recall"] = lambda: precision_recall(*rows)
    seconds = medians(take_turns(calls, options.rounds))
    a, b = (statistics(options.features, seed) for seed in range(2))
    found = {}
    distances = {
        "pdistill": lambda: found.update(ours=frechet_distance(a, b)),
        "sqrtm": lambda: found.update(theirs=by_sqrtm(a, b)),
    }
    of_distance = medians(take_turns(distances, 1))  # the usual one takes minutes
    result = {
        "ratio": of_distance["sqrtm"] / of_distance["pdistill"],
        "difference": abs(found["ours"] - found["theirs"]) / found["theirs"],
        "seconds_of_a_distance": of_distance,
        "images_per_second": {name: options.num / time for name, time in seconds.items()},
    }
    for name, speed in result["images_per_second"].items():
        print(f"{name:<24} {speed:10.0f} images/s")
    for name, time in of_distance.items():
        print(f"distance, {name:<14} {time:10.2f} s")
    about = {"num": options.num, "features": options.features, "rounds": options.rounds}
    tell(result | about, options.out)


if __name__ == "__main__":
    main()
