"""Costs and reconstructions of PaGoDA, in a run of configs/fashion_pagoda.py.

    python -m benchmarks.pagoda runs/fashion_pagoda --out=benchmarks/results/fashion_pagoda

Costs are floating-point operations of products and convolutions: of all updates, those for R1 as
often as there are any, and of encoding the data. The teacher of full size is counted alone and with
progressive distillation as in configs/fashion_pd.py, which is not run. Reconstructions are of
held-out images, reduced and encoded by the small teacher, beside bicubic interpolation of the same
small images.
"""

import argparse
import copy
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.operations import mean_flops
from pdistill.configs import fashion_pd
from pdistill.data import load_dataset, to_float
from pdistill.data.images import average
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.methods.columns import Latents
from pdistill.model import load
from pdistill.model.editing import Autoencoder
from pdistill.runtime.files import read_jsonl
from pdistill.samplers import num_evaluations, parse_solver


def costs(config: dict, data_shape: tuple[int, ...]) -> dict[str, float]:
    """Counts TFLOP of the updates of each run, and of its latents."""
    experiment = parse(config)
    runs = plan(experiment, data_shape[1:])
    found = {}
    for planned in runs.values():
        if planned.trains:
            update = mean_flops(planned, runs, experiment, data_shape)
            found[planned.name] = planned.run.loop.num_updates * update / 1e12
        for column in planned.run.method.columns:
            name = planned.given["teacher"]
            if isinstance(column, Latents) and f"latents of {name}" not in found:
                evaluations = num_evaluations(
                    parse_solver(column.solver), column.num_steps, last_step_is_x_hat=False
                )
                images = data_shape[0] * (1 + experiment.data.flip)
                of_image = evaluations * runs[name].network.flops()
                found[f"latents of {name}"] = images * of_image / 1e12
    return found


def reconstruction(workdir: Path, config: dict, num: int) -> dict[str, float]:
    """Measures the mean PSNR of held-out images in dB, by the last generator and interpolation."""
    generators = [stage for stage in config["stages"] if stage["method"] == "pagoda"]
    coder = Autoencoder(load(workdir / "teacher"), load(workdir / generators[-1]["name"]))
    images = to_float(load_dataset(config["data"]["name"], "test").images[:num])
    small = average(images, coder.factor)
    parts = np.array_split(small, max(num // 250, 1))
    large = np.concatenate([coder.super_resolve(part) for part in parts])
    bicubic = jax.image.resize(small, images.shape, "cubic").clip(-1, 1)
    return {"pagoda": psnr(large, images), "bicubic": psnr(bicubic, images)}


def psnr(found: np.ndarray, desired: np.ndarray) -> float:
    """Mean PSNR in dB over images in [-1, 1]."""
    errors = np.mean((np.asarray(found) - desired) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / errors)))


def with_distillation(config: dict) -> dict:
    """Adds the rounds of configs/fashion_pd.py to `config`, for its teacher of full size."""
    config = copy.deepcopy(config)
    rounds = fashion_pd.get_config().stages[1]
    rounds = as_plain(ConfigDict(rounds)) | {"teacher": config["stages"][-1]["name"]}
    config["stages"] = [*config["stages"], rounds]
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--num", type=int, default=1000, help="images to reconstruct")
    parser.add_argument("--out", type=Path, help="folder for pagoda.json")
    options = parser.parse_args()
    config = json.loads((options.workdir / "config.json").read_text())["config"]
    data_shape = load_dataset(config["data"]["name"], config["data"]["train"]).images.shape
    result = {
        "teraflop": costs(with_distillation(config), data_shape),
        "fd_pixels": {
            f"{row['stage']}@{row['nfe']}": row["value"]
            for row in read_jsonl(options.workdir / "results.jsonl")
            if row["metric"] == "fd_pixels"
        },
        "psnr": reconstruction(options.workdir, config, options.num),
    }
    for title, values in result.items():
        for name, value in values.items():
            print(f"{title:<10} {name:<24} {value:10.3f}")
    text = json.dumps(result)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "pagoda.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
