"""Guided distillation against closed forms: classes N(+-1, s^2), N(0, s^2) without a label."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.methods import Guided, Progressive, Teacher, round_levels, two_step_target
from pdistill.networks import Diffuser, DiT, UNet
from pdistill.training import Optimizer

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
    _, metrics = jax.jit(method.step)(state, data(num), KEY)
    return metrics["loss"]


# --- Teacher ------------------------------------------------------------------------------------


def test_hidden_labels_train_the_unconditional_denoiser(x64, classes):
    """The loss of p hidden labels lies between those of none and of all, in proportion.

    With 4,096 examples p = 0.3 is met to 0.3 +- 0.007; 4 standard deviations are allowed.
    """

    def of(p):
        method = Teacher(classes, OPTIMIZER, label_dropout=p)
        return loss(method, method.init(KEY, (1,)))

    none, some, all_hidden = of(0.0), of(0.3), of(1.0)
    assert all_hidden > 1.2 * none  # the label tells something
    assert abs((some - none) / (all_hidden - none) - 0.3) < 0.03


def test_label_dropout_needs_labels(mlp):
    with pytest.raises(ValueError, match="label_dropout needs a network with labels"):
        Teacher(mlp, OPTIMIZER, label_dropout=0.1)


# --- Stage one ----------------------------------------------------------------------------------


@pytest.fixture
def guided(classes):
    return Guided(classes.with_guidance(), OPTIMIZER, teacher=classes, guidance=(0.5, 3.0))


def test_the_optimum_is_the_guided_pair_at_every_weight(x64, classes, guided):
    """The closed-form student has no loss, one that takes w for g = 1 + w has: pitfall 1."""
    state = guided.init(KEY, {"off": jnp.zeros(())}, (1,))
    assert loss(guided, state) < 1e-20

    class OffByOne(type(classes.network)):
        def __call__(self, z, logsnr, label=None, guidance=None, *, train=False):
            shifted = None if guidance is None else guidance - 1
            return super().__call__(z, logsnr, label, shifted, train=train)

    student = Diffuser(OffByOne(guidance=True), "v", SCHEDULE)
    wrong = Guided(student, OPTIMIZER, teacher=classes, guidance=(0.5, 3.0))
    state = wrong.init(KEY, {"off": jnp.zeros(())}, (1,))
    assert loss(wrong, state) > 1e-3


@pytest.mark.parametrize(
    "network",
    [
        DiT(1, patch=2, features=16, depth=1, heads=2, num_labels=3),
        UNet(1, channels=8, embedding_channels=16, multipliers=(1,), blocks=1, num_labels=3),
    ],
    ids=["dit", "unet"],
)
def test_the_student_starts_as_the_conditional_teacher(network):
    """G4, and G11: the weight's projection is zero and has a gradient at once."""
    teacher = Diffuser(network, "v", SCHEDULE)
    shapes = teacher.param_shapes((4, 4, 1))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)
    method = Guided(teacher.with_guidance(), OPTIMIZER, teacher=teacher)
    state = method.init(KEY, params, (4, 4, 1))
    student = state.learners["student"].params

    z = jax.random.normal(KEY, (3, 4, 4, 1))
    logsnr, label = jnp.array([-3.0, 0.0, 3.0]), jnp.array([0, 1, 2])
    desired = teacher.v(params, z, logsnr, label)
    for w in (0.0, 1.0, 4.0):
        found = method.diffuser.v(student, z, logsnr, label, jnp.full(3, w))
        np.testing.assert_allclose(found, desired, rtol=1e-5, atol=1e-5)

    batch = {"image": z, "label": label}
    after, _ = jax.jit(method.step)(state, batch, KEY)
    moved = after.learners["student"].params["guidance_in"]["linear"]["kernel"]
    assert np.abs(moved).max() > 0
    assert "guidance_in" not in params


@pytest.mark.parametrize(("discount", "power"), [(0.0, 2), (1.0, 1), (2.0, 0)])
def test_discounted_examples(x64, classes, discount, power):
    """An error of 1 + w costs (1 + w) ** (2 - discount)."""
    diffuser = classes.with_guidance()
    method = Guided(diffuser, OPTIMIZER, discount=discount, teacher=classes)
    params, z = {"off": jnp.zeros(())}, jax.random.normal(KEY, (5, 1))
    guided = method._guided(KEY, z)
    logsnr, label, w = jnp.linspace(-2, 2, 5), jnp.array([0, 1, 0, 1, 0]), guided["guidance"]
    v = diffuser.v(params, z, logsnr, label, w) + (1 + w)[:, None]
    examples = {"z": z, "logsnr": logsnr, "v": v, "label": label, **guided}
    _, metrics = method.regress(method._from(params, params), [examples], KEY)
    np.testing.assert_allclose(metrics["loss"], np.mean((1 + w) ** power), rtol=1e-12)


def test_guided_needs_a_teacher_that_can_be_guided():
    from pdistill.experiment.config import ConfigError, parse

    config = {
        "data": {"name": "digits"},
        "model": {
            "network": {"name": "dit", "arguments": {"features": 16, "heads": 2, "num_labels": 10}},
            "schedule": {"name": "cosine", "arguments": {}},
        },
        "stages": [
            {
                "name": "teacher", "method": "teacher", "num_steps": [4],
                "loop": {"num_updates": 10}, "optimizer": {"learning_rate": 1.0},
            },
            {
                "name": "guided", "method": "guided", "teacher": "teacher", "num_steps": [4],
                "loop": {"num_updates": 10}, "optimizer": {"learning_rate": 1.0},
            },
        ],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="'teacher' cannot be guided: train it with labels and"):
        parse(config).rounds((8, 8, 1))
    config["stages"][0]["label_dropout"] = 0.1
    teacher, student = parse(config).rounds((8, 8, 1))
    assert teacher.guidance == (0, np.inf)
    assert student.guidance == (0, 4)
    config["stages"][1]["guidance"] = [3.0, 1.0]
    with pytest.raises(ConfigError, match=r"guidance must be \(low, high\)"):
        parse(config).rounds((8, 8, 1))


# --- Stage two ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stochastic", [False, True])
def test_each_example_keeps_its_weight_through_a_round(x64, classes, stochastic):
    """With many steps the closed-form network is its own student, if w is the same everywhere."""
    method = Progressive(
        classes.with_guidance(), OPTIMIZER, guidance=(0.0, 4.0), stochastic=stochastic
    )
    params = {"off": jnp.zeros(())}
    bound = 4e-6 if stochastic else 1e-6  # steps twice as long, so four times the loss
    assert loss(method, method.init(params, 4096)) < bound
    without = Progressive(classes.with_guidance(), OPTIMIZER)
    assert loss(without, without.init(params, 4096)) < 1e-6
    # A student that is not told w cannot follow teachers that are.
    assert loss(method, method.init(params, 4)) > 1e-4


@pytest.mark.parametrize("w", [0.0, 1.7])
def test_rounds_keep_the_guided_sampler(x64, w):
    """G6: a table of linear denoisers of the guided flow, halved exactly from 32 to 1."""
    pair = diffusion.pair_of(Gaussian(0.0, 0.4).denoise, Gaussian(0.0, 0.8).denoise)
    denoise, num_steps = diffusion.guide(pair, w), 32
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
        gains = two_step_target(table(gains), jnp.ones((num_steps, 1)), t, m, s, last)
        np.testing.assert_allclose(end(table(gains), num_steps=num_steps), first, rtol=1e-9)


# --- The stochastic sampler's student -----------------------------------------------------------


def test_targets_of_double_steps(x64):
    """G9: from i = 1 the teacher's x_hat, from i = 2 its second one, else where two steps land."""
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
