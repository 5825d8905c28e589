"""Guidance inside a flow map's training, its learnt weight, and differences for derivatives."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn
from flax.core import FrozenDict
from planning import TEACHER, plan_of, stage
from stepping import run

from pdistill import diffusion
from pdistill.diffusion import CosineSchedule
from pdistill.diffusion.guidance import acting
from pdistill.methods.flow_map import FlowMap
from pdistill.methods.parts.identities import eulerian
from pdistill.methods.parts.jumps import JumpLaw
from pdistill.methods.parts.own_guidance import draw_guidance, draw_levels, guided
from pdistill.methods.parts.weights import LogVariance
from pdistill.model import Model
from pdistill.networks import Conditioning, DiT, Network
from pdistill.training import Optimizer

SCHEDULE = CosineSchedule(-20.0, 20.0)
BATCH = {
    "image": jax.random.normal(jax.random.key(5), (16, 4, 4, 1)),
    "label": jnp.arange(16) % 3,
}


def method(**values):
    values = {"jumps": JumpLaw(to="below", instantaneous=0.25)} | values
    return FlowMap(optimizer=Optimizer(1e-3, num_updates=4), **values)


def model(**arguments):
    arguments = {"num_labels": 3} | arguments
    module = DiT(1, features=16, depth=1, heads=2, time_scale=16.0, **arguments)
    return Network(None, module=module, head="v", schedule=SCHEDULE, shape=(4, 4, 1))


def examples(method, state, key):
    """The rows of BATCH, compiled."""
    return jax.jit(method.examples)(state, BATCH, key)


velocity = jax.jit(Network.v)


def randomised(network, seed=8):
    """The network with parameters that are nowhere zero."""
    network = network.init(jax.random.key(7))
    drawn = optax.tree.random_like(jax.random.key(seed), network.params)
    return network.replace(params=optax.tree.add_scale(network.params, 0.2, drawn))


class Velocities(nn.Module):
    """Label 0: (1 + w) c - w u with w as it is told, or `weight`; no label: u."""

    num_labels: int = 1
    guidance: bool = True
    target: bool = True
    weight: float = 0.0

    @nn.compact
    def __call__(self, z, logsnr, told, *, train=False):
        self.param("none", nn.initializers.zeros, ())
        w = jnp.full(len(z), self.weight) if told.guidance is None else told.guidance
        c, u = labelled(z), free(z)
        own = c + diffusion.expand(w, z) * (c - u)
        return jnp.where(diffusion.expand(told.label, z) == 0, own, u)


def labelled(z):
    return jnp.sin(2 * z)


def free(z):
    return 0.3 * z


@pytest.mark.parametrize("omega", [1.0, 0.2])
@pytest.mark.parametrize("told_weight", [True, False])
def test_the_guided_velocity_is_a_fixed_point(omega, told_weight):
    """A network that is guided already stays so: its target is what it says, for any omega."""
    w = jnp.array([0.5, 1.5, 3.0]) if told_weight else jnp.full(3, 1.5)
    module = Velocities(guidance=told_weight, weight=0.0 if told_weight else 1.5)
    network = Network({}, module=module, head="v", schedule=SCHEDULE, shape=(2,))
    network = network.init(jax.random.key(0))
    z, t = jax.random.normal(jax.random.key(1), (3, 2)), jnp.zeros(3)
    told = Conditioning(label=jnp.zeros(3, int), guidance=w if told_weight else None)
    found = guided(network, z, t, told, w, labelled(z), omega)
    c, u = np.asarray(labelled(z)), np.asarray(free(z))
    np.testing.assert_allclose(found, c + np.asarray(w)[:, None] * (c - u), atol=1e-5)
    none = guided(network, z, t, told, jnp.zeros(3), z, omega)
    np.testing.assert_array_equal(none, z)  # the pair's own


def test_omega_is_the_share_of_the_pair():
    network = Network({}, module=Velocities(), head="v", schedule=SCHEDULE, shape=(2,))
    network = network.init(jax.random.key(0))
    z, w = jnp.ones((3, 2)), jnp.full(3, 1.5)
    told = Conditioning(label=jnp.zeros(3, int), guidance=w)
    slope = lambda omega: jax.jvp(  # noqa: E731
        lambda pair: guided(network, z, jnp.zeros(3), told, w, pair, omega), (z,), (z,)
    )[1]
    assert not slope(0.2).any()  # a target has no gradient
    change = [guided(network, z, jnp.zeros(3), told, w, pair, 0.2) for pair in (z, 2 * z)]
    np.testing.assert_allclose(change[1] - change[0], 0.2, rtol=1e-5)


def test_the_law_of_the_weights():
    network, key = model(), jax.random.key(0)
    told = Conditioning(jnp.where(jnp.arange(4096) < 400, 3, 1))
    w = np.asarray(draw_guidance(key, (0.5, 7.0), told, network))
    assert (w[:400] == 0).all()  # hidden labels
    share = np.log1p(w[400:]) - np.log(1.5)
    assert scipy.stats.kstest(share / np.log(8.0 / 1.5), "uniform").pvalue > 1e-3
    w = draw_guidance(key, (1.5,), told, network)
    np.testing.assert_allclose(w[400:], 1.5, rtol=1e-6)
    away = draw_guidance(key, (1.5,), told, network.replace(guide=network))
    np.testing.assert_allclose(away, 1.5, rtol=1e-6)  # from a guide, whatever is told


def test_guidance_acts_between_levels():
    """Not outside, where the velocity is the pair's; the student is told the weight everywhere,
    since its jump from outside passes through."""
    learning = method(guidance=(0.5, 7.0), label_dropout=0.1, guided_levels=(-1.0, 2.0))
    plain = dataclasses.replace(learning, guided_levels=())
    state = learning.init(jax.random.key(0), model=model(), start=randomised(model()))
    rows, all_levels = (examples(m, state, jax.random.key(3)) for m in (learning, plain))
    free = examples(dataclasses.replace(plain, guidance=()), state, jax.random.key(3))
    inside = (rows.t >= -4) & (rows.t <= 2)  # log(sigma / alpha) = -t / 2
    assert 0 < inside.sum() < len(inside)
    inside = diffusion.expand(inside, rows.v)
    np.testing.assert_allclose(rows.v, jnp.where(inside, all_levels.v, free.v), atol=1e-5)
    assert jnp.abs(all_levels.v - free.v).max() > 0.1
    np.testing.assert_array_equal(rows.told.guidance, rows.w)
    assert (rows.w[rows.told.label != 3] >= 0.5).all()


@pytest.mark.parametrize("levels", [(-np.inf, 1.0), (-1.0, np.inf)])
def test_guidance_may_act_on_all_of_one_side(levels):
    t = jnp.linspace(-9, 9, 19)
    found = acting(jnp.ones(19), draw_levels(None, t, t, model(), levels), t)
    low, high = levels
    np.testing.assert_array_equal(found, (-t / 2 >= low) & (-t / 2 <= high))


def test_levels_as_an_input():
    """Improved MeanFlow's law: a time below one half to one above, all where nothing is jumped."""
    learning = method(
        guidance=(0.0, 7.0), label_dropout=0.1, own_velocity=True,
        jumps=JumpLaw(instantaneous=0.5), network=FrozenDict(guidance_levels=True),
    )  # fmt: skip
    with pytest.raises(ValueError, match="weight 0: let guidance begin there"):
        dataclasses.replace(learning, guidance=(0.5, 7.0)).init(jax.random.key(0), model=model())
    state = learning.init(jax.random.key(0), model=model(), start=randomised(model()))
    network = state.student.network
    assert network.takes_guidance_levels
    rows = examples(learning, state, jax.random.key(3))
    still, middle = rows.t == rows.s, network.schedule(jnp.array(0.5))
    assert 0 < still.sum() < len(still)
    assert jnp.isinf(rows.told.guidance_levels[still]).all()
    low, high = rows.told.guidance_levels[~still].T
    assert jnp.isfinite(low).all() & jnp.isfinite(high).all()
    assert ((low < middle) & (middle < high)).all()
    # The velocity at a level is that of all levels, with the weight that acts there.
    told = rows.told_at(rows.t)
    assert told.guidance_levels is None
    outside = (rows.t < rows.levels[:, 0]) | (rows.t > rows.levels[:, 1])
    assert outside.any()
    np.testing.assert_array_equal(told.guidance, jnp.where(outside, 0.0, rows.w))

    states, logged = run(learning, state, BATCH, 2)
    assert np.isfinite([row["loss"] for row in logged]).all()
    product = learning.product(states[-1])
    kernel = product.params["guidance_levels_in"]["Dense_0"]["kernel"]
    assert jnp.abs(kernel).max() > 0  # what is told is learnt from

    def said(levels):
        return velocity(product, rows.z, rows.t, rows.told.replace(guidance_levels=levels))

    everywhere = jnp.broadcast_to(jnp.array([-jnp.inf, jnp.inf]), (16, 2))
    np.testing.assert_array_equal(said(None), said(everywhere))
    assert not np.array_equal(said(None), said(jnp.clip(everywhere, -1.0, 1.0)))


def test_it_is_measured_at_one_to_four_jumps():
    assert method().measured_at == (1, 2, 4)


def test_weights_as_an_input():
    learning = method(guidance=(0.5, 7.0), label_dropout=0.3, own_velocity=True)
    state = learning.init(jax.random.key(0), model=model(), start=randomised(model()))
    states, rows = run(learning, state, BATCH, 2)
    product = learning.product(states[-1])
    assert product.takes_guidance
    assert product.guidance == (0.5, 7.0)
    assert np.isfinite([row["loss"] for row in rows]).all()
    kernel = states[-1].student.network.params["guidance_in"]["linear"]["kernel"]
    assert jnp.abs(kernel).max() > 0  # what is told is learnt from
    rows = examples(learning, state, jax.random.key(3))
    hidden = rows.told.label == 3
    assert hidden.any()
    np.testing.assert_array_equal(rows.w == 0, hidden)
    np.testing.assert_array_equal(rows.told.guidance, rows.w)


def test_a_guided_teacher():
    """Its velocities are guided, where the jump begins and where it ends; the student is told
    the weight."""
    teacher = randomised(model()).replace(guidance=(0.0, np.inf))
    learning = method(identity="lagrangian", guidance=(0.5, 3.0))
    state = learning.init(jax.random.key(0), model=model(), teacher=teacher)
    rows = examples(learning, state, jax.random.key(3))
    told = Conditioning(label=rows.told.label)
    c = velocity(teacher, rows.z, rows.t, told)
    u = velocity(teacher, rows.z, rows.t, Conditioning(label=jnp.full(16, 3)))
    np.testing.assert_allclose(rows.v, c + diffusion.expand(rows.w, c) * (c - u), atol=2e-5)
    _, target = jax.jit(learning.sides)(state.student.network, state, rows)
    t, s = (diffusion.expand(diffusion.angle(a), c) for a in (rows.t, rows.s))
    told = rows.told.replace(target=rows.s)
    F = velocity(state.student.network, rows.z, rows.t, told)
    end = jnp.cos(t - s) * rows.z - jnp.sin(t - s) * F
    there = velocity(teacher, end, rows.s, Conditioning(label=rows.told.label, guidance=rows.w))
    jump = (rows.t != rows.s).nonzero()[0]
    np.testing.assert_allclose(target[jump], there[jump], atol=2e-5)


def test_a_guide_leads_a_teacher_without_labels():
    network = model(num_labels=0)
    teacher = randomised(network).guided_by(randomised(network, 9))
    learning = method(guidance=(1.5,))
    state = learning.init(jax.random.key(0), model=network, teacher=teacher)
    rows = examples(learning, state, jax.random.key(3))
    np.testing.assert_allclose(rows.w, 1.5, rtol=1e-6)
    own, other = (velocity(n, rows.z, rows.t, rows.told) for n in (teacher, teacher.guide))
    assert jnp.abs(own - other).max() > 0.1
    np.testing.assert_allclose(rows.v, own + 1.5 * (own - other), atol=2e-5)


def test_weights_of_a_guide_need_no_label():
    """A map that takes the weights of its teacher's guide is sampled with them."""
    network = model(num_labels=0)
    teacher = network.shapes.guided_by(network.shapes)
    learning, key = method(guidance=(0.0, 4.0)), jax.random.key(0)
    init = lambda key: learning.init(key, model=network, teacher=teacher)  # noqa: E731
    product = randomised(learning.product(jax.eval_shape(init, key)))
    card = {"num_steps": 1, "solver": product.sampler, "clip": None}
    unled, led = (Model(product, card).sample(key, 2, guidance=w) for w in (0.0, 2.0))
    assert jnp.abs(led - unled).max() > 0.01
    teacher = Model(network.replace(guidance=(0.0, np.inf)), card)
    with pytest.raises(ValueError, match="guidance is towards a label; give label too"):
        teacher.told(2, guidance=2.0)


def test_a_teacher_with_nothing_to_guide_by():
    network = model(num_labels=0)
    teacher = randomised(network).replace(guidance=(0.0, np.inf))
    with pytest.raises(ValueError, match="teacher cannot be guided: train it with labels"):
        method(guidance=(1.5,)).init(jax.random.key(0), model=network, teacher=teacher)


def test_a_learnt_weight():
    """w is the log of the expected mean square: there its gradient is zero, and the weight is
    exp(-w) / D."""
    learning = method(learnt_weight=True)
    state = learning.init(jax.random.key(0), model=model())
    rows = examples(learning, state, jax.random.key(3))
    square = 0.2 + jax.random.uniform(jax.random.key(4), (16, 16))
    bias = jnp.log(jnp.mean(square))[None]
    params = jax.tree.map(jnp.zeros_like, state.weight.network)
    params["w"]["bias"] = bias
    at = state.replace(weight=state.weight.replace(network=params))
    weight, slopes = learning.weigh(at, rows, square)
    np.testing.assert_allclose(weight, 1 / (jnp.mean(square) * 16), rtol=1e-5)
    assert abs(float(slopes["w"]["bias"][0])) < 1e-6
    below, more = learning.weigh(state, rows, 3 * square)  # w = 0 at first
    np.testing.assert_allclose(below, 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(more["w"]["bias"], 1 - 3 * jnp.mean(square), rtol=1e-5)
    border = JumpLaw(level=(0.0, 1.0), least=(0.5,), to="data", border=0.3)
    rows = rows._replace(t=jnp.where(jnp.arange(16) < 4, -1.0, -2.0))
    weighed = dataclasses.replace(learning, jumps=border).weigh(at, rows, square)
    plain = learning.weigh(at, rows, square)
    np.testing.assert_allclose(weighed[0], plain[0] * jnp.where(rows.t == -1, 0.3, 1), rtol=1e-6)
    chex.assert_trees_all_close(weighed[1], plain[1])  # or w would learn it away
    states, _ = run(learning, state, BATCH, 1)
    moved = states[1].weight.network["w"]["kernel"]
    assert jnp.abs(moved).max() > 0


def test_a_learnt_weight_beside_several_averages():
    """Which are the student's alone."""
    optimizer = Optimizer(1e-3, ema_widths=(0.1, 0.05))
    learning = dataclasses.replace(method(learnt_weight=True), optimizer=optimizer)
    state = learning.init(jax.random.key(0), model=model())
    assert len(state.student.average) == 2
    assert state.weight.average is None


def test_the_learnt_weight_knows_both_levels():
    module = LogVariance()
    params = module.init(jax.random.key(0), jnp.zeros(1), jnp.zeros(1))["params"]
    params = jax.tree.map(lambda a: jnp.ones_like(a) * 0.1, params)
    t, s = jnp.array([-2.0, -2.0, 1.0]), jnp.array([1.0, 4.0, 1.0])
    w = module.apply({"params": params}, t, s)
    assert len(set(np.asarray(w).round(4))) == 3
    known = LogVariance(waves=32, time_scale=16.0).apply({"params": params}, t, s)
    np.testing.assert_array_equal(w, known)


def test_a_difference_for_the_derivative(x64):
    """Second order in its step."""
    F = lambda z, t, s: jnp.sin(2 * z + t) * jnp.cos(s)  # noqa: E731
    z, t, s = jnp.array([0.5, -1.3]), jnp.array([1.2, 0.9]), jnp.array([0.4, 0.1])
    v = jnp.cos(z)
    exact = eulerian(F, z, t, s, v, v)
    off = [jnp.abs(eulerian(F, z, t, s, v, v, 1.0, h)[1] - exact[1]).max() for h in (1e-2, 5e-3)]
    assert off[0] < 1e-3
    assert off[0] / off[1] == pytest.approx(4, rel=0.01)


def test_the_difference_is_the_methods():
    learning = method()
    state = learning.init(jax.random.key(0), model=model(), start=randomised(model()))
    rows = examples(learning, state, jax.random.key(3))
    both = [
        dataclasses.replace(learning, difference=h).sides(
            state.student.network, state, rows, rows.v
        )[1]
        for h in (0.0, 1e-2)
    ]
    assert 1e-5 < jnp.abs(both[0] - both[1]).max() < 1e-2 * jnp.abs(both[0]).max()


@pytest.mark.parametrize("role", ["start", "teacher"])
def test_it_follows_a_teachers_stage(role):
    """Whose state has a learner named `model`, as what `init` is given of the config is named."""
    runs = plan_of(model().module, TEACHER, stage(method(), given={role: "teacher"}))
    made = runs["flow_map"].network
    assert made.takes_target
    assert "target_in" in made.params


@pytest.mark.parametrize(
    ("roles", "network", "rate"),
    [
        (("start",), {}, 0.1),
        (("teacher",), {}, 0.0),
        (("start", "teacher"), {}, 0.0),
        (("start", "teacher"), {"dropout": 0.3}, 0.3),
    ],
)
def test_a_student_of_a_teacher_has_no_dropout(roles, network, rate):
    """As in sCD and unlike sCT, unless the stage says so; a start does not bring its own."""
    learning = method(network=FrozenDict(network))
    given = {"model": model()} | dict.fromkeys(roles, model(dropout=0.1).shapes)
    state = jax.eval_shape(lambda key: learning.init(key, **given), jax.random.key(0))
    assert state.student.network.module.dropout == rate


def test_a_start_whose_levels_the_teacher_does_not_know():
    """Its velocity would be of no use there: eps says nothing of an image."""
    start, teacher = model(), model().replace(schedule=diffusion.DdpmSchedule())
    learning, key = method(), jax.random.key(0)
    with pytest.raises(ValueError, match=r"start: .* from -20 to 20, of which the teacher knows"):
        learning.init(key, model=start, start=start.shapes, teacher=teacher.shapes)
    for given in ({"start": teacher, "teacher": teacher}, {"start": teacher, "teacher": start}):
        given = {role: network.shapes for role, network in given.items()}
        jax.eval_shape(lambda key, given=given: learning.init(key, model=start, **given), key)


def test_a_second_head_is_the_tangent_and_learns_v():
    learning = method(own_velocity=True)
    network = model(velocity=True)
    state = learning.init(jax.random.key(0), model=network, start=randomised(network))
    student, rows = state.student.network, examples(learning, state, jax.random.key(3))
    own_velocity, sides = jax.jit(Network.velocity), jax.jit(learning.sides)
    own = own_velocity(student, rows.z, rows.t, rows.told)
    assert jnp.abs(own - velocity(student, rows.z, rows.t, rows.told)).max() > 0.1
    _, target = sides(student, state, rows, own)
    _, other = sides(student, state, rows, own + 1)
    moved = jnp.abs(target - other).max(axis=(1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(moved, rows.t != rows.s)
    loss = jax.jit(lambda *inputs: learning.step(*inputs)[1]["loss"])  # compiles no gradient
    found = loss(state, BATCH, key := jax.random.key(9))
    rows = examples(learning, state, jax.random.split(key)[0])
    own = own_velocity(student, rows.z, rows.t, rows.told)
    prediction, target = sides(student, state, rows, own)
    squares = jnp.square(prediction - target) + jnp.square(own - rows.v)
    expected = jnp.mean(jnp.sum(squares, axis=(1, 2, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="second head is for own_velocity"):
        method().init(jax.random.key(0), model=network)
