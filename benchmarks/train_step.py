"""Speed of a training update of each method, as a share of the machine's peak.

    python -m benchmarks.train_step --configs=digits_pd,digits_gan

The updates are those that `pdistill.main` runs, so that one compilation cache serves both, with
random weights: the first run of each method of each config. Operations are those of products and
convolutions, of an update that has a part that not all have, such as R1, its share; the peak is
that of a large matrix product of what the network computes in.

The default also has `fashion_pd:cpu`, whose data `python -m pdistill.data.prepare fashion_mnist`
prepares.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from benchmarks.common import config_named, options_of, parser, peak_flops, tell
from benchmarks.operations import mean_flops
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.experiment.config import ExperimentConfig, as_plain, parse
from pdistill.experiment.plan import Planned, first_of_each_method, plan
from pdistill.runtime.mesh import batch_sharding, make_mesh, replicated, to_device
from pdistill.training import compile_update, count, init_state, kinds_of, start_of, take_frozen
from pdistill.training.offload import into_host_memory

CONFIGS = "digits_pd,digits_gan,digits_dmd,digits_ctm,fashion_pd:cpu"
WARM = 12  # dispatches that are not counted: whatever only some updates have is compiled in them


def updates(
    planned: Planned, runs: Mapping[str, Planned], experiment: ExperimentConfig, data: Dataset
) -> Iterator[None]:
    """Dispatches one update, or one scan of them, of a run whenever it is asked."""
    run, loop = planned.run, planned.run.loop
    key, mesh = jax.random.key(0), make_mesh(1, 1, jax.devices()[:1])
    state = init_state(planned.init, mesh, key, random_networks(planned, runs, key))
    state, frozen = take_frozen(state)
    state = start_of(state, mesh)
    frozen = into_host_memory(frozen) if loop.offload else frozen
    data = data.of_labels(run.labels) if run.labels else data
    pipeline = Pipeline(data, loop.batch_size, seed=0, resident=experiment.data.resident)
    raw = to_device(next(pipeline.iterator(loop.substeps)), batch_sharding(mesh, leading=1))
    resident = to_device(pipeline.resident_arrays(), replicated(mesh))
    update = compile_update(
        run.method, mesh, experiment.data.flip,
        data.image_shape[0] // planned.network.image_shape[0], loop.max_grad_norm, loop.offload,
    )  # fmt: skip
    kinds = kinds_of(run.method, range(loop.num_updates), loop.substeps)
    for step in itertools.count(0, loop.substeps):
        state, metrics = update(state, frozen, resident, raw, key, **kinds(step))
        jax.block_until_ready(metrics)
        yield


def random_networks(
    planned: Planned, runs: Mapping[str, Planned], key: jax.Array
) -> dict[str, Any]:
    """The networks that a run is given, with small random weights."""
    shapes = {}
    for role, name in planned.given.items():
        part = role.removeprefix("start.")
        shapes[role] = (
            runs[name].network if part == role else getattr(runs[name].state, part).network
        )
    leaves, form = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    random = [
        0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return form.unflatten(random)


def seconds_of(dispatches: Iterator[None], duration: float) -> float:
    """Times one dispatch, as the mean of as many as go into about `duration` seconds."""
    for _ in range(WARM):
        next(dispatches)
    clock = time.perf_counter()
    for num in itertools.count(1):
        next(dispatches)
        spent = time.perf_counter() - clock
        if spent > duration and num >= 2:
            return spent / num


def read(name: str) -> ExperimentConfig:
    """Parses a config by its name, such as "cifar10_pd:cpu"."""
    return parse(as_plain(config_named(name)))


def measure(
    name: str,
    experiment: ExperimentConfig,
    data: Dataset,
    methods: Sequence[str],
    duration: float,
) -> Iterator[dict[str, Any]]:
    """Measures a row for each method of a config, or for the given `methods`."""
    peak = peak_flops(experiment.model.network.arguments.get("dtype", "float32"))
    runs = plan(experiment, data.image_shape)
    of_data = [p for p in runs.values() if not p.run.method.columns]
    for planned in first_of_each_method({p.name: p for p in of_data}):
        method, loop = planned.run.method, planned.run.loop
        if methods and method.name not in methods:
            continue
        operations = mean_flops(planned, runs, experiment, data.images.shape)
        seconds = seconds_of(updates(planned, runs, experiment, data), duration) / loop.substeps
        yield {
            "config": name,
            "stage": planned.name,
            "method": method.name,
            "parameters": count(planned.network.params),
            "batch_size": loop.batch_size,
            "gigaflops": operations / 1e9,
            "updates_per_second": 1 / seconds,
            "gigaflops_per_second": operations / seconds / 1e9,
            "peak_gigaflops_per_second": peak / 1e9,
            "utilisation": operations / seconds / peak,
        }


def main() -> None:
    arguments = parser("train_step", __doc__)
    arguments.add_argument("--configs", default=CONFIGS, help="default: %(default)s")
    arguments.add_argument("--methods", default="", help="of the configs; all by default")
    arguments.add_argument("--seconds", type=float, default=10.0, help="a method")
    options = options_of(arguments)
    methods = [method for method in options.methods.split(",") if method]
    experiments = {name: read(name) for name in options.configs.split(",")}
    sets = [load_dataset(e.data.name, e.data.train) for e in experiments.values()]
    rows = []
    for (name, experiment), data in zip(experiments.items(), sets, strict=True):
        for row in measure(name, experiment, data, methods, options.seconds):
            rows.append(row)
            print(
                f"{name:<14} {row['stage']:<16} {row['updates_per_second']:9.2f} updates/s "
                f"{row['gigaflops_per_second']:7.1f} GFLOP/s {row['utilisation']:6.1%}",
                flush=True,
            )
    tell({"rows": rows}, options.out)


if __name__ == "__main__":
    main()
