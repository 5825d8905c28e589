"""The design's own test: a method of one file and one config, with nothing else touched."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from mean_flow import MeanFlow
from planning import plan_of, stage

import pdistill
from pdistill.configs import digits_pd
from pdistill.diffusion import CosineSchedule, Gaussian, angle, expand, v_from_x
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.methods import Method
from pdistill.methods.method import optional_roles, roles
from pdistill.networks import NOTHING, DiT, Network
from pdistill.training import Optimizer

pytestmark = pytest.mark.eight_devices

SMALL = {
    "num_updates": 4, "batch_size": 16, "substeps": 2, "log_every": 2, "save_every": 4
}  # fmt: skip


def config(method="mean_flow:MeanFlow"):
    found = digits_pd.get_config()
    found.model.network.arguments.update(features=16, depth=1, heads=2)
    teacher, _ = found.stages
    teacher["loop"] = SMALL
    teacher["optimizer"]["warmup"] = 2
    teacher["measured_at"] = (2,)
    flow_map = {
        "name": "flow_map",
        "method": method,
        "teacher": "teacher",
        "loop": SMALL,
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
        "instantaneous": 0.25,
    }
    found.stages = (teacher, flow_map)
    found.evaluation = {"num_samples": 64, "metrics": ("fd_pixels",), "references": ("train",)}
    return found


def test_it_trains_is_exported_and_measured(finished):
    workdir = finished(config())
    model = pdistill.load(workdir / "flow_map")
    assert model.card["method"] == "mean_flow"
    assert model.sampling.solver.jumps
    images = model.sample(jax.random.key(0), num=2, num_steps=2)
    assert images.shape == (2, 8, 8, 1)
    log = (workdir / "flow_map/log.jsonl").read_text()
    assert "residual" in log


class Exact(nn.Module):
    """F of the exact flow map of N(0, std^2), whose v does not depend on where it leads."""

    std: float = 0.5
    target: bool = True

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        phi = expand(angle(logsnr), z)
        if told.target is None:
            return v_from_x(z, Gaussian(0.0, self.std).denoise(z, logsnr), logsnr) + off
        psi = expand(angle(told.target), z)
        scale = lambda phi: jnp.sqrt(self.std**2 * jnp.cos(phi) ** 2 + jnp.sin(phi) ** 2)  # noqa: E731
        z_s = z * scale(psi) / scale(phi)
        turn = phi - psi
        away = jnp.where(turn == 0, 1.0, jnp.sin(turn))
        flow = (jnp.cos(turn) * z - z_s) / away
        v = v_from_x(z, Gaussian(0.0, self.std).denoise(z, logsnr), logsnr)
        return jnp.where(turn == 0, v, flow) + off


def test_the_exact_flow_map_of_a_gaussian_has_no_residual(x64):
    network = Network(
        None, module=Exact(), head="v", schedule=CosineSchedule(-10.0, 10.0), shape=(3,)
    ).init(jax.random.key(0))
    network = jax.tree.map(lambda a: a.astype(jnp.float64), network)
    method = MeanFlow(optimizer=Optimizer(1e-3), instantaneous=0.0, power=0.0)
    state = method.init(jax.random.key(1), teacher=network)
    x = 0.5 * jax.random.normal(jax.random.key(2), (64, 3), jnp.float64)
    _, metrics = jax.jit(method.step)(state, {"image": x}, jax.random.key(3))
    assert float(metrics["residual"]) < 1e-18  # cancellation of float64, squared
    spoilt = state.student.network.replace(params={"off": jnp.ones((), jnp.float64)})
    state = state.replace(student=state.student.replace(network=spoilt))
    _, metrics = jax.jit(method.step)(state, {"image": x}, jax.random.key(3))
    assert float(metrics["residual"]) > 1e-3


class Plain(Method):
    name = "plain"


@dataclasses.dataclass
class Thawed(Method):
    name: ClassVar[str] = "thawed"


@dataclasses.dataclass(frozen=True)
class Nameless(Method):
    def init(self, key: jax.Array, *, teacher: "Network", start: "Network | None" = None):
        return teacher

    def product(self, state):
        return state


@dataclasses.dataclass(frozen=True)
class Idle(Method):
    name: ClassVar[str] = "idle"


def test_networks_are_known_by_annotations_that_are_text():
    """As all are in a file with `from __future__ import annotations`."""
    assert roles(Nameless) == ("teacher", "start")
    assert optional_roles(Nameless) == ("start",)
    with pytest.raises(ConfigError, match="it needs 'teacher', the name of an earlier stage"):
        plan_of(DiT(1, features=8, depth=1, heads=2), stage(Nameless(), "mine", given={}))


def test_names_that_only_type_checkers_import():
    """Those of other arguments may be unknown."""
    names = {}
    exec("def init(self, key: 'Array', *, start: 'Network | None' = None): ...", names)
    method = SimpleNamespace(init=names["init"])
    assert optional_roles(method) == roles(method) == ("start",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean_flow", "or a class of your own as module:Class"),
        ("no_such_module:MeanFlow", "cannot be imported"),
        ("pdistill.methods:NoSuchMethod", "cannot be imported"),
        ("mean_flow:jnp", "is not a subclass"),
        ("test_new_method:Plain", "'test_new_method:Plain' must be a frozen dataclass: write @"),
        ("test_new_method:Thawed", "must be a frozen dataclass"),
        ("test_new_method:Nameless", "needs a name for its results"),
        ("test_new_method:Idle", "needs the functions init and product"),
    ],
)
def test_a_wrong_name_is_one_clear_message(name, message):
    with pytest.raises(ConfigError, match=message):
        parse(as_plain(config(name)))
