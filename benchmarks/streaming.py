"""Training from records on disk beside training from memory: updates a second, and memory.

    python -m benchmarks.streaming --data_dir=/tmp/streaming --gigabytes=10

The network is that of `fashion_pd:cpu`. Its records are random pictures of 28x28 pixels, as
`pdistill prepare` would write them; the first 200 MB of them are also kept on the device. The files
are made if they are not there: these 200 MB, and copies of them. Both ways take turns in one
process, whose unique memory is read from the system before the data in memory are there.
"""

import itertools
import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from benchmarks.common import options_of, parser, tell
from benchmarks.train_step import WARM, random_networks, read
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.data.tfds_writer import MAX_SHARDS, png
from pdistill.experiment.plan import first_of_each_method, plan
from pdistill.runtime.mesh import batch_sharding, make_mesh, replicated, to_device
from pdistill.training import compile_update, init_state, kinds_of, start_of, take_frozen

NAME, SHAPE = "streaming_noise", (28, 28, 1)
PART = 200 * 10**6  # bytes of the pictures that differ, and that are kept on the device
BATCH = 512  # of the loader alone
TURN = 24  # updates


def make(root: Path, gigabytes: float) -> None:
    """Writes the records: those of one part, and copies of its shards."""
    folder = root / NAME / "1.0.0"
    part = root / "part" / NAME / "1.0.0"
    num = PART // 784
    copies = max(round(gigabytes * 10**9 / num / 900), 1)  # bytes of a record
    shards = max(min(MAX_SHARDS // copies, 24), 1)
    part.mkdir(parents=True)
    write_part(part, num, -(-num // shards))
    found = sorted(part.glob("*array_record*"))
    folder.mkdir(parents=True)
    for number, shard in enumerate(found * copies):
        shutil.copyfile(shard, folder / re.sub(r"\d+$", f"{number:05}", shard.name))
    info = json.loads((part / "dataset_info.json").read_text())
    [split] = info["splits"]
    split["shardLengths"] *= copies
    shutil.copy(part / "features.json", folder)
    shutil.rmtree(root / "part")
    (folder / "dataset_info.json").write_text(json.dumps(info))


def write_part(folder: Path, num: int, per_shard: int) -> None:
    """Writes random pictures, without classes as in the config."""
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(NAME, tfds.core.Version("1.0.0"), str(folder), ""),
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=SHAPE)}),
    )
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
    writer.initialize_splits(["train"])
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor() as pool:
        for start in range(0, num, 4096):
            images = rng.integers(0, 256, (min(4096, num - start), *SHAPE), np.uint8)
            writer.add_examples({"train": [{"image": e} for e in pool.map(png, images)]})
    writer.close_all()


def unique_bytes() -> int:
    """Bytes of this process's memory that no other process has, without the page cache."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kb) for kb in re.findall(r"Private_\w+: +(\d+) kB", text))


def updates(data: Dataset, resident: bool) -> Iterator[None]:
    """Makes an update of the config's teacher whenever it is asked."""
    experiment = read("fashion_pd:cpu")
    runs = plan(experiment, data.image_shape)
    [planned, *_] = first_of_each_method(runs)
    loop, key = planned.run.loop, jax.random.key(0)
    mesh = make_mesh(1, 1, jax.devices()[:1])
    state, frozen = take_frozen(
        init_state(planned.init, mesh, key, random_networks(planned, runs, key))
    )
    state = start_of(state, mesh)
    pipeline = Pipeline(data, loop.batch_size, seed=0, resident=resident)
    arrays = to_device(pipeline.resident_arrays(), replicated(mesh))
    update = compile_update(planned.run.method, mesh, False)
    kinds = kinds_of(planned.run.method, range(loop.num_updates), 1)
    with pipeline.iterator() as batches:
        for step in itertools.count():
            raw = to_device(next(batches), batch_sharding(mesh, leading=1))
            state, metrics = update(state, frozen, arrays, raw, key, **kinds(step))
            jax.block_until_ready(metrics)
            yield


def speed_of(found: Iterator[None]) -> float:
    """Updates a second, of TURN updates after some that are not counted."""
    for _ in range(WARM):  # what was read ahead while the others had their turn
        next(found)
    start = time.perf_counter()
    for _ in range(TURN):
        next(found)
    return TURN / (time.perf_counter() - start)


def loader_alone(data: Dataset, seconds: float) -> float:
    """Records a second that are read and decoded, in batches of BATCH."""
    with Pipeline(data, BATCH, seed=1, resident=False).iterator() as batches:
        next(batches)
        start = time.perf_counter()
        for num in itertools.count(1):
            next(batches)
            if (spent := time.perf_counter() - start) > seconds:
                return num * BATCH / spent


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Measures on the data set that is there."""
    opened = time.perf_counter()
    whole = load_dataset(NAME, in_memory=False)
    opened = time.perf_counter() - opened
    folder = Path(os.environ["TFDS_DATA_DIR"]) / NAME / "1.0.0"
    turns = {"streamed": updates(whole, resident=False)}
    for _ in range(5):  # it looks into most shards
        speed_of(turns["streamed"])
    unique = unique_bytes()
    resident = load_dataset(NAME, f"train[:{PART // 784}]")
    turns["resident"] = updates(resident, resident=True)
    speed_of(turns["resident"])  # it compiles
    speeds = {name: [] for name in turns}
    for _ in range(rounds):
        for name, found in turns.items():
            speeds[name].append(speed_of(found))
    ratios = [s / r for s, r in zip(speeds["streamed"], speeds["resident"], strict=True)]
    return {
        "gigabytes": sum(p.stat().st_size for p in folder.iterdir()) / 1e9,
        "records": len(whole),
        "shards": len(list(folder.glob("*array_record*"))),
        "seconds_to_open": opened,
        "updates_per_second": {name: statistics.median(found) for name, found in speeds.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "loader_records_per_second": loader_alone(whole, seconds),
        "unique_megabytes": unique / 1e6,
        "unique_megabytes_with_resident_data": unique_bytes() / 1e6,
    }


def main() -> None:
    arguments = parser("streaming", __doc__)
    arguments.add_argument("--data_dir", type=Path, required=True, help="folder for the records")
    arguments.add_argument("--gigabytes", type=float, default=10.0, help="default: %(default)s")
    arguments.add_argument("--rounds", type=int, default=6, help="turns of each way")
    arguments.add_argument("--seconds", type=float, default=15.0, help="for the loader alone")
    options = options_of(arguments)
    os.environ["TFDS_DATA_DIR"] = str(options.data_dir)
    if not (options.data_dir / NAME / "1.0.0" / "dataset_info.json").exists():
        make(options.data_dir, options.gigabytes)
    tell(measure(options.rounds, options.seconds), options.out)


if __name__ == "__main__":
    main()
