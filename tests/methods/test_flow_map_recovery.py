"""Flow maps that are trained where the exact one is known: data at -1 and 1, unequally often."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from pdistill import diffusion, experiment
from pdistill.configs import digits_flow_map
from pdistill.diffusion import CosineSchedule, GaussianMixture
from pdistill.methods.flow_map import FlowMap
from pdistill.methods.parts.jumps import Cut, JumpLaw
from pdistill.networks import NOTHING, Conditioning, Network
from pdistill.training import Optimizer

SHARES, MEANS, STD = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), 0.4
MIXTURE = GaussianMixture(SHARES, MEANS[:, None], np.full(2, STD))
SCHEDULE = CosineSchedule(-10.0, 10.0)


class Velocity(nn.Module):
    """The exact denoiser, with a parameter that it does not need."""

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        self.param("none", nn.initializers.zeros, (), z.dtype)
        return MIXTURE.denoise(z, logsnr)


class Perceptron(nn.Module):
    target: bool = True

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        t = diffusion.angle(logsnr)[:, None]
        s = t if told.target is None else diffusion.angle(told.target)[:, None]
        h = jnp.concatenate([z, *(f(a) for a in (t, s, t - s) for f in (jnp.sin, jnp.cos))], 1)
        for _ in range(3):
            h = nn.swish(nn.Dense(64)(h))
        return nn.Dense(1)(h)


def exact(z, t, s):
    """Where the flow takes z [N] from angle t to s: quantiles stay. By bisection, in float64."""

    def quantile(z, t):
        deviation = np.hypot(STD * np.cos(t), np.sin(t))
        return SHARES @ scipy.stats.norm.cdf((z - MEANS[:, None] * np.cos(t)) / deviation)

    wanted, low, high = quantile(z, t), np.full_like(z, -9.0), np.full_like(z, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = quantile(middle, s) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def trained(method, updates, *, teacher):
    blank = functools.partial(Network, None, schedule=SCHEDULE, shape=(1,))
    model = blank(module=Perceptron(), head="v")
    given = {"start": model.init(jax.random.key(0)), "model": model}
    if teacher:
        given["teacher"] = blank(module=Velocity(), head="x").init(jax.random.key(1))
    method = method.over(updates)

    def update(state, key):
        data_key, key = jax.random.split(key)
        state, _ = method.step(state, {"image": MIXTURE.sample(data_key, 256)}, key)
        return state, None

    keys = jax.random.split(jax.random.key(2), updates)
    state, _ = jax.jit(lambda s: jax.lax.scan(update, s, keys))(
        method.init(jax.random.key(3), **given)
    )
    return method.product(state)


def error(network):
    """Root mean square distance to the exact map, over jumps of all lengths from where z lies."""
    rng, wrong = np.random.default_rng(0), []
    for t, s in ((1.5, 0.1), (1.5, 0.8), (1.2, 0.3), (0.8, 0.1), (0.5, 0.3)):
        data = rng.choice(MEANS, 500, p=SHARES) + STD * rng.normal(size=500)
        z = np.cos(t) * data + np.sin(t) * rng.normal(size=500)
        levels = [jnp.full(500, diffusion.logsnr_of_angle(jnp.array(a))) for a in (t, s)]
        jump = jax.jit(lambda z, t, s: network.jump(z, t, s, Conditioning(target=s)))
        wrong.append(
            np.asarray(jump(jnp.asarray(z[:, None], jnp.float32), *levels))[:, 0] - exact(z, t, s)
        )
    return float(np.sqrt(np.mean(np.square(wrong))))


def method(identity="eulerian", **values):
    optimizer = Optimizer(
        3e-3, anneal="cosine", warmup=100, b2=0.99, ema_decay=0.998, clip_norm=1.0
    )
    return FlowMap(
        optimizer=optimizer, identity=identity, jumps=JumpLaw(instantaneous=0.25), **values
    )


RECOVERIES = {
    "eulerian": method(),
    "lagrangian": method("lagrangian"),
    "semigroup": method("semigroup"),
    "short": method("semigroup", between=Cut(at="shrinking", least=1e-3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOVERIES)
def test_from_a_teachers_velocity(optimized, name):
    assert error(trained(RECOVERIES[name], 6000, teacher=True)) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eulerian", "short"])
def test_from_pairs_of_data_and_noise(optimized, name):
    assert error(trained(RECOVERIES[name], 12_000, teacher=False)) < 6e-2


def test_the_eulerian_identity_in_short(optimized):
    """A tenth of the training: far closer than the teacher's own jump, one step of DDIM."""
    short = dataclasses.replace(
        RECOVERIES["eulerian"],
        optimizer=dataclasses.replace(RECOVERIES["eulerian"].optimizer, ema_decay=0.98),
    )
    learnt = error(trained(short, 600, teacher=True))
    ddim = Network(None, module=Velocity(), head="x", schedule=SCHEDULE, shape=(1,))
    assert learnt < 0.3 * error(ddim.init(jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_no_update_is_left_out(optimized, tmp_path, seed):
    """From scratch, where nothing is warmed up by a teacher."""
    config = digits_flow_map.get_config()
    stage = {s["name"]: s for s in config.stages}["mean_flow"]
    stage["loop"].update(num_updates=1000, max_skipped=0)
    config.update(seed=seed, stages=(stage,))
    experiment.run(config, tmp_path)  # raises Diverged for the first that is
