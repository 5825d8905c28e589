"""Two students for half of the captions each, and one for all: 400 updates each, in 4 evaluations.

    pdistill train --config=benchmarks/emoji_students.py --workdir=runs/emoji_students
    python -m benchmarks.emoji_students --run=runs/emoji_students

The captions are parted by k-means of their embeddings. All are students by DMD2, without its GAN,
of the zoo's emoji teacher, of its size and with its codec; data are those of `emoji:cpu`. Distances
are Frechet's in a judge's features, as `benchmarks.emoji` has them, one for each seed of noise.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

import pdistill
from benchmarks.common import described
from benchmarks.emoji import SEEDS, Distance, distances, judge_of, read
from pdistill.configs import emoji

ZOO = Path(__file__).parents[1] / "zoo" / "emoji"
MODELS = ("two", "one", "teacher")


def get_config() -> ConfigDict:
    """The experiment; --config reads it."""
    config = emoji.get_config("cpu")
    config.codec = str(ZOO / "codec")
    adam = {"anneal": "linear", "b1": 0.0, "b2": 0.99, "clip_norm": 0.0}
    student = {
        "name": "one",
        "method": "dmd",
        "teacher": "teacher",
        "generated_at": (-20.0, -1.0, 1.5, 4.0),
        "told_level": True,
        "guidance": 2.0,
        "fake_updates": 2,
        "noise": {"data_std": 0.75},
        "loop": {"num_updates": 400, "batch_size": 32, "substeps": 10, "log_every": 50},
        "optimizer": adam | {"learning_rate": 2e-4, "ema_decay": 0.99, "ema_ramp": 0.1},
        "fake_optimizer": adam | {"learning_rate": 3e-4},
    }
    part = student | {"name": "dmd"}
    config.stages = (
        ConfigDict({"name": "teacher", "method": "imported", "path": str(ZOO / "teacher")}),
        ConfigDict({"name": "two", "method": "multi_student", "parts": 2, "student": part}),
        ConfigDict(student),
    )
    config.evaluation.num_samples = 256
    config.evaluation.metrics = ("fd_pixels_16",)
    return config


def measure(run: Path, data: str, updates: int) -> dict[str, list[float]]:
    """Distances by model and kind of captions, one for each seed."""
    categories: list[str] = []
    known = read(data, ("train", "style", "test"), categories)
    train = read(data, ("train",), categories)
    models = {name: pdistill.load(run / name / "model") for name in MODELS}
    distance = Distance(judge_of(known, models["teacher"], updates), train)
    found = {"real": [distance.of_real() for _ in SEEDS]}
    how = {"teacher": {"num_steps": 16, "guidance": 2.0}}
    sampled = {name: (model, how.get(name, {})) for name, model in models.items()}
    for (kind, name), values in distances(distance, sampled, train).items():
        found[f"{name}, {kind}"] = values
    return found


def main() -> None:
    parser = described("emoji_students", __doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/emoji_students"))
    parser.add_argument("--data", default="emoji_small")
    parser.add_argument("--updates", type=int, default=400, help="of the judge")
    options = parser.parse_args()
    found = measure(options.run, options.data, options.updates)
    rounded = {name: [round(value, 3) for value in values] for name, values in found.items()}
    print(json.dumps(rounded, indent=1))


if __name__ == "__main__":
    main()
