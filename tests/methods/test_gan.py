"""GAN fine-tuning: the order of updates, what is frozen, and what the generator is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from stepping import compiled, run, same

from pdistill import samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.methods import Gan, GanStage, ProgressiveStage, Teacher
from pdistill.methods.adversarial import Discriminator, Judge
from pdistill.methods.adversary import Adversary
from pdistill.methods.generator import generate_few
from pdistill.methods.stage import Round
from pdistill.networks import Diffuser, DiT
from pdistill.runtime.mesh import batch_sharding, make_mesh, param_sharding
from pdistill.training import PRESETS, LoopConfig, Optimizer

NETWORK = DiT(out_channels=1, features=16, depth=1, heads=2)
DIFFUSER = Diffuser(NETWORK, "v", CosineSchedule())
SMALL = DIFFUSER.with_network({"features": 8})
IMAGE = (8, 8, 1)
PIXELS = Judge(features="pixels", halvings=(2,), width=16, mixing=0)
ADAM = Optimizer(2e-2, b1=0.0, b2=0.99, clip_norm=0.0)


def adversary(**changes):
    settings = {
        "discriminator": Discriminator((PIXELS,), DIFFUSER), "optimizer": ADAM, "r1_interval": 3,
    }  # fmt: skip
    return Adversary(**settings | changes)


SETTINGS = {
    "diffuser": DIFFUSER,
    "optimizer": Optimizer(1e-2, b1=0.0, b2=0.99, clip_norm=0.0, ema_decay=0.9),
    "adversary": adversary(),
}


@pytest.fixture(scope="module")
def teacher():
    """Parameters without zeros, so that every gradient is alive."""
    params = jax.jit(lambda: DIFFUSER.init(jax.random.key(0), IMAGE))()
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def batch():
    return {"image": jax.random.uniform(jax.random.key(2), (16, *IMAGE), minval=-1)}


def start(method, teacher, generator=None):
    init = functools.partial(method.init, image_shape=IMAGE)
    return jax.jit(init)(jax.random.key(3), generator or teacher, teacher)


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
    """Card, test 5, also with frozen parameters: exported as it came, bit for bit."""
    for preset in ("none", "dit"):
        method = Gan(**SETTINGS, frozen=PRESETS[preset])
        assert same(method.export(start(method, teacher)), teacher)


def test_from_scratch_it_is_not(teacher):
    """Not of the form of the teacher either, if another network is asked for."""
    same_form, other = (
        stage(scratch=True, network=network).rounds(DIFFUSER, IMAGE, teacher_round())[0]
        for network in ({}, {"features": 8})
    )
    state = jax.jit(same_form.init)(jax.random.key(3), teacher)
    assert not same(same_form.method.export(state), teacher)
    state = jax.jit(other.init)(jax.random.key(3), teacher)
    assert other.method.export(state)["position"].shape == (16, 8)


def test_it_may_start_from_another_model(teacher):
    """Which its round names besides the teacher."""
    earlier = teacher_round()
    earlier["small"] = dataclasses.replace(
        earlier["teacher"], name="small", method=Teacher(SMALL, Optimizer(1e-3))
    )
    [r] = stage(start="small").rounds(DIFFUSER, IMAGE, earlier)
    assert (r.parent, r.teacher) == ("small", "teacher")
    small = jax.jit(lambda: SMALL.init(jax.random.key(5), IMAGE))()
    state = jax.jit(r.init)(jax.random.key(3), small, teacher)
    assert same(r.method.export(state), small)


@pytest.mark.parametrize("preset", ["dit", "dit_qkv"])
def test_frozen_parameters(preset, teacher, batch):
    """No moments for them, and after updates not a bit has changed; all the others have."""
    method = Gan(**SETTINGS, frozen=PRESETS[preset])
    state = start(method, teacher)
    learning = state.learners["student"].params
    [adam] = adam_states(state.learners["student"])
    assert jax.tree.structure(adam.mu) == jax.tree.structure(learning)
    before = jax.tree.map(np.asarray, state.frozen["student"])
    states, _ = run(method, state, batch, 3)
    assert same(states[-1].frozen["student"], before)
    exported = method.export(states[-1])
    assert jax.tree.structure(exported) == jax.tree.structure(teacher)
    for old, new in zip(
        jax.tree.leaves(learning), jax.tree.leaves(states[-1].learners["student"].params),
        strict=True,
    ):  # fmt: skip
        assert not np.array_equal(old, new)


def test_order_of_updates(teacher, batch):
    """Card, section 3: generator, then discriminator, then R1 at updates 3, 6, ... but not 0."""
    method = Gan(**SETTINGS | {"adversary": adversary(r1=1.0)})
    states, rows = run(method, start(method, teacher), batch, 7)
    assert [row["r1"] > 0 for row in rows] == [False, False, False, True, False, False, True]

    counts = {
        name: [int(adam.count) for adam in adam_states(learner)]
        for name, learner in states[7].learners.items()
    }
    assert counts == {"student": [7], "discriminator": [9]}  # two of them R1's


def test_each_update_moves_its_own_network(teacher, batch):
    method, x = Gan(**SETTINGS), batch["image"]
    state = start(method, teacher)
    key = jax.random.key(0)
    updates = {
        "student": lambda s: method._update_generator(s, x, None, key),
        "discriminator": lambda s: method.adversary.update_discriminator(s, -x, x, None, key, key),
    }
    for mover, update in updates.items():
        new, _ = jax.jit(update)(state)
        for name in state.learners:
            old = state.learners[name].params
            assert same(new.learners[name].params, old) == (name != mover)


def test_weight_of_r1(teacher, batch):
    """Its gradient is that of interval * r1 / 2 * penalty, on images without augmentation."""
    augmented = Discriminator((PIXELS,), DIFFUSER, ("color",))
    judging = adversary(discriminator=augmented, r1=0.7)
    method = Gan(**SETTINGS | {"adversary": judging})
    state, x = start(method, teacher), batch["image"]
    learner = state.learners["discriminator"]

    def loss(params):
        def total(x):
            logits, _ = adversary().discriminator(
                params, state.frozen["discriminator"], learner.carried, x, None, jax.random.key(9)
            )
            return logits[0].sum()

        return 3 * 0.7 / 2 * jnp.sum(jax.grad(total)(x) ** 2) / len(x)

    desired = jax.jit(jax.grad(loss))(learner.params)
    new, _ = jax.jit(judging.update_r1)(state, x, None, jax.random.key(0))
    [adam] = adam_states(new.learners["discriminator"])
    decay = judging.lazy_optimizer.b1
    assert decay == 0.0  # so that the first moment is the gradient
    for ours, theirs in zip(jax.tree.leaves(adam.mu), jax.tree.leaves(desired), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def test_lazy_optimizer():
    """Card, test 8: lr * 16 / 17 and beta2 ** (16 / 17)."""
    optimizer = adversary(r1_interval=16).lazy_optimizer
    assert optimizer.learning_rate == pytest.approx(2e-2 * 16 / 17)
    assert optimizer.b2 == pytest.approx(0.99 ** (16 / 17))
    assert adversary(r1=0.0).lazy_optimizer == ADAM


def test_both_schedules_end_together(teacher, batch):
    """R1's updates count in the discriminator's, which once ended first: then nothing held the
    generator back."""
    rate = {"anneal": "linear", "num_updates": 12, "clip_norm": 0.0}
    judging = adversary(optimizer=Optimizer(1e-2, **rate))
    method = Gan(DIFFUSER, Optimizer(1e-2, **rate), judging)
    states, _ = run(method, start(method, teacher), batch, 12)
    [adam] = adam_states(states[12].learners["discriminator"])
    schedule = judging.lazy_optimizer.schedule()
    assert float(schedule(int(adam.count) - 1)) > 0
    assert float(schedule(int(adam.count) + 2)) == 0


def test_average_ramps_up():
    """Card, test 7: the half-life is the lesser of its own and 0.05 of the updates so far."""
    optimizer = Optimizer(1e-3, ema_decay=0.5 ** (1 / 100), ema_ramp=0.05)
    decays = [float(optimizer.ema_decay_at(jnp.asarray(n))) for n in (0, 1, 20, 400, 10_000)]
    desired = [0, 0.5**20, 0.5, 0.5 ** (1 / 20), 0.5 ** (1 / 100)]
    np.testing.assert_allclose(decays, desired, rtol=1e-6)


class Shift(nn.Module):
    """A generator of N(mean, 1) from noise: x_hat = mean + z, as v of the pure noise."""

    @nn.compact
    def __call__(self, z, logsnr, label=None, guidance=None, *, train=False):
        mean = self.param("mean", nn.initializers.zeros, (1, 1, 1, 1))
        return -(mean + z)


def test_it_finds_the_data():
    """A generator with one parameter, its mean, finds that of the data."""
    diffuser = Diffuser(Shift(), "v", CosineSchedule())
    judge = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)
    method = Gan(
        diffuser, dataclasses.replace(ADAM, ema_decay=0.98),
        Adversary(Discriminator((judge,), diffuser), ADAM, r1=0.1),
    )  # fmt: skip
    teacher = diffuser.init(jax.random.key(0), (4, 4, 1))
    state = method.init(jax.random.key(1), teacher, teacher, (4, 4, 1))

    @jax.jit
    def update(state, _):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), state.step))
        x = 0.8 + jax.random.normal(data_key, (64, 4, 4, 1))
        state, _ = method.step(state, {"image": x}, key)
        return state.replace(step=state.step + 1), None

    state, _ = jax.lax.scan(update, state, length=400)
    # One batch knows its mean to 1 / sqrt(64 * 16) = 0.03.
    assert float(method.export(state)["mean"].squeeze()) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
def test_one_device_and_eight(mesh, teacher, batch):
    """The batch's statistics are those of all devices: the same numbers, learners cut or not."""
    wide = Discriminator((dataclasses.replace(PIXELS, width=64),), DIFFUSER)
    judging = adversary(discriminator=wide, r1=1.0)
    method = Gan(**SETTINGS | {"adversary": judging}, frozen=PRESETS["dit"])
    _, alone = run(method, start(method, teacher), batch, 4)
    mesh = make_mesh(*mesh)
    state = start(method, teacher)
    shardings = param_sharding(state, mesh)
    cut = [s for s in jax.tree.leaves(shardings) if not s.is_fully_replicated]
    assert bool(cut) == (mesh.shape["fsdp"] > 1)
    state = jax.device_put(state, shardings)
    _, spread = run(method, state, jax.device_put(batch, batch_sharding(mesh)), 4)
    for one, eight in zip(alone, spread, strict=True):
        for name, value in one.items():
            assert eight[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def test_advice():
    method = Gan(**SETTINGS)
    assert method.advice({"discriminator_loss": 1.2}) is None
    assert "lower discriminator_optimizer" in method.advice({"discriminator_loss": 0.001})


# --- The stage ------------------------------------------------------------------------------------

LOOP = LoopConfig(10, 16, log_every=10, save_every=10)


def stage(**changes):
    settings = {
        "name": "gan", "loop": LOOP, "optimizer": Optimizer(1e-3), "teacher": "teacher",
        "judges": (PIXELS,), "discriminator_optimizer": Optimizer(1e-3),
    }  # fmt: skip
    return GanStage(**settings | changes)


def teacher_round(diffuser=DIFFUSER):
    method = Teacher(diffuser, Optimizer(1e-3))
    return {"teacher": Round("teacher", "teacher", method, lambda *_: None, LOOP, (4,))}


def test_rounds():
    [one] = stage(frozen="dit").rounds(DIFFUSER, IMAGE, teacher_round())
    assert (one.solver, one.num_steps, one.parent) == ("one_step", (1,), "teacher")
    assert 0 < one.trainable_fraction < 0.5
    [two] = stage(num_steps=2).rounds(DIFFUSER, IMAGE, teacher_round())
    assert (two.solver, two.num_steps, two.trainable_fraction) == (None, (2,), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": "half"}, "frozen must be one of none, d2o_f"),
        ({"frozen": "unet"}, "no parameter's path has"),
        ({"teacher": "progressive/2"}, "no earlier stage makes"),
        ({"loss": "wasserstein"}, "loss must be one of non_saturating, hinge"),
        ({"r1": -1.0}, "r1 must not be negative"),
        ({"r1_interval": 0}, "r1_interval at least 1"),
        ({"optimizer": Optimizer(1e-3, microbatches=2)}, "whole batches"),
        ({"num_steps": 0}, "at least 1"),
        ({"r1": float("nan")}, "r1 must not be negative"),
        ({"discriminator_optimizer": Optimizer(1e-3, ema_decay=0.9)}, "no moving average"),
        ({"judges": (dataclasses.replace(PIXELS, halvings=(1, 1)),)}, "judges: .*there are 1"),
        ({"judges": (dataclasses.replace(PIXELS, halvings=(4,)),)}, "judges: "),
        ({"strength": 20.0}, "strength must be in"),
        ({"network": {"features": 8}}, "set scratch"),
        ({"network": {"width": 8}, "scratch": True}, "has no 'width'"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        stage(**changes).rounds(DIFFUSER, IMAGE, teacher_round())


def test_one_step_generators_are_no_teachers():
    """But a GAN may go on from one."""
    earlier = teacher_round()
    [generator] = stage(name="first").rounds(DIFFUSER, IMAGE, earlier)
    earlier["first"] = generator
    assert stage(teacher="first").rounds(DIFFUSER, IMAGE, earlier)[0].parent == "first"
    student = ProgressiveStage(
        name="p", loop=LOOP, optimizer=Optimizer(1e-3), teacher="first", start_steps=2
    )
    with pytest.raises(ValueError, match="that it generates at only"):
        student.rounds(DIFFUSER, IMAGE, earlier)


def test_updates_whose_r1_is_not_finite_are_seen(teacher, batch):
    """The loop leaves out updates of which a metric is not finite: R1's gradient is one."""
    method = Gan(**SETTINGS | {"adversary": adversary(r1=1.0)})
    state = start(method, teacher).replace(step=jnp.asarray(3))
    _, metrics = compiled(method)(state, batch, jax.random.key(0))
    assert metrics["r1_grad_norm"] > 0
    broken = batch | {"image": batch["image"].at[0].set(jnp.inf)}
    _, metrics = compiled(method)(state, broken, jax.random.key(0))
    assert not np.isfinite(metrics["r1_grad_norm"])


def test_guided_students_are_refused():
    guided = teacher_round(DIFFUSER.with_guidance())
    with pytest.raises(ValueError, match="takes guidance weights, this method does not"):
        stage().rounds(DIFFUSER, IMAGE, guided)
