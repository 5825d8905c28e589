"""The loop: resuming, substeps and meshes change nothing that is computed."""

import dataclasses
import errno
import functools
import json
import os
import resource
import shutil
import signal
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import struct
from tiny_training import noise_dataset

from pdistill.data import Dataset, Pipeline
from pdistill.diffusion import CosineSchedule
from pdistill.methods import Method, Progressive, Teacher
from pdistill.networks import DiT, Network
from pdistill.runtime import arrays
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.mesh import make_mesh, replicated
from pdistill.runtime.terminal import format_seconds
from pdistill.training import (
    CheckpointError,
    Diverged,
    Interrupted,
    LoopConfig,
    Optimizer,
    StopSignals,
    compile_update,
    frozen,
    init_state,
    kinds_of,
    loop,
    start_of,
    take_frozen,
    train,
)
from pdistill.training.checkpoints import Checkpointer
from pdistill.training.logging import LogFile, MetricWriter

pytestmark = pytest.mark.eight_devices

DATA = noise_dataset(50, (4, 4, 1))
MODEL = Network(
    None, module=DiT(out_channels=1, patch=2, features=64, depth=1, heads=2), head="v",
    schedule=CosineSchedule(), shape=(4, 4, 1),
)  # fmt: skip
OPTIMIZER = Optimizer(1e-2, warmup=2, ema_decay=0.9)
METHOD = Teacher(optimizer=OPTIMIZER)
KEY = jax.random.key(2)  # of a run's random numbers


@functools.cache  # one function, so that it is traced once
def beginning(method):
    """key -> the state that the method begins with."""
    return lambda key: method.init(key, model=MODEL)


def run(
    directory, num_updates, *, substeps=2, mesh=(8, 1), resident=True, save_every=4, log_every=4,
    stop=None, method=METHOD, init=None, offload=False, data=DATA,
):  # fmt: skip
    mesh = make_mesh(*mesh)
    state = init_state(init or beginning(method), mesh, jax.random.key(0))
    pipeline = Pipeline(data, batch_size=16, seed=1, resident=resident)
    config = LoopConfig(
        num_updates, 16, substeps, log_every=log_every, save_every=save_every, offload=offload
    )
    with MetricWriter(directory) as writer:
        state = train(
            method, state, pipeline, config, KEY,
            name="t", directory=directory / "t", writer=writer, mesh=mesh, flip=True, stop=stop,
        )  # fmt: skip
    return state, read_jsonl(directory / "t" / "log.jsonl")


def check_same(ours, theirs):
    """Everything of a state that learns, to the bit."""
    chex.assert_trees_all_equal(*(take_frozen(state)[0] for state in (ours, theirs)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"), 12)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The directory of a run of 8 updates."""
    directory = tmp_path_factory.mktemp("eight")
    run(directory, 8)
    return directory


@pytest.fixture
def halted(eight, tmp_path):
    """A run that has done 8 updates, in a directory of one test's own."""
    return shutil.copytree(eight, tmp_path / "halted")


def test_a_resumed_run_is_the_same_bit_for_bit(halted, undisturbed):
    """Stopped after 8 of 12 updates, with a log that had already run ahead and was cut short."""
    with (halted / "t" / "log.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 99.0}\n{"step": 12, "lo')
    state, log = run(halted, 12)
    assert state.model.count == 12
    check_same(state, undisturbed[0])
    assert [row["loss"] for row in log] == [row["loss"] for row in undisturbed[1]]
    assert [row["step"] for row in log] == [4, 8, 12]


def test_a_finished_run_is_left_alone(tmp_path, undisturbed):
    state, log = run(tmp_path, 12)
    again, log_again = run(tmp_path, 12)
    check_same(again, state)
    assert log_again == log


def test_it_learns(tmp_path):
    """A single image repeated: the loss falls far below that of a network that outputs zero."""
    image = np.full((50, 4, 4, 1), 255, np.uint8)
    data = Dataset("white:train", image, np.zeros(50, np.int32), 1)
    _, log = run(tmp_path, 80, log_every=20, save_every=80, data=data)
    assert log[0]["loss"] > 0.3
    assert log[-1]["loss"] < 0.1


@pytest.mark.parametrize(
    "how",
    [{"substeps": 4}, {"resident": False}, {"mesh": (2, 4)}],
    ids=str,
)
def test_how_it_runs_does_not_change_what_it_learns(tmp_path, undisturbed, how):
    """Up to the order of sums. Adam makes whole steps of the rounding in a gradient that is zero
    (an attention key's bias has none), so parameters agree to a fraction of a step of 1e-2."""
    state, log = run(tmp_path, 12, **how)
    losses = [row["loss"] for row in undisturbed[1]]
    np.testing.assert_allclose([row["loss"] for row in log], losses, rtol=1e-5)
    chex.assert_trees_all_close(state, undisturbed[0], rtol=1e-7, atol=2e-3)


def test_on_cpus_each_update_is_a_dispatch(tmp_path, undisturbed, monkeypatch):
    """Whatever is asked for; it learns the same, and logs and saves at the same updates."""
    dispatches = []

    def counted(*settings):
        update = compile_update(*settings)

        def dispatch(*inputs, which, kinds):
            dispatches.append(len(which))
            return update(*inputs, which=which, kinds=kinds)

        return dispatch

    monkeypatch.setattr(loop, "SLOW_LOOPS", ("cpu",))
    monkeypatch.setattr(loop, "compile_update", counted)
    _, log = run(tmp_path, 12, substeps=4)
    assert dispatches == [1] * 12
    losses = [row["loss"] for row in undisturbed[1]]
    np.testing.assert_allclose([row["loss"] for row in log], losses, rtol=1e-5)
    assert [row["step"] for row in log] == [4, 8, 12]


def test_the_host_does_not_run_ahead(tmp_path, monkeypatch):
    """Whose batches wait on the device: two dispatches at most are before the one that it makes."""
    running, most = set(), []

    class Kept:
        """That an update was kept, of which it is known when anybody waits for it."""

        def __init__(self, value):
            self._value = value
            running.add(self)
            most.append(len(running))

        def block_until_ready(self):
            running.remove(self)

        def __array__(self, *_, **__):
            return np.asarray(self._value)

    def compiled(*arguments, **settings):
        def update(*inputs, **told):
            state, metrics = known(*inputs, **told)
            return state, metrics | {"kept": Kept(metrics["kept"])}

        known = compile_update(*arguments, **settings)
        return update

    monkeypatch.setattr(loop, "compile_update", compiled)
    run(tmp_path, 12, log_every=12, save_every=12)
    assert most == [1, 2, 3, 3, 3, 3]


def test_a_run_goes_on_from_between_its_dispatches(tmp_path, undisturbed):
    """As after a stop on CPUs: it logs, saves and ends where it would have, and learns the same."""
    run(tmp_path, 3, substeps=1, save_every=1, log_every=1)
    state, log = run(tmp_path, 12, substeps=2)
    assert int(state.model.count) == 12
    assert [row["step"] for row in log] == [1, 2, 3, 4, 8, 12]
    assert ocp.CheckpointManager(tmp_path / "t/checkpoints").all_steps() == [8, 12]
    np.testing.assert_allclose(log[-1]["loss"], undisturbed[1][-1]["loss"], rtol=1e-5)


def test_a_teacher_in_host_memory_teaches_the_same(tmp_path):
    """To the bit, also where a run is resumed; what is returned is on the devices."""
    kinds = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watched(Progressive):
        def step(self, state, batch, key):
            held = state.teacher, state.num_steps
            kinds.append({jax.typeof(a).memory_space for a in jax.tree.leaves(held)})
            return super().step(state, batch, key)

    def how(cls):
        method = cls(optimizer=OPTIMIZER, start_steps=4)
        init = lambda key: method.init(key, teacher=MODEL.init(key), num_steps=2)  # noqa: E731
        return {"method": method, "init": init, "mesh": (2, 4)}

    expected, log = run(tmp_path / "device", 8, **how(Progressive))
    watched = how(Watched) | {"offload": True}
    run(tmp_path / "host", 4, **watched)
    state, log_of_host = run(tmp_path / "host", 8, **watched)
    again, _ = run(tmp_path / "host", 8, **watched)
    assert [row["loss"] for row in log_of_host] == [row["loss"] for row in log]
    assert kinds
    assert set.union(*kinds) == {jax.memory.Space.Device}  # where the update computes
    for found in (state, again):
        check_same(found, expected)
        _, held = take_frozen(found)
        assert {a.sharding.memory_kind for a in jax.tree.leaves(held)} == {"device"}


@pytest.mark.parametrize("substeps", [1, 2])
def test_parts_that_not_all_updates_have(tmp_path, substeps):
    """They are known when an update is traced. Their metrics are means over the updates that had
    them, and what else is computed does not change."""
    traced = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sometimes(Teacher):
        def parts(self, step):
            return ("loss", "rare") if step % 3 == 0 else ("loss",)

        def step(self, state, batch, key, parts):
            traced.append(parts)
            state, metrics = super().step(state, batch, key)
            if "rare" in parts:
                metrics |= {"rare": state.model.count.astype(jnp.float32)}
            return state, metrics

    how = {"substeps": substeps, "save_every": 6, "log_every": 2}
    state, log = run(tmp_path / "parts", 6, method=Sometimes(optimizer=OPTIMIZER), **how)
    assert [row.get("rare") for row in log] == [1, 4, None]  # updates 0 and 3
    if substeps == 1:  # each kind of update is compiled once, without the other's losses
        assert traced == [("loss", "rare"), ("loss",)]
    plain, log_of_plain = run(tmp_path / "plain", 6, **how)
    losses = [row["loss"] for row in log_of_plain]
    np.testing.assert_allclose([row["loss"] for row in log], losses, rtol=1e-5)
    chex.assert_trees_all_close(state, plain, rtol=1e-7, atol=2e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Method):
    """It learns nothing, and keeps a number that it has drawn with the key of each update."""

    @struct.dataclass
    class State:
        count: Any
        drawn: Any
        held: Any = frozen(default=None)

    def init(self, key):
        return self.State(jnp.zeros((), jnp.int32), jnp.zeros(12))

    def step(self, state, batch, key):
        drawn = state.drawn.at[state.count].set(jax.random.uniform(key))
        return state.replace(count=state.count + 1, drawn=drawn), {"grad_norm": jnp.zeros(())}


def test_every_update_has_a_key_of_its_own(tmp_path):
    """The same ones in dispatches of one or several updates, and where a run is resumed."""
    method = Drawing()
    how = {"method": method, "init": method.init}
    state, _ = run(tmp_path / "one", 12, substeps=1, **how)
    assert len(np.unique(state.drawn)) == 12
    run(tmp_path / "two", 4, **how)
    resumed, _ = run(tmp_path / "two", 12, **how)
    np.testing.assert_array_equal(resumed.drawn, state.drawn)


@dataclasses.dataclass(frozen=True)
class Returning(Drawing):
    """A method whose step returns something of its own."""

    result: Any = None

    def step(self, state, batch, key):
        return self.result(*super().step(state, batch, key))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda state, metrics: state, "a dictionary of metrics; it returns State"),
        (lambda state, metrics: (state, {}), "a gradient's norm.*; its metrics are none"),
        (lambda state, metrics: (state, {"loss": 0.0}), "a gradient's norm.*metrics are loss"),
        (
            lambda state, metrics: (state, metrics | {"losses": jnp.zeros(16)}),
            r"metrics that are scalars; losses is \(16,\)",
        ),
        (
            lambda state, metrics: (state.replace(drawn=state.drawn[:3]), metrics),
            r"like the one it is given; state.drawn was \(12,\) and is \(3,\)",
        ),
        (
            lambda state, metrics: (state.replace(count=None), metrics),
            r"state.count was \(\) and is not there",
        ),
        (
            lambda state, metrics: (state.replace(drawn=[state.drawn]), metrics),
            r"state.drawn was \(12,\) and is not there",
        ),
        (
            lambda state, metrics: (state, {"critic_grad_norm": 0.0}),
            '"grad_norm", which loop.max_grad_norm is a bound on.*are critic_grad_norm',
        ),
        (
            lambda state, metrics: (state, metrics | {"step": 0.0}),
            "metrics of other names than step, skipped, steps_per_second, left_out, grad_norms",
        ),
        (
            lambda state, metrics: (state.replace(held=state.held + 1), metrics),
            r"frozen fields as they are, and it changes held: leave frozen\(\) out",
        ),
        (  # which gives all arrays back as others
            jax.jit(lambda state, metrics: (state, metrics)),
            r"changes held.* return state.replace\(...\) of the state .* outside of any jax.jit",
        ),
    ],
)
def test_a_step_that_breaks_its_contract_is_refused_when_it_is_traced(result, message):
    method, mesh = Returning(result), make_mesh()
    state, held = start_of(method.init(KEY), mesh), {"held": jnp.zeros(2)}
    raw = {"index": jnp.zeros((1, 16), jnp.int32)}
    update = compile_update(method, mesh, flip=False, max_grad_norm=1.0)
    with pytest.raises(TypeError, match=f"Returning.step must return .*{message}"):
        update.trace(
            state, held, DATA.arrays(), raw, KEY, **kinds_of(method, range(1), substeps=1)(0)
        )


def test_fsdp_shards_parameters_and_moments(tmp_path):
    """On a 1x8 mesh each device holds an eighth of every large leaf, before and after training."""
    state, _ = run(tmp_path, 4, mesh=(1, 8))
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 4096]
    assert len(large) >= 4 * 4  # params, ema and two moments of at least four kernels
    for leaf in large:
        assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_a_checkpoint_moves_between_meshes(tmp_path):
    run(tmp_path, 4, mesh=(1, 8))
    mesh = make_mesh(4, 2)
    target = start_of(init_state(beginning(METHOD), mesh, jax.random.key(9)), mesh)
    with Checkpointer(tmp_path / "t" / "checkpoints") as checkpointer:
        state, iterator = checkpointer.restore(target)
    assert iterator == {"next_index": 4}
    ours, theirs = jax.tree.leaves(state), jax.tree.leaves(target)
    assert all(a.sharding == b.sharding for a, b in zip(ours, theirs, strict=True))
    saved, _ = run(tmp_path, 4, mesh=(1, 8))
    check_same(state.method, saved)


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricWriter(tmp_path) as writer:
        writer.write_scalars(3, {"teacher/loss": 0.25})
        writer.write_images(3, {"teacher/samples": np.zeros((4, 5, 3), np.uint8)})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("teacher/loss")] == [(3, 0.25)]
    image = events.Images("teacher/samples")[0]
    assert (image.height, image.width) == (4, 5)


def test_a_log_file_drops_a_line_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    file = LogFile(path, keep=lambda row: row["a"] != 2)
    file.append({"a": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 3}]


def test_a_log_of_something_else_is_named(tmp_path):
    """By hand or by another program; in a line, not by a traceback."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/log.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(OSError, match=r"t/log\.jsonl has a row without a sound step"):
        run(tmp_path, 4)


def test_seconds_are_shown_as_people_read_them():
    assert [format_seconds(s) for s in (0, 75, 3675)] == ["0:00", "1:15", "1:01:15"]


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan, np.inf])
def test_learning_rates_are_positive_and_finite(rate):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite; got"):
        Optimizer(rate)


@pytest.mark.parametrize(
    "bad", [{"num_updates": 15}, {"num_updates": 0}, {"num_updates": 20, "save_every": 15}]
)
def test_loop_config_refuses(bad):
    with pytest.raises(ValueError, match=r"multiple of substeps|at least 1"):
        LoopConfig(**bad)


def test_state_is_made_where_it_belongs():
    """No leaf of a fresh state is ever whole on one device when the rule cuts it."""
    mesh = make_mesh(1, 8)
    state = init_state(beginning(METHOD), mesh, jax.random.key(0))
    kernel = state.model.network.params["block_0"]["mlp_in"]["kernel"]
    assert kernel.sharding.spec[1] == "fsdp"
    assert state.model.count.dtype == start_of(state, mesh).step.dtype == jnp.int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """Adds one to its state; tells norms that are not finite if it is made to."""

    bad: str = ""

    class State(struct.PyTreeNode):
        large: Any
        teacher: Any = frozen()

    def step(self, state, batch, key):
        norms = {name: jnp.where(self.bad == name, jnp.nan, 1.0) for name in NORMS}
        return state.replace(large=jax.tree.map(lambda a: a + 1, state.large)), norms


NORMS = ("grad_norm", "critic_grad_norm", "param_norm")


def test_an_update_is_donated_its_state_and_does_not_wait_for_the_new_norm():
    """Which reads all new parameters, so that none could take its place before."""
    mesh = make_mesh(1, 1, jax.devices()[:1])
    batch = {"index": np.zeros((1, 2), np.int32)}
    resident = {"image": DATA.images, "label": DATA.labels}
    for bad, kept in ("", True), ("param_norm", True), ("critic_grad_norm", False):
        large = {"a": jnp.zeros((64, 64)), "b": jnp.zeros(64, jnp.bfloat16)}
        state, held = take_frozen(Counting.State(large, jnp.zeros((128, 64))))
        state = start_of(state, mesh)
        update = compile_update(Counting(bad=bad), mesh, False)
        inputs = (state, held, resident, batch, KEY)
        compiled = update.lower(*inputs, np.zeros(1, np.int32), kinds=((),)).compile()
        donated = compiled.memory_analysis().alias_size_in_bytes
        assert donated == sum(a.nbytes for a in jax.tree.leaves(state))
        new, metrics = compiled(*inputs, np.zeros(1, np.int32))
        assert metrics["kept"].item() is kept
        np.testing.assert_array_equal(new.method.large["a"], float(kept))


def test_a_killed_run_has_every_log_row(tmp_path, monkeypatch):
    """Killed right after the save of step 8: its row was once still waiting to be written."""
    save = Checkpointer.save

    def save_and_die(self, step, *rest):
        save(self, step, *rest)
        if step == 8:
            self._manager.wait_until_finished()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointer, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 12)
    monkeypatch.setattr(Checkpointer, "save", save)
    _, log = run(tmp_path, 12)
    assert [row["step"] for row in log] == [4, 8, 12]


def spiky(
    num_updates, bad, directory, max_skipped=20, stop=None, cls=None, max_grad_norm=0.0, **kwargs
):
    """Trains a method whose loss and gradient are not finite at the updates in `bad`."""
    method, mesh = (cls or Spiky)(optimizer=OPTIMIZER), make_mesh()
    state = init_state(beginning(method), mesh, jax.random.key(0))
    keys = [jax.random.split(jax.random.fold_in(KEY, step))[1] for step in bad]
    keys = jax.random.key_data(jnp.stack([*keys, *[KEY] * (MOST - len(keys))]))
    state = state.replace(keys=jax.device_put(keys, replicated(mesh)))
    with MetricWriter(directory) as writer:
        state = train(
            method, state, Pipeline(DATA, 16, seed=1),
            LoopConfig(num_updates, 16, 2, 4, 4, max_skipped, max_grad_norm), KEY,
            name="t", directory=directory / "t", writer=writer, mesh=mesh, flip=True, stop=stop,
            **kwargs,
        )  # fmt: skip
    return state, read_jsonl(directory / "t" / "log.jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spiky(Teacher):
    """A teacher whose data turn to infinity at the updates of some keys: an update that is left out
    leaves no trace in its state. The keys are not part of it, so that runs share what is compiled.
    """

    class State(struct.PyTreeNode):
        model: Any
        keys: Any = frozen(default=None)

    def spike(self, state, key):
        return jnp.any(jnp.all(state.keys == jax.random.key_data(key)[None], axis=-1))

    def step(self, state, batch, key):
        image = jnp.where(self.spike(state, key), jnp.inf, batch["image"])
        return super().step(state, batch | {"image": image}, key)


MOST = 31  # updates that may be bad


@pytest.fixture(scope="module")
def four_good(tmp_path_factory):
    """The state after four updates, all of them good."""
    return spiky(4, (), tmp_path_factory.mktemp("four_good"))[0]


def test_updates_that_are_not_finite_are_left_out_and_counted(tmp_path, four_good):
    """Parameters, moments and average are as if these updates had not been."""
    state, log = spiky(8, (4, 5, 6, 7), tmp_path / "after")
    assert (log[-1]["step"], log[-1]["skipped"]) == (8, 4)
    check_same(state, four_good)

    state, log = spiky(12, (5, 8), tmp_path / "twice")
    assert state.model.count == 10
    chex.assert_tree_all_finite(state)
    assert [row["skipped"] for row in log] == [0, 1, 2]
    assert [row.get("left_out") for row in log] == [None, [6], [9]]  # counted from one
    assert all(np.isfinite(row["loss"]) for row in log)
    norms = log[1]["grad_norms"]
    assert list(norms) == ["5", "6", "7", "8"]
    assert norms["6"] in ("nan", "inf")
    assert float(norms["5"]) > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Large(Spiky):
    """Its data are a thousand times too large at these updates."""

    def step(self, state, batch, key):
        image = jnp.where(self.spike(state, key), 1000 * batch["image"], batch["image"])
        return Teacher.step(self, state, batch | {"image": image}, key)


def test_updates_of_too_large_a_gradient_are_left_out_too(tmp_path, four_good):
    """Finite, so they are used without a bound; with one, the state is as if they had not been."""
    after, log = spiky(8, (4, 5, 6, 7), tmp_path / "after", cls=Large, max_grad_norm=50.0)
    assert (log[-1]["step"], log[-1]["skipped"]) == (8, 4)
    check_same(after, four_good)
    assert log[0]["grad_norm"] < 50
    assert log[1]["left_out"] == [5, 6, 7]  # the first three
    assert all(50 < float(norm) < np.inf for norm in list(log[1]["grad_norms"].values())[-3:])
    with pytest.raises(Diverged, match=r"too large a gradient.* from update 5; .*max_skipped = 2;"):
        spiky(8, (4, 5, 6, 7), tmp_path / "stopped", 2, cls=Large, max_grad_norm=50.0)
    _, log = spiky(8, (4, 5, 6, 7), tmp_path / "unbounded", cls=Large)
    assert log[-1]["skipped"] == 0


def test_too_many_of_them_stop_the_run(tmp_path, capsys):
    """It names the update, shows the gradients around it, and keeps the last good checkpoint."""
    with pytest.raises(Diverged, match=r"from update 10; .*max_skipped = 1; .*checkpoint") as error:
        spiky(40, tuple(range(9, 40)), tmp_path, max_skipped=1)
    assert "nan at 10" in str(error.value)
    checkpoints = tmp_path / "t" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir() if p.name.isdigit()) == ["4", "8"]
    assert "grad_norm" in capsys.readouterr().err
    state, log = spiky(12, (), tmp_path)  # the same run without its cause goes on from there
    assert (state.model.count, log[-1]["step"], log[-1]["skipped"]) == (12, 12, 0)


def test_a_bound_below_what_was_left_out_already(tmp_path):
    spiky(8, (4, 5), tmp_path)
    with pytest.raises(Diverged, match=r"t: 2 were left out\. That is more than .* = 1;"):
        spiky(12, (), tmp_path, max_skipped=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worried(Spiky):
    """It finds something to say about every interval but the first."""

    def advice(self, means):
        return f"do better than {means['loss']:.3f}" if means["update"] > 4 else None

    def step(self, state, batch, key):
        new, metrics = super().step(state, batch, key)
        return new, metrics | {"update": state.model.count.astype(jnp.float32)}


def test_a_methods_advice_is_said(tmp_path, capsys):
    """After each interval whose means it dislikes. Every planned save is announced, once it is on
    disk if that is asked for."""
    saves = []

    def on_save(*save):
        saves.append(save)
        assert (tmp_path / f"t/checkpoints/{save[0]}").is_dir()

    how = {"cls": Worried, "on_save": on_save, "on_save_is_long": True}
    _, log = spiky(12, (), tmp_path, **how)
    said = [line for line in capsys.readouterr().err.splitlines() if "do better" in line]
    assert said == [f"{'t':<16} warning: do better than {row['loss']:.3f}" for row in log[1:]]
    assert [(step, int(state.model.count)) for step, state in saves[-1:]] == [(12, 12)]
    assert [step for step, _ in saves] == [4, 8, 12]


# --- Stopping and damage ------------------------------------------------------------------------


class StopAt:
    """Sends this process a signal when the data of update `index` are asked for."""

    def __init__(self, monkeypatch, index, number=signal.SIGTERM):
        original = Pipeline.iterator

        def iterator(pipeline, *args):
            batches = original(pipeline, *args)
            follow = type(batches).__next__

            class Batches(type(batches)):
                def __next__(self):
                    if self.get_state()["next_index"] == index:
                        os.kill(os.getpid(), number)
                    return follow(self)

            batches.__class__ = Batches
            return batches

        monkeypatch.setattr(Pipeline, "iterator", iterator)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, monkeypatch, undisturbed, number):
    """At update 6, between saves; the run then goes on to the same end, bit for bit."""
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        StopAt(patch, 6, number)
        with (
            StopSignals() as stop,
            pytest.raises(Interrupted, match=f"stopped by {number.name}: t is saved at step 8"),
        ):
            run(tmp_path, 12, save_every=12, log_every=12, stop=stop)
    assert signal.getsignal(number) == before
    state, log = run(tmp_path, 12)
    assert [row["step"] for row in log] == [8, 12]
    check_same(state, undisturbed[0])


def test_a_signal_in_the_last_updates_stops_too(tmp_path, monkeypatch, undisturbed):
    """Nothing is exported or measured any more; the same command then finds a finished run."""
    with monkeypatch.context() as patch:
        StopAt(patch, 10)
        with StopSignals() as stop, pytest.raises(Interrupted, match="t is saved at step 12"):
            run(tmp_path, 12, stop=stop)
    state, _ = run(tmp_path, 12)
    check_same(state, undisturbed[0])


def test_a_stop_at_a_planned_save_leaves_what_follows_to_the_next_start(tmp_path, monkeypatch):
    saves = []
    how = {"on_save": lambda step, state: saves.append((step, int(state.model.count)))}
    with monkeypatch.context() as patch:
        StopAt(patch, 6)
        with StopSignals() as stop, pytest.raises(Interrupted, match="t is saved at step 8"):
            spiky(8, (), tmp_path, stop=stop, **how)
    assert saves == [(4, 4)]
    spiky(8, (), tmp_path, **how)
    assert saves == [(4, 4), (8, 8)]


def test_in_what_takes_long_after_a_save_a_signal_stops_at_once(tmp_path):
    def on_save(step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    with StopSignals() as stop, pytest.raises(Interrupted, match=r"^stopped by SIGTERM$"):
        spiky(12, (), tmp_path, stop=stop, on_save=on_save, on_save_is_long=True)
    assert (tmp_path / "t/checkpoints/4").is_dir()


def test_outside_of_training_a_signal_stops_at_once():
    with StopSignals(), pytest.raises(Interrupted, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)

    def stop_twice(stop):
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == "SIGTERM"
            with pytest.raises(Interrupted):  # the second one does not wait
                os.kill(os.getpid(), signal.SIGTERM)

    with StopSignals() as stop, pytest.raises(Interrupted):  # in the end, if nobody has asked
        stop_twice(stop)


def damage(checkpoint, how):
    """Cuts or overwrites the largest file of a checkpoint, or removes it."""
    victim = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = victim.read_bytes()
    middle = len(data) // 2
    if how == "cut":
        victim.write_bytes(data[:middle])
    elif how == "overwritten":
        victim.write_bytes(data[:middle] + bytes(255 - b for b in data[middle : middle + 64])
                           + data[middle + 64 :])  # fmt: skip
    elif how == "missing":
        victim.unlink()
    else:
        shutil.rmtree(checkpoint / "state")


def test_a_checksum_without_a_program_is_that_of_one():
    tree = {
        "a": jax.random.normal(KEY, (70, 30)).T,
        "b": jnp.arange(7, dtype=jnp.bfloat16) - 3,
        "c": jnp.int32(-5),
        "d": jax.device_put(jnp.linspace(-1, 1, 16), make_mesh(1, 8).devices.flat[1]),
        "e": jnp.array([True, False, True]),
        "f": jnp.arange(-3, 4, dtype=jnp.int8),
        "g": jnp.array([250, 255], jnp.uint8),
        "h": jnp.array([0.5, -2.0], jnp.float8_e4m3fn),
    }
    for name, leaf in tree.items():
        assert arrays.checksum(leaf) > 0, name
    assert arrays.checksum(tree) == int(arrays._checksum(jax.device_put(tree, jax.devices()[0])))


def test_a_state_may_hold_numbers_of_all_kinds(tmp_path):
    """Small ones, and random keys, placed as they were."""
    mesh = make_mesh(1, 8)

    def state():
        tree = {
            "true": jnp.array([True, False]),
            "small": jnp.arange(-3, 4, dtype=jnp.int8),
            "float8": jnp.array([0.5, -2.0], jnp.float8_e4m3fn),
            "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        }
        return start_of(jax.device_put(tree, replicated(mesh)), mesh)

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, state(), {})
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(state())
    keys = restored.method["keys"]
    assert jax.random.key_impl(keys) == "rbg"
    assert keys.sharding.is_equivalent_to(replicated(mesh), 1)
    chex.assert_trees_all_equal(*(arrays.without_keys(tree) for tree in (restored, state())))


@pytest.mark.parametrize("how", ["cut", "overwritten", "missing", "no state"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(halted, capsys, undisturbed, how):
    damage(halted / "t" / "checkpoints" / "8", how)
    state, log = run(halted, 12)
    error = capsys.readouterr().err
    assert "checkpoints/8 is damaged; the one of step 4 is used" in error
    assert "resumes at step 4" in error
    assert (halted / "t" / "checkpoints" / "8.damaged").is_dir()
    assert [row["step"] for row in log] == [4, 8, 12]
    check_same(state, undisturbed[0])


@pytest.fixture
def two_saves(tmp_path):
    """A function to a state of so many updates, and a directory of checkpoints of 4 and 8."""
    mesh = make_mesh()

    def state(step=0):
        start = start_of(jax.device_put({"a": jnp.arange(5000.0)}, replicated(mesh)), mesh)
        return start.replace(step=start.step + step)

    with Checkpointer(tmp_path) as checkpointer:
        for step in (4, 8):
            checkpointer.save(step, state(step), {})
    return state, tmp_path


def test_a_checkpoint_may_be_damaged_twice(two_saves):
    """By the same disk, after it was made again."""
    state, directory = two_saves
    for _ in range(2):
        damage(directory / "8", "cut")
        with Checkpointer(directory) as checkpointer:
            assert int(checkpointer.restore(state())[0].step) == 4
            checkpointer.save(8, state(8), {})
    with Checkpointer(directory) as checkpointer:
        assert int(checkpointer.restore(state())[0].step) == 8


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), MemoryError(), ValueError("no")])
@pytest.mark.parametrize("times", [1, 9])
def test_an_error_of_reading_is_not_all_damage(two_saves, error, times):
    """One that is gone at once is nothing; one of the disk or of memory is waited for."""
    state, directory = two_saves
    with Checkpointer(directory) as checkpointer:
        read, errors = checkpointer._reader.restore, [error] * times

        def failing(step, args):
            if step == 8 and args.get("state") and errors:
                raise errors.pop()
            return read(step, args=args)

        checkpointer._reader.restore = failing
        if times > 1 and not isinstance(error, ValueError):
            with pytest.raises(CheckpointError, match=r"cannot read .*/8, which need not be dam"):
                checkpointer.restore(state())
        else:
            assert int(checkpointer.restore(state())[0].step) == (8 if times == 1 else 4)
    assert (directory / "8").exists() == (times == 1 or not isinstance(error, ValueError))


def test_an_error_of_the_disk_is_found_in_those_of_storage(two_saves):
    """A link to itself, which no disk that is whole has: too many levels of links."""
    state, directory = two_saves
    files = (path for path in (directory / "8").rglob("*") if path.is_file())
    victim = max(files, key=lambda path: path.stat().st_size)
    victim.unlink()
    victim.symlink_to(victim.name)
    with Checkpointer(directory) as checkpointer, pytest.raises(CheckpointError, match="need not"):
        checkpointer.restore(state())
    assert (directory / "8").exists()


def test_without_a_readable_checkpoint_nothing_is_thrown_away(halted):
    checkpoints = halted / "t" / "checkpoints"
    for step in ("4", "8"):
        damage(checkpoints / step, "cut")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read; move it away"):
        run(halted, 12)
    assert {"4", "8"} <= {p.name for p in checkpoints.iterdir()}


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    """Version 0.1.0 wrote one of another form, without saying so. It stays as it is."""
    path = tmp_path / "t" / "checkpoints"
    kernel = {"kernel": np.ones((2, 3), np.float32)}
    learner = {"params": kernel, "ema": kernel, "opt_state": [], "carried": {}}
    state = {"step": np.int32(4), "skipped": np.int32(0), "learners": {"model": learner}}
    about = {"iterator": {"next_index": 4}, "checksum": "0" * 16}
    with ocp.CheckpointManager(path) as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        manager.save(4, args=items)
    files = sorted(path.rglob("*"))
    with pytest.raises(CheckpointError, match=f"checkpoints in {path} are of another version of "):
        run(tmp_path, 8)
    assert sorted(path.rglob("*")) == files


@pytest.mark.parametrize("stopped", [False, True])
def test_a_full_disk_stops_the_run_and_spoils_nothing(tmp_path, monkeypatch, undisturbed, stopped):
    """Files may not grow beyond 20 kB from the second save on, which a checkpoint's arrays do. A
    run that a signal stops does not say then that it is saved."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Checkpointer.save

    def save_on_a_full_disk(self, step, *rest):
        if step == 8:
            self._manager.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        save(self, step, *rest)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "save", save_on_a_full_disk)
            if stopped:
                StopAt(patch, 6)
            with (
                StopSignals() as stop,
                pytest.raises(CheckpointError, match=r"cannot write .*saved before is whole"),
            ):
                run(tmp_path, 12, stop=stop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = {path.name for path in (tmp_path / "t" / "checkpoints").iterdir()}
    assert "4" in found
    assert "8" not in found
    state, log = run(tmp_path, 12)
    assert [row["step"] for row in log] == [4, 8, 12]
    check_same(state, undisturbed[0])


def test_a_directory_that_vanishes_is_named(tmp_path, monkeypatch):
    save = Checkpointer.save

    def save_and_remove(self, *args):
        save(self, *args)
        self._manager.wait_until_finished()
        shutil.rmtree(tmp_path / "t")

    monkeypatch.setattr(Checkpointer, "save", save_and_remove)
    with pytest.raises(OSError, match=r"No such file or directory: .*log\.jsonl"):
        run(tmp_path, 12)


def test_a_signal_while_the_last_save_ends_is_not_lost(tmp_path, monkeypatch):
    close = Checkpointer.__exit__

    def close_slowly(self, *error):
        close(self, *error)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "__exit__", close_slowly)
    with StopSignals() as stop, pytest.raises(Interrupted, match="stopped by SIGTERM"):
        run(tmp_path, 4, stop=stop)
    assert (tmp_path / "t/checkpoints/4").is_dir()
