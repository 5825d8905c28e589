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
from collections.abc import Callable, Mapping
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


class Updates:
    """Updates of a run as training dispatches them, on a data set on the device; called for one."""

    def __init__(
        self,
        planned: Planned,
        runs: Mapping[str, Planned],
        experiment: ExperimentConfig,
        data: Dataset,
    ):
        run, loop = planned.run, planned.run.loop
        key, mesh = jax.random.key(0), make_mesh(1, 1, jax.devices()[:1])
        state = init_state(planned.init, mesh, key, random_networks(planned, runs, key))
        state, frozen = take_frozen(state)
        self._state = start_of(state, mesh)
        frozen = into_host_memory(frozen) if loop.offload else frozen
        data = data.of_labels(run.labels) if run.labels else data
        pipeline = Pipeline(data, loop.batch_size, seed=0, resident=experiment.data.resident)
        raw = to_device(next(pipeline.iterator(loop.substeps)), batch_sharding(mesh, leading=1))
        resident = to_device(pipeline.resident_arrays(), replicated(mesh))
        self._inputs = (frozen, resident, raw, key)
        self._update = compile_update(
            run.method, mesh, experiment.data.flip,
            data.image_shape[0] // planned.network.image_shape[0], loop.max_grad_norm, loop.offload,
        )  # fmt: skip
        self._kinds = kinds_of(run.method, range(loop.num_updates), loop.substeps)
        self._steps = itertools.count(0, loop.substeps)
        self._programs = {}
        for step in range(0, WARM * loop.substeps, loop.substeps):
            self._program(**self._kinds(step))

    def _program(self, which: Any, kinds: Any) -> Callable[..., Any]:
        if kinds not in self._programs:
            inputs = (self._state, *self._inputs)
            lowered = self._update.lower(*inputs, which=which, kinds=kinds)
            self._programs[kinds] = lowered.compile()
        return self._programs[kinds]

    def __call__(self) -> None:
        kinds = self._kinds(next(self._steps))
        self._state, metrics = self._program(**kinds)(
            self._state, *self._inputs, which=kinds["which"]
        )
        jax.block_until_ready(metrics)


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


def seconds_of(dispatch: Callable[[], None], duration: float) -> float:
    """Times one dispatch, as the mean of as many as go into about `duration` seconds."""
    for _ in range(WARM):
        dispatch()
    clock = time.perf_counter()
    for num in itertools.count(1):
        dispatch()
        spent = time.perf_counter() - clock
        if spent > duration and num >= 2:
            return spent / num


def read(name: str) -> ExperimentConfig:
    """Parses a config by its name, such as "cifar10_pd:cpu"."""
    return parse(as_plain(config_named(name)))


def prepare(
    name: str, experiment: ExperimentConfig, data: Dataset, method: str
) -> Callable[[float, float], dict[str, Any]]:
    """Compiles the updates of the first run of a method of a config.

    Returns:
      (duration in seconds, peak in FLOP/s) -> the row, measured.
    """
    runs = plan(experiment, data.image_shape)
    planned = firsts(runs)[method]
    updates = Updates(planned, runs, experiment, data)
    operations = mean_flops(planned, runs, experiment, data.images.shape)
    loop = planned.run.loop

    def measure(duration: float, peak: float) -> dict[str, Any]:
        seconds = seconds_of(updates, duration) / loop.substeps
        return {
            "config": name,
            "stage": planned.name,
            "method": method,
            "parameters": count(planned.network.params),
            "batch_size": loop.batch_size,
            "gigaflops": operations / 1e9,
            "updates_per_second": 1 / seconds,
            "gigaflops_per_second": operations / seconds / 1e9,
            "peak_gigaflops_per_second": peak / 1e9,
            "utilisation": operations / seconds / peak,
        }

    return measure


def dtype_of(experiment: ExperimentConfig) -> str:
    """The number format that the network computes in."""
    return experiment.model.network.arguments.get("dtype", "float32")


def firsts(runs: Mapping[str, Planned]) -> dict[str, Planned]:
    """The first run of each method, by its name, but for those that learn from others' rows."""
    of_data = {name: p for name, p in runs.items() if not p.run.method.columns}
    return {p.run.method.name: p for p in first_of_each_method(of_data)}


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
        peak = peak_flops(dtype_of(experiment))
        for method in firsts(plan(experiment, data.image_shape)):
            if methods and method not in methods:
                continue
            row = prepare(name, experiment, data, method)(options.seconds, peak)
            rows.append(row)
            print(
                f"{name:<14} {row['stage']:<16} {row['updates_per_second']:9.2f} updates/s "
                f"{row['gigaflops_per_second']:7.1f} GFLOP/s {row['utilisation']:6.1%}",
                flush=True,
            )
    tell({"rows": rows}, options.out)


if __name__ == "__main__":
    main()
