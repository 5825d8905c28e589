"""Guided distillation against closed forms: classes N(+-1, s^2), N(0, s^2) without a label."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_networks import ClassNetwork
from stepping import compiled

from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.experiment.config import ConfigError, parse
from pdistill.experiment.plan import plan
from pdistill.methods import Guided, Progressive, Teacher
from pdistill.methods.parts.times import guidance_weights
from pdistill.methods.progressive import round_levels, two_step_target
from pdistill.networks import NOTHING, Conditioning, DiT, Network, UNet
from pdistill.training import Learner, Optimizer

OPTIMIZER = Optimizer(1e-3)
SCHEDULE = CosineSchedule()
KEY = jax.random.key(0)


def data(num):
    """Labels, and points with their class's law."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, num)
    image = (2 * label - 1)[:, None] + 0.4 * rng.normal(size=(num, 1))
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def loss(method, state, num=4096):
    _, metrics = compiled(method)(state, data(num), KEY)
    return metrics["loss"]


# --- Teacher ------------------------------------------------------------------------------------


def test_hidden_labels_train_the_unconditional_denoiser(x64, classes):
    """The loss of p hidden labels lies between those of none and of all, in proportion.

    With 4,096 examples p = 0.3 is met to 0.3 +- 0.007; 4 standard deviations are allowed.
    """

    def of(p):
        method = Teacher(optimizer=OPTIMIZER, label_dropout=p)
        return loss(method, method.init(KEY, model=classes))

    none, some, all_hidden = of(0.0), of(0.3), of(1.0)
    assert all_hidden > 1.2 * none  # the label tells something
    assert abs((some - none) / (all_hidden - none) - 0.3) < 0.03


def test_label_dropout_needs_labels(mlp):
    with pytest.raises(ValueError, match="label_dropout needs a network with labels"):
        Teacher(optimizer=OPTIMIZER, label_dropout=0.1).init(KEY, model=mlp)


# --- Stage one ----------------------------------------------------------------------------------


@pytest.fixture
def teacher(classes):
    """The closed-form classes, which can be guided by any weight."""
    return classes.replace(guidance=(0.0, np.inf)).init(KEY)


def test_the_optimum_is_the_guided_pair_at_every_weight(x64, teacher):
    """docs/methods/guided.md, G5: no loss, but for one that takes w for g = 1 + w."""
    method = Guided(optimizer=OPTIMIZER, guidance=(0.5, 3.0))
    state = method.init(KEY, teacher=teacher)
    assert state.student.network.guidance == (0.5, 3.0)
    assert loss(method, state) < 1e-20

    class OffByOne(ClassNetwork):
        def __call__(self, z, logsnr, told=NOTHING, *, train=False):
            shifted = None if told.guidance is None else told.guidance - 1
            return super().__call__(z, logsnr, told.replace(guidance=shifted), train=train)

    student = state.student.network.replace(module=OffByOne(guidance=True))
    state = state.replace(student=Learner.of(student, OPTIMIZER))
    assert loss(method, state) > 1e-3


@pytest.mark.parametrize(
    "network",
    [
        DiT(1, patch=2, features=16, depth=1, heads=2, num_labels=3),
        UNet(1, channels=8, embedding_channels=16, multipliers=(1,), blocks=1, num_labels=3),
    ],
    ids=["dit", "unet"],
)
def test_the_student_starts_as_the_conditional_teacher(network):
    """docs/methods/guided.md, G4 and G11: the weight's projection is zero and has a gradient."""
    blank = Network(
        None, module=network, head="v", schedule=SCHEDULE, shape=(4, 4, 1), guidance=(0.0, np.inf)
    )
    rng = np.random.default_rng(0)
    teacher = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), blank.shapes
    )
    method = Guided(optimizer=OPTIMIZER)
    state = jax.jit(lambda teacher: method.init(KEY, teacher=teacher))(teacher)
    v = jax.jit(Network.v)

    z = jax.random.normal(KEY, (3, 4, 4, 1))
    logsnr, label = jnp.array([-3.0, 0.0, 3.0]), jnp.array([0, 1, 2])
    desired = v(teacher, z, logsnr, Conditioning(label=label))
    for w in (0.0, 1.0, 4.0):
        found = v(state.student.network, z, logsnr, Conditioning(label, guidance=jnp.full(3, w)))
        np.testing.assert_allclose(found, desired, rtol=1e-5, atol=1e-5)

    after, _ = compiled(method)(state, {"image": z, "label": label}, KEY)
    moved = after.student.network.params["guidance_in"]["linear"]["kernel"]
    assert np.abs(moved).max() > 0
    assert "guidance_in" not in teacher.params


@pytest.mark.parametrize(("discount", "power"), [(0.0, 2), (1.0, 1), (2.0, 0)])
def test_discounted_examples(x64, teacher, discount, power):
    """An error of 1 + w costs (1 + w) ** (2 - discount)."""

    class OffBy(ClassNetwork):
        def __call__(self, z, logsnr, told=NOTHING, *, train=False):
            error = 0 if told.guidance is None else (1 + told.guidance)[:, None]
            return super().__call__(z, logsnr, told, train=train) + error

    method = Guided(optimizer=OPTIMIZER, discount=discount)
    state = method.init(KEY, teacher=teacher)
    student = state.student.network.replace(module=OffBy(guidance=True))
    state = state.replace(student=Learner.of(student, OPTIMIZER))
    weight_key = jax.random.split(KEY, 4)[3]
    w = guidance_weights(weight_key, 5, method.guidance, stratified=False, dtype=jnp.float64)
    assert float(w.std()) > 0.5
    np.testing.assert_allclose(loss(method, state, 5), np.mean((1 + w) ** power), rtol=1e-12)


def test_stratified_weights_do_not_go_with_stratified_times():
    """One in each of B equal intervals, in another order than the times."""
    keys = jax.random.split(KEY, 200)
    w = jax.vmap(lambda key: guidance_weights(key, 16, (1.0, 3.0), stratified=True))(keys)
    places = np.floor((np.asarray(w) - 1) * 8)
    np.testing.assert_array_equal(np.sort(places, axis=1), np.tile(np.arange(16), (200, 1)))
    # 200 means of 16 places whose deviation is 4.6: a standard deviation of 0.33.
    np.testing.assert_allclose(places.mean(axis=0), 7.5, atol=1.5)


def test_guided_needs_a_teacher_that_can_be_guided():
    config = {
        "data": {"name": "digits"},
        "model": {
            "network": {"name": "dit", "arguments": {"features": 16, "heads": 2, "num_labels": 10}},
            "schedule": {"name": "cosine", "arguments": {}},
        },
        "stages": [
            {
                "name": "teacher", "method": "teacher", "measured_at": [4],
                "loop": {"num_updates": 10}, "optimizer": {"learning_rate": 1.0},
            },
            {
                "name": "guided", "method": "guided", "teacher": "teacher", "measured_at": [4],
                "loop": {"num_updates": 10}, "optimizer": {"learning_rate": 1.0},
            },
        ],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="teacher cannot be guided: train it with labels or pro"):
        plan(parse(config), (8, 8, 1))
    config["stages"][0]["label_dropout"] = 0.1
    teacher, student = plan(parse(config), (8, 8, 1)).values()
    assert teacher.network.guidance == (0, np.inf)
    assert student.network.guidance == (0, 4)
    config["stages"][1]["guidance"] = [3.0, 1.0]
    with pytest.raises(ConfigError, match=r"guidance must be \(low, high\)"):
        parse(config)


# --- Stage two ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stochastic", [False, True])
def test_each_example_keeps_its_weight_through_a_round(x64, classes, stochastic):
    """With many steps the closed-form network is its own student, if w is the same everywhere."""
    method = Progressive(optimizer=OPTIMIZER, start_steps=8192, stochastic=stochastic)
    plain = classes.init(KEY)
    told = plain.replace(module=ClassNetwork(guidance=True), guidance=(0.0, 4.0))

    def loss_of(teacher, num_steps, method=method):
        return loss(method, method.init(KEY, teacher=teacher, num_steps=num_steps))

    bound = 4e-6 if stochastic else 1e-6  # steps twice as long, so four times the loss
    assert loss_of(told, 4096) < bound
    without = dataclasses.replace(method, stochastic=False)
    assert loss_of(plain, 4096, without) < 1e-6
    # A student that is not told w cannot follow teachers that are.
    assert loss_of(told, 4) > 1e-4


@pytest.mark.parametrize("w", [0.0, 1.7])
def test_rounds_keep_the_guided_sampler(x64, w):
    """docs/methods/guided.md, G6: linear denoisers of the guided flow, halved from 8 to 1."""
    pair = diffusion.pair_of(Gaussian(0.0, 0.4).denoise, Gaussian(0.0, 0.8).denoise)
    denoise, num_steps = diffusion.guide(pair, w), 8
    end = functools.partial(samplers.sample, key=None, schedule=SCHEDULE, z_init=jnp.ones((1, 1)))
    first = end(denoise, num_steps=num_steps)
    gains = denoise(jnp.ones((num_steps, 1)), SCHEDULE(jnp.arange(1, num_steps + 1) / num_steps))

    def table(gains):
        levels = SCHEDULE(jnp.arange(1, len(gains) + 1) / len(gains))

        def denoise(z, logsnr):
            nearest = jnp.argmin(jnp.abs(levels[:, None] - logsnr[None]), axis=0)
            return gains[nearest] * z

        return denoise

    while num_steps > 1:
        num_steps //= 2
        i = jnp.arange(1.0, num_steps + 1)
        t, m, s, last = round_levels(SCHEDULE, i, num_steps)
        target = jax.jit(functools.partial(two_step_target, table(gains)))
        gains = target(jnp.ones((num_steps, 1)), t, m, s, last)
        np.testing.assert_allclose(end(table(gains), num_steps=num_steps), first, rtol=1e-9)


# --- The stochastic sampler's student -----------------------------------------------------------


def test_targets_of_double_steps(x64):
    """docs/methods/guided.md, G9: x_hat from i = 1, the second from i = 2, else where two land."""
    teacher = Gaussian(0.3, 0.4).denoise
    num_steps, i = 8, jnp.arange(1.0, 9.0)
    z = jax.random.normal(KEY, (8, 3))
    t, m, s, last = round_levels(SCHEDULE, i, num_steps, length=2)
    target = two_step_target(teacher, z, t, m, s, last)
    level = functools.partial(diffusion.expand, like=z)
    z_m = samplers.ddim_step(z, teacher(z, t), level(t), level(m))
    np.testing.assert_allclose(target[0], teacher(z, t)[0], rtol=1e-12)
    np.testing.assert_allclose(target[1], teacher(z_m, m)[1], rtol=1e-12)
    z_s = samplers.ddim_step(z_m, teacher(z_m, m), level(m), level(s))
    landed = samplers.ddim_step(z, target, level(t), level(s))
    np.testing.assert_allclose(landed[2:], z_s[2:], rtol=1e-10)
    np.testing.assert_allclose(s[2:], SCHEDULE(jnp.arange(1, 7) / 8), rtol=1e-12)
