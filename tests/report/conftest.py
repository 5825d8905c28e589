import json

import numpy as np
import pytest


@pytest.fixture
def row():
    """row(stage, nfe, value, ...): a row of results.jsonl."""

    def make(stage, nfe, value, **changes):
        return {
            "stage": stage, "method": "any", "nfe": nfe, "solver": "ddim",
            "metric": "fd_pixels", "value": value, "num_samples": 1437,
            "reference": "digits:train", "seconds_per_image": nfe / 1000, "train_steps": 2500,
            "images_seen": 160000, "device": "cpu", "seed": 0,
        } | changes  # fmt: skip

    return make


@pytest.fixture
def workdir(tmp_path):
    """write(rows, samples={run: {steps: images}}, pictures={run: arrays}, logs={run: losses},
    config=None): a run."""

    def write(rows, samples=(), pictures=(), logs=(), config=None, name="digits"):
        directory = tmp_path / name
        directory.mkdir()
        lines = [json.dumps(row) + "\n" for row in rows]
        (directory / "results.jsonl").write_text("".join(lines))
        for run in {*samples, *pictures, *logs}:
            (directory / run).mkdir(parents=True)
        for run, by_steps in dict(samples).items():
            np.savez(directory / run / "samples.npz", **{str(k): v for k, v in by_steps.items()})
        for run, arrays in dict(pictures).items():
            np.savez(directory / run / "pictures.npz", **arrays)
        for run, losses in dict(logs).items():
            log = [json.dumps({"step": 10 * i, "loss": x}) for i, x in enumerate(losses, 1)]
            (directory / run / "log.jsonl").write_text("\n".join(log))
        if config is not None:
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    return write
