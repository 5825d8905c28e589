"""How far a training update of each method is from the machine's peak.

    python -m benchmarks.train_step --configs=digits_pd,digits_gan

The updates are those that `pdistill.main` runs, so that one compilation cache serves both, with
random weights: the first round of each method of each config. Operations are those of products and
convolutions, of an update that has a part that not all have, such as R1, its share; the peak is
that of a large matrix product of what the network computes in.

The default also has `fashion_pd:cpu`, whose data `python -m pdistill.data.prepare fashion_mnist`
prepares.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.common import config_named, options_of, parser, peak_flops, tell
from benchmarks.operations import mean_flops
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.experiment.config import ExperimentConfig, as_plain, parse
from pdistill.methods import Round
from pdistill.runtime.mesh import batch_sharding, make_mesh, replicated, to_device
from pdistill.training import compile_update, count, init_state
from pdistill.training.offload import into_host_memory

CONFIGS = "digits_pd,digits_gan,digits_dmd,digits_ctm,fashion_pd:cpu"
WARM = 12  # dispatches that are not counted: whatever only some updates have is compiled in them


def updates(
    r: Round, rounds: Sequence[Round], experiment: ExperimentConfig, data: Dataset
) -> Iterator[None]:
    """Dispatches one update, or one scan of them, of a round whenever it is asked."""
    by_name = {other.name: other for other in rounds}
    parents = [by_name[name] for name in r.parents if name]
    key, mesh = jax.random.key(0), make_mesh(1, 1, jax.devices()[:1])
    params = [p.method.diffuser.init(key, p.noise_shape) for p in parents] or [None]
    state = init_state(r.init, mesh, key, *params)
    frozen, state = state.frozen, state.replace(frozen={})
    frozen = into_host_memory(frozen) if r.loop.offload else frozen
    data = data.of_labels(r.labels) if r.labels else data
    pipeline = Pipeline(data, r.loop.batch_size, seed=0, resident=experiment.data.resident)
    raw = to_device(next(pipeline.iterator(r.loop.substeps)), batch_sharding(mesh, leading=1))
    resident = to_device(pipeline.resident_arrays(), replicated(mesh))
    factor = data.image_shape[0] // r.image_shape[0]
    update = compile_update(
        r.method, mesh, experiment.data.flip, factor, r.loop.max_grad_norm, r.loop.offload
    )
    due = getattr(r.method, "due", None) if r.loop.substeps == 1 else None
    for step in itertools.count():
        flags = {"due": due(step)} if due else {}
        state, metrics = update(state, frozen, resident, raw, key, **flags)
        jax.block_until_ready(metrics)
        yield


def seconds_of(dispatches: Iterator[None], duration: float) -> float:
    """Of one dispatch, the mean of as many as go into about `duration` seconds."""
    for _ in range(WARM):
        next(dispatches)
    clock = time.perf_counter()
    for num in itertools.count(1):
        next(dispatches)
        spent = time.perf_counter() - clock
        if spent > duration and num >= 2:
            return spent / num


def read(name: str) -> ExperimentConfig:
    """What a config such as "cifar10_pd:cpu" describes."""
    return parse(as_plain(config_named(name)))


def measure(
    name: str,
    experiment: ExperimentConfig,
    data: Dataset,
    methods: Sequence[str],
    duration: float,
) -> Iterator[dict[str, Any]]:
    """A row for each method, or those of `methods`, of the config of this name."""
    peak = peak_flops(experiment.model.network.arguments.get("dtype", "float32"))
    rounds = experiment.rounds(data.image_shape)
    firsts = {r.method_name: r for r in reversed(rounds) if r.loop and not (r.pairs or r.latents)}
    for r in [r for r in rounds if r in firsts.values()]:
        if methods and r.method_name not in methods:
            continue
        operations = mean_flops(r, rounds, experiment, data.images.shape)
        seconds = seconds_of(updates(r, rounds, experiment, data), duration) / r.loop.substeps
        yield {
            "config": name,
            "stage": r.name,
            "method": r.method_name,
            "parameters": count(r.method.diffuser.param_shapes(r.noise_shape)),
            "batch_size": r.loop.batch_size,
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
