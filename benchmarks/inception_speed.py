"""Times the Inception features of random images: this package's network against PyTorch's.

PyTorch's is torch-fidelity's class (the extra `parity`). Both have the same random weights and the
same batch size and all cores, and take turns, so that a busy moment of the machine falls on both.

    python -m benchmarks.inception_speed --out=benchmarks/results/inception_speed.json
"""

import argparse
import dataclasses
import json
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import torch

from pdistill.features import inception
from pdistill.runtime.torch_files import read_torch

make = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "tests/fixtures/inception/make.py"))
)


def contenders(batch_size: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Makes the contenders by name, functions of uint8 [N, H, W, 3] to features [N, 2048]."""
    with tempfile.TemporaryDirectory() as folder, np.load(make.PATH) as archive:
        path = Path(folder) / "weights.pth"
        make.save(make.random_weights(json.loads(str(archive["shapes"]))), path)
        ours = inception.from_state_dict(read_torch(path), "random")
        theirs = make.torch_fidelity_network(path)
    ours = dataclasses.replace(ours, batch_size=batch_size)

    def run_theirs(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), batch_size)
        batches = (images[start : start + batch_size] for start in starts)
        return np.concatenate(
            [make.run_torch_fidelity(theirs, batch)["features"] for batch in batches]
        )

    return {"pdistill": lambda images: ours(images)["features"], "torch-fidelity": run_theirs}


def measure(num_images: int, rounds: int, batch_size: int) -> dict:
    """Measures seconds of each round, and how far the features are apart."""
    networks = contenders(batch_size)
    images = np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    features, seconds = {}, {name: [] for name in networks}
    for network in networks.values():
        network(images[:batch_size])  # compilation, and whatever else the first call sets up
    for part in np.split(images, rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            features[name] = network(part)
            seconds[name].append(time.perf_counter() - start)
    ours, theirs = features.values()
    return {
        "images_per_second": {name: num_images / sum(times) for name, times in seconds.items()},
        "speed_ratio": sum(seconds["torch-fidelity"]) / sum(seconds["pdistill"]),
        "speed_ratio_of_rounds": sorted(
            theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)
        ),
        "relative_difference": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
        "num_images": num_images,
        "batch_size": batch_size,
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num_images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=16, help="turns of each network")
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()

    result = measure(args.num_images, args.rounds, args.batch_size)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print("network          images/s")
    for name, speed in result["images_per_second"].items():
        print(f"{name:<16} {speed:8.2f}")
    print(f"ratio            {result['speed_ratio']:8.2f}")


if __name__ == "__main__":
    main()
