"""Optimizer, moving average, gradients and sharding against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pdistill.runtime.mesh import batch_sharding, make_mesh, param_sharding, replicated
from pdistill.training import Learner, Optimizer, value_and_grad, vjp

pytestmark = pytest.mark.eight_devices


def numpy_adamw(params, grads, rates, b1, b2, eps, weight_decay, clip):
    """AdamW (Loshchilov & Hutter 2019) with clipping by global norm, one tensor, all updates."""
    m = v = np.zeros_like(params)
    history = []
    for k, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        grad = grad * min(1.0, clip / np.linalg.norm(grad))
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step = m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + eps)
        params = params - rate * (step + weight_decay * params)
        history.append(params)
    return history


def test_updates_and_ema_follow_their_definitions(x64):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(6, 5)) * 3
    optimizer = Optimizer(
        0.1, num_updates=6, warmup=2, anneal="linear", weight_decay=0.01, b2=0.95, ema_decay=0.9
    )
    rates = [0.0, 0.05, 0.1, 0.075, 0.05, 0.025]  # warm up over 2, then fall to 0 at 6
    expected = numpy_adamw(start, grads, rates, 0.9, 0.95, 1e-8, 0.01, clip=1.0)

    learner = Learner.of({"w": jnp.asarray(start)}, optimizer)
    ema = None
    for k, grad in enumerate(grads):
        learner, norms = learner.update({"w": jnp.asarray(grad)})
        ema = expected[k] if k == 0 else 0.9 * ema + 0.1 * expected[k]
        # optax computes the learning rate in float32
        np.testing.assert_allclose(learner.network["w"], expected[k], rtol=1e-7)
        np.testing.assert_allclose(learner.average["w"], ema, rtol=1e-7)
        np.testing.assert_allclose(norms["grad_norm"], np.linalg.norm(grad), rtol=1e-12)
        assert learner.count == k + 1


@pytest.mark.parametrize("b2", [0.999, 0.9])
def test_radam_follows_its_definition(x64, b2):
    """Liu et al. (2020), algorithm 2: momentum alone while at most 5 samples are averaged."""
    rng = np.random.default_rng(0)
    w, grads, rate, b1 = rng.normal(size=5), rng.normal(size=(12, 5)), 0.1, 0.9
    optimizer = Optimizer(rate, rule="radam", b1=b1, b2=b2, clip_norm=0.0)
    learner = Learner.of({"w": jnp.asarray(w)}, optimizer)
    m = v = np.zeros(5)
    most, rectified = 2 / (1 - b2) - 1, []
    for k, grad in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step, length = m / (1 - b1**k), most - 2 * k * b2**k / (1 - b2**k)
        rectified.append(length > 5)
        if length > 5:
            ratio = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
            step = np.sqrt(ratio) * step / (np.sqrt(v / (1 - b2**k)) + 1e-8)
        w = w - rate * step
        learner, _ = learner.update({"w": jnp.asarray(grad)})
        np.testing.assert_allclose(learner.network["w"], w, rtol=1e-6)
    assert 0 < sum(rectified) < 12


def test_without_ema_decay_the_average_is_the_parameters():
    learner = Learner.of({"w": jnp.ones(3)}, Optimizer(0.1))
    for _ in range(3):
        learner, _ = learner.update({"w": jnp.ones(3)})
        np.testing.assert_array_equal(learner.average["w"], learner.network["w"])


def test_a_learner_can_be_donated():
    """Parameters and average are two buffers, at the start and after an update without EMA."""
    params = {"w": jnp.ones(3)}
    step = jax.jit(lambda s: s.update({"w": jnp.ones(3)})[0], donate_argnums=0)
    learner = step(step(Learner.of(params, Optimizer(0.1))))
    assert jnp.isfinite(learner.network["w"]).all()
    assert not params["w"].is_deleted()


def test_cosine_schedule_has_its_closed_form():
    schedule = Optimizer(2.0, num_updates=110, warmup=10, anneal="cosine").schedule()
    k = np.arange(10, 111)
    expected = 1 + np.cos(np.pi * (k - 10) / 100)
    np.testing.assert_allclose([schedule(float(i)) for i in k], expected, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1.0, "anneal": "step"},
        {"learning_rate": 1.0, "rule": "sgd"},
        {"learning_rate": 1.0, "ema_decay": 1.0},
        {"learning_rate": 1.0, "microbatches": 0},
        {"learning_rate": 1.0, "anneal": "linear", "warmup": 5, "num_updates": 5},
    ],
)
def test_optimizer_refuses(bad):
    with pytest.raises(ValueError):
        Optimizer(**bad)


def test_microbatches_accumulate_the_same_gradient(x64):
    x = jax.random.normal(jax.random.key(0), (12, 3))

    def loss(w, x, key):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    def accumulated(parts):
        learner = Learner.of(jnp.array([0.3, -1.0, 0.5]), Optimizer(0.1, microbatches=parts))
        return value_and_grad(loss, learner, x, jax.random.key(1))

    whole = accumulated(1)
    for parts in (2, 3, 12):
        chex.assert_trees_all_close(accumulated(parts), whole, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="divide"):
        accumulated(5)


def test_a_pull_back_in_microbatches_is_the_whole_one(x64):
    """In the rows' order, for any cotangent."""
    x, cotangent = (jax.random.normal(jax.random.key(i), (12, 3)) for i in range(2))
    w = {"w": jax.random.normal(jax.random.key(2), (3, 3))}

    def pulled(parts):
        learner = Learner.of(w, Optimizer(0.1, microbatches=parts))
        result, pull_back = vjp(lambda w, x: jnp.tanh(x @ w["w"]), learner, x)
        return result, pull_back(cotangent)

    whole = pulled(1)
    for parts in (2, 12):
        chex.assert_trees_all_close(pulled(parts), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("optimizer", "how", "message"),
    [
        (Optimizer(0.1, microbatches=2), {"whole_batches": True}, "microbatches at 1"),
        (Optimizer(0.1, ema_decay=0.9), {"averaged": False}, "ema_decay and ema_ramp at 0"),
        (Optimizer(0.1, ema_ramp=0.1), {"averaged": False}, "ema_decay and ema_ramp at 0"),
        (Optimizer(0.1, ema_widths=(0.1,)), {"averaged": False}, "ema_widths empty"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(optimizer, how, message):
    with pytest.raises(ValueError, match=message):
        Learner.of({"w": jnp.ones(3)}, optimizer, **how)


def test_the_rule_cuts_the_largest_divisible_axis():
    mesh = make_mesh(2, 4)
    shapes = {
        "wide": jax.ShapeDtypeStruct((64, 256), jnp.float32),
        "tall": jax.ShapeDtypeStruct((3, 3, 512, 64), jnp.float32),
        "odd": jax.ShapeDtypeStruct((4096 + 1, 6), jnp.float32),
        "small": jax.ShapeDtypeStruct((64,), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, param_sharding(shapes, mesh))
    assert specs["wide"] == P(None, "fsdp")
    assert specs["tall"] == P(None, None, "fsdp")
    assert specs["odd"] == specs["small"] == P()


@pytest.mark.parametrize("shape", [(3, 2), (9, 1), (0, 1), (-1, 3), (-1, -1)])
def test_a_mesh_must_fit_the_devices(shape):
    with pytest.raises(ValueError, match="devices"):
        make_mesh(*shape)


def test_microbatches_stay_on_their_devices():
    """Each takes examples from every device: gradients are reduced, examples are not gathered."""
    mesh = make_mesh(8, 1)
    place = jax.jit(lambda: (jnp.ones((3, 3)), jnp.ones((64, 3))), out_shardings=(
        replicated(mesh), batch_sharding(mesh)
    ))  # fmt: skip

    def loss(w, x, key):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    def step(w, x):
        learner = Learner.of(w, Optimizer(0.1, microbatches=4))
        return value_and_grad(loss, learner, x, jax.random.key(0))

    program = jax.jit(step).lower(*place()).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
