"""GAN fine-tuning: the order of updates, what is frozen, and what the generator is."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planning import TEACHER, plan_of, stage
from stepping import compiled, run, same

from pdistill import samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.methods import Gan, Progressive
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.methods.parts.generate import generate_few
from pdistill.networks import NOTHING, DiT, Network
from pdistill.runtime.mesh import batch_sharding, make_mesh, param_sharding
from pdistill.training import Optimizer, partition, preset

IMAGE = (8, 8, 1)
NETWORK = Network(
    None, DiT(out_channels=1, features=16, depth=1, heads=2), "v", CosineSchedule(), IMAGE
)
PIXELS = Judge(features="pixels", halvings=(2,), width=16, mixing=0)
ADAM = Optimizer(2e-2, b1=0.0, b2=0.99, clip_norm=0.0)
GENERATOR = Optimizer(1e-2, b1=0.0, b2=0.99, clip_norm=0.0, ema_decay=0.9)


def adversary(**changes):
    return Adversary(**{"judges": (PIXELS,), "optimizer": ADAM, "r1_interval": 3} | changes)


def gan(**changes):
    return Gan(**{"optimizer": GENERATOR, "adversary": adversary()} | changes)


def drawn(network, seed=0):
    """A network of any numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), network.shapes)


@pytest.fixture(scope="module")
def teacher():
    """A network without zeros, so that every gradient is alive."""
    return drawn(NETWORK)


@pytest.fixture(scope="module")
def batch():
    return {"image": jax.random.uniform(jax.random.key(2), (16, *IMAGE), minval=-1)}


def begin(method, teacher, **given):
    return jax.jit(method.init)(jax.random.key(3), teacher=teacher, **given)


def begun(method, teacher=NETWORK.shapes, **given):
    """Shapes of the state before the first update."""
    return jax.eval_shape(method.init, jax.random.key(3), teacher=teacher, **given)


def adam_states(learner):
    """Adam's part of a learner's optimizer state."""
    parts = jax.tree.leaves(learner.opt_state, is_leaf=lambda part: hasattr(part, "mu"))
    return [part for part in parts if hasattr(part, "mu")]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_generator_is_the_sampler(num_steps, x64):
    """Unrolled DDIM steps are `samplers.sample`'s."""
    z = jax.random.normal(jax.random.key(0), (6, 3), jnp.float64)
    denoise, schedule = Gaussian(0.3, 0.7).denoise, CosineSchedule()
    desired = samplers.sample(denoise, None, z_init=z, schedule=schedule, num_steps=num_steps)
    actual = generate_few(denoise, z, schedule, num_steps)
    np.testing.assert_allclose(actual, desired, rtol=1e-12)


def test_at_first_it_is_the_teacher(teacher):
    """docs/methods/gan.md, A5, also with frozen parameters: exported as it came, bit for bit."""
    for fixed in ("none", "dit"):
        method = gan(fixed=fixed)
        product = method.product(begin(method, teacher))
        chex.assert_trees_all_equal(product.params, teacher.params)
        assert product.module == teacher.module


def test_from_scratch_it_is_not(teacher):
    """Not of the form of the teacher either, if another network is asked for."""
    same_form, other = (gan(scratch=True, network=network) for network in ({}, {"features": 8}))
    product = same_form.product(begin(same_form, teacher))
    assert not same(product.params, teacher.params)
    assert product.module == teacher.module
    product = other.product(begun(other))
    assert product.params["position"].shape == (16, 8)


def test_it_may_start_from_another_model(teacher):
    """Beside the teacher, with which its judges see."""
    judge = dataclasses.replace(PIXELS, features="teacher", halvings=(1,))
    method = gan(adversary=adversary(judges=(judge,)))
    small = drawn(NETWORK.with_module({"features": 8}), seed=1)
    state = begin(method, teacher, start=small)
    chex.assert_trees_all_equal(method.product(state).params, small.params)
    chex.assert_trees_all_equal(state.eyes["teacher"].params, teacher.params)


@pytest.mark.parametrize("fixed", ["dit", pytest.param("dit_qkv", marks=pytest.mark.slow)])
def test_frozen_parameters(fixed, teacher, batch):
    """No moments for them, and after updates not a bit has changed; all the others have."""
    method = gan(fixed=fixed)
    state = begin(method, teacher)
    learning, held = partition(state.generator.network.params, preset(fixed))
    [adam] = adam_states(state.generator)
    assert jax.tree.structure(adam.mu) == jax.tree.structure(learning)
    states, _ = run(method, state, batch, 3)
    product = method.product(states[-1])
    assert jax.tree.structure(product.params) == jax.tree.structure(teacher.params)
    for network in (product, states[-1].generator.network):
        changed, kept = partition(network.params, preset(fixed))
        chex.assert_trees_all_equal(kept, held)
        for old, new in zip(jax.tree.leaves(learning), jax.tree.leaves(changed), strict=True):
            assert not np.array_equal(old, new)


RATE = {"anneal": "linear", "num_updates": 12, "clip_norm": 0.0}
ENDING = gan(
    optimizer=Optimizer(1e-2, **RATE),
    adversary=adversary(optimizer=Optimizer(1e-2, **RATE), r1=1.0),
)


def test_order_of_updates(teacher, batch):
    """docs/methods/gan.md, A10: generator, discriminator, then R1 at 3, 6, ... but not 0.

    Both rates end together: R1's updates count in the discriminator's, which once ended first: then
    nothing held the generator back.
    """
    states, rows = run(ENDING, begin(ENDING, teacher), batch, 12)
    assert ["r1" in row for row in rows] == [number in (3, 6, 9) for number in range(12)]
    assert all(row["r1"] > 0 for row in rows if "r1" in row)

    learners = states[12].generator, states[12].critic
    [[generator], [critic]] = (adam_states(learner) for learner in learners)
    assert (generator.count, critic.count) == (12, 15)  # three of the critic's are R1's
    assert [int(learner.count) for learner in learners] == [12, 15]
    schedule = ENDING.adversary.lazy_optimizer.schedule()
    assert float(schedule(int(critic.count) - 1)) > 0
    assert float(schedule(int(critic.count) + 2)) == 0


@pytest.mark.parametrize("mover", ["generator", "critic"])
def test_each_update_moves_its_own_network(mover, teacher, batch):
    """With the other's learning rate too small for single precision the other stays."""
    still = {"learning_rate": 1e-60}
    method = (
        gan(adversary=adversary(optimizer=dataclasses.replace(ADAM, **still)))
        if mover == "generator"
        else gan(optimizer=dataclasses.replace(GENERATOR, **still))
    )
    states, _ = run(method, begin(method, teacher), batch, 1)
    for name in ("generator", "critic"):
        old, new = (getattr(state, name).network for state in states)
        assert same(new, old) == (name != mover)


def test_weight_of_r1(teacher, batch):
    """Its gradient is that of interval * r1 / 2 * penalty, on images without augmentation."""
    judging = adversary(augmentations=("color",), r1=0.7)
    state, x = begin(gan(adversary=judging), teacher), batch["image"]

    def loss(discriminator):
        plain = discriminator.replace(augmentations=())

        def total(x):
            logits, _ = plain(state.eyes, state.critic.carried, x, None, jax.random.key(9))
            return logits[0].sum()

        return 3 * 0.7 / 2 * jnp.sum(jax.grad(total)(x) ** 2) / len(x)

    desired = jax.jit(jax.grad(loss))(state.critic.network)
    new, _ = jax.jit(judging.update_r1)(state.critic, state.eyes, x, None, jax.random.key(0))
    [adam] = adam_states(new)
    decay = judging.lazy_optimizer.b1
    assert decay == 0.0  # so that the first moment is the gradient
    # Biases that a normalization undoes have no gradient but rounding.
    rounding = 1e-6 * max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(desired))
    chex.assert_trees_all_close(adam.mu, desired, rtol=1e-3, atol=rounding)


def test_lazy_optimizer():
    """docs/methods/gan.md, A8: lr * 16 / 17 and beta2 ** (16 / 17)."""
    optimizer = adversary(r1_interval=16).lazy_optimizer
    assert optimizer.learning_rate == pytest.approx(2e-2 * 16 / 17)
    assert optimizer.b2 == pytest.approx(0.99 ** (16 / 17))
    assert adversary(r1=0.0).lazy_optimizer == ADAM
    assert Adversary(judges=(PIXELS,), optimizer=ADAM).r1_interval == 16


def test_average_ramps_up():
    """docs/methods/gan.md, A7: a half-life of its own or of 0.05 of the updates so far, if less."""
    optimizer = Optimizer(1e-3, ema_decay=0.5 ** (1 / 100), ema_ramp=0.05)
    decays = [float(optimizer.ema_decay_at(jnp.asarray(n))) for n in (0, 1, 20, 400, 10_000)]
    desired = [0, 0.5**20, 0.5, 0.5 ** (1 / 20), 0.5 ** (1 / 100)]
    np.testing.assert_allclose(decays, desired, rtol=1e-6)


class Shift(nn.Module):
    """A generator of N(mean, 1) from noise: x_hat = mean + z, as v of the pure noise."""

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        mean = self.param("mean", nn.initializers.zeros, (1, 1, 1, 1))
        return -(mean + z)


def test_it_finds_the_data():
    """A generator with one parameter, its mean, finds that of the data."""
    judge = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)
    method = gan(
        optimizer=dataclasses.replace(ADAM, ema_decay=0.98),
        adversary=Adversary(judges=(judge,), optimizer=ADAM, r1=0.1),
    )
    network = Network(None, Shift(), "v", CosineSchedule(), (4, 4, 1)).init(jax.random.key(0))
    state = method.init(jax.random.key(1), teacher=network)

    def one_with(parts):
        return lambda state, batch, key: method.step(state, batch, key, parts)[0]

    @jax.jit
    def update(state, number):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), number))
        batch = {"image": 0.8 + jax.random.normal(data_key, (64, 4, 4, 1))}
        due = (number > 0) & (number % method.adversary.r1_interval == 0)
        kinds = one_with(method.parts(16)), one_with(method.parts(1))
        return jax.lax.cond(due, *kinds, state, batch, key), None

    state, _ = jax.lax.scan(update, state, jnp.arange(400))
    # One batch knows its mean to 1 / sqrt(64 * 16) = 0.03.
    assert float(method.product(state).params["mean"].squeeze()) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("mesh", [pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)], ids=str)
def test_one_device_and_eight(mesh, teacher, batch):
    """The batch's statistics are those of all devices: the same numbers, learners cut or not."""
    wide = dataclasses.replace(PIXELS, halvings=(1,), width=256)  # with kernels that are cut
    judging = adversary(judges=(wide,), r1=1.0, r1_interval=1)
    method = gan(adversary=judging, fixed="dit")
    _, alone = run(method, begin(method, teacher), batch, 3, first=1)
    mesh = make_mesh(*mesh, jax.devices())
    state = begin(method, teacher)
    shardings = param_sharding(state, mesh)
    cut = [s for s in jax.tree.leaves(shardings) if not s.is_fully_replicated]
    assert bool(cut) == (mesh.shape["fsdp"] > 1)
    state = jax.device_put(state, shardings)
    _, spread = run(method, state, jax.device_put(batch, batch_sharding(mesh)), 3, first=1)
    for one, eight in zip(alone, spread, strict=True):
        for name, value in one.items():
            assert eight[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def test_advice():
    method = gan()
    assert method.advice({"discriminator_loss": 1.2}) is None
    assert "lower adversary.optimizer" in method.advice({"discriminator_loss": 0.001})


def test_updates_whose_r1_is_not_finite_are_seen(teacher, batch):
    """The loop leaves out updates of which a metric is not finite: R1's gradient is one."""
    state, step = begin(ENDING, teacher), compiled(ENDING, ENDING.parts(3))
    _, metrics = step(state, batch, jax.random.key(0))
    assert metrics["r1_grad_norm"] > 0
    broken = batch | {"image": batch["image"].at[0].set(jnp.inf)}
    _, metrics = step(state, broken, jax.random.key(0))
    assert not np.isfinite(metrics["r1_grad_norm"])


# --- What it is given, and what it makes ----------------------------------------------------------


def test_a_stage_after_no_other():
    with pytest.raises(ValueError, match="no earlier stage makes"):
        plan_of(NETWORK.module, TEACHER, stage(gan(), given={"teacher": "progressive/2"}))


def test_what_it_makes():
    one, two = gan(fixed="dit"), gan(num_steps=2)
    state = begun(one)
    assert (one.product(state).sampler, one.measured_at) == ("one_step", (1,))
    state = begun(two)
    assert (two.product(state).sampler, two.measured_at) == ("", (2,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gan(fixed="half"), "fixed must be one of none, d2o_f"),
        (lambda: gan(fixed="unet"), "no parameter's path has"),
        (lambda: gan(adversary=adversary(loss="wasserstein")), "one of non_saturating, hinge"),
        (lambda: gan(adversary=adversary(r1=-1.0)), "r1 must not be negative"),
        (lambda: gan(adversary=adversary(r1=float("nan"))), "r1 must not be negative"),
        (lambda: gan(adversary=adversary(r1_interval=0)), "r1_interval at least 1"),
        (lambda: gan(optimizer=Optimizer(1e-3, microbatches=2)), "whole batch"),
        (lambda: gan(num_steps=0), "at least 1"),
        (
            lambda: gan(adversary=adversary(optimizer=Optimizer(1e-3, microbatches=2))),
            "whole batch",
        ),
        (
            lambda: gan(adversary=adversary(optimizer=Optimizer(1e-3, ema_decay=0.9))),
            "without a moving average",
        ),
        (lambda: gan(adversary=judged(halvings=(1, 1))), "judges: .*there are 1"),
        (lambda: gan(adversary=judged(halvings=(4,))), "judges: .*8 x 8 places cannot be halved 4"),
        (lambda: gan(adversary=adversary(strength=20.0)), "strength must be in"),
        (lambda: gan(network={"features": 8}), "set scratch"),
        (lambda: gan(network={"width": 8}, scratch=True), "has no 'width'"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        begun(make())


def judged(**changes):
    return adversary(judges=(dataclasses.replace(PIXELS, **changes),))


def test_one_step_generators_are_no_teachers():
    """But a GAN may go on from one, and see with it."""
    first = gan().product(begun(gan()))
    assert gan().product(begun(gan(), first)).sampler == "one_step"
    student = Progressive(optimizer=Optimizer(1e-3), start_steps=2)
    with pytest.raises(ValueError, match="knows a few noise levels only"):
        begun(student, first, num_steps=1)


def test_guided_students_are_refused():
    guided = NETWORK.with_module({"guidance": True}).shapes
    with pytest.raises(ValueError, match="takes guidance weights as an input, which this method"):
        begun(gan(), guided)
