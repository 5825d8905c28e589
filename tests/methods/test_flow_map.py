"""Flow maps against closed forms: of a Gaussian, of a mixture, and the papers' own formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn
from stepping import compiled, forward_passes

from pdistill import diffusion
from pdistill.configs import digits_pd
from pdistill.diffusion import CosineSchedule
from pdistill.experiment.config import as_plain, parse
from pdistill.methods.flow_map import PRESETS, FlowMap
from pdistill.methods.parts.identities import eulerian, lagrangian, semigroup
from pdistill.methods.parts.jumps import CUTS, Cut, JumpLaw
from pdistill.methods.parts.weights import normalise
from pdistill.networks import Conditioning, DiT, Network, UNet
from pdistill.training import Optimizer

MEAN, STD = 0.3, 0.7
SCHEDULE = CosineSchedule(-20.0, 20.0)
# docs/methods/flow_map.md, A1: z, t, s, v, F, G, dF/dt along the flow, F_z, F_t, F_s
GOLDENS = """
 0.5 1.2 0.4   -0.20737710 -0.32492576  0.58144083 -0.385835 -0.115806 -0.409851  0.210141
-1.3 1.5 0.001 -0.34691508  0.53415885 -0.62603778  1.236633 -0.630786  1.017804 -1.260316
 0.9 0.7 0.65   0.04688237  0.02989016  0.89738135 -0.560439  0.332796 -0.576041  0.346176
"""
GOLDENS = np.array(GOLDENS.split(), float).reshape(3, 10)


def deviation(phi):
    return jnp.sqrt(STD**2 * jnp.cos(phi) ** 2 + jnp.sin(phi) ** 2)


def velocity(z, phi):
    """v = E[cos(phi) eps - sin(phi) x | z] of data N(MEAN, STD^2), by regression on z."""
    slope = (1 - STD**2) * jnp.cos(phi) * jnp.sin(phi) / deviation(phi) ** 2
    return slope * (z - MEAN * jnp.cos(phi)) - MEAN * jnp.sin(phi)


def flow(z, t, s):
    """The exact map: quantiles stay."""
    return MEAN * jnp.cos(s) + deviation(s) / deviation(t) * (z - MEAN * jnp.cos(t))


def exact(z, t, s):
    """F of the exact map."""
    d = t - s
    at = jnp.where(d == 0, 1.0, jnp.sin(d))
    return jnp.where(d == 0, velocity(z, t), (jnp.cos(d) * z - flow(z, t, s)) / at)


@pytest.fixture
def jumps(x64):
    z, t, s = (jnp.asarray(GOLDENS[:, i]) for i in range(3))
    return z, t, s


def test_goldens(jumps):
    z, t, s = jumps
    v, f, g, along, f_z, f_t, f_s = GOLDENS[:, 3:].T
    np.testing.assert_allclose(velocity(z, t), v, atol=1e-8)
    np.testing.assert_allclose(exact(z, t, s), f, atol=1e-8)
    np.testing.assert_allclose(flow(z, t, s), g, atol=1e-8)
    ones = jnp.ones_like(t)
    _, found = jax.jvp(lambda z, t: exact(z, t, s), (z, t), (velocity(z, t), ones))
    np.testing.assert_allclose(found, along, atol=1e-6)
    for i, slope in enumerate((f_z, f_t, f_s)):
        tangents = tuple(ones if i == k else jnp.zeros_like(ones) for k in range(3))
        np.testing.assert_allclose(jax.jvp(exact, jumps, tangents)[1], slope, atol=1e-6)


def sides(name, F, z, t, s, v):
    """An identity's two sides for a map with the output F and velocities v."""
    if name == "eulerian":
        return eulerian(F, z, t, s, v, v, 1.0)
    if name == "lagrangian":
        return lagrangian(F, z, t, s, v, velocity)
    way = (t - s) / 2
    return semigroup(F, z, t, s, way, v, F(z, t, t - way), name == "short")


@pytest.mark.parametrize("name", ["eulerian", "lagrangian", "semigroup", "short"])
def test_the_exact_map_alone_satisfies_an_identity(jumps, name):
    """docs/methods/flow_map.md, A2."""
    z, t, s = jumps
    prediction, target = sides(name, exact, z, t, s, velocity(z, t))
    np.testing.assert_allclose(prediction, target, atol=1e-11)
    wrong = lambda z, t, s: exact(z, t, s) + 0.1 * (t - s)  # noqa: E731  right where s = t
    prediction, target = sides(name, wrong, z, t, s, velocity(z, t))
    assert (np.abs(prediction - target) > 1e-4).all()


@pytest.mark.parametrize("name", ["eulerian", "lagrangian", "semigroup", "short"])
def test_a_jump_of_no_length_is_the_velocity(jumps, name):
    """Whatever the map: each learns v there, which is what a teacher starts with."""
    z, t, _ = jumps
    F = lambda z, t, s: jnp.sin(z + t) * jnp.cos(s)  # noqa: E731
    prediction, target = sides(name, F, z, t, t, velocity(z, t))
    np.testing.assert_allclose(prediction, F(z, t, t), atol=1e-12)
    np.testing.assert_allclose(target, velocity(z, t), atol=1e-12)


def test_the_short_semigroup_becomes_the_eulerian(jumps):
    z, t, s = jumps
    F = lambda z, t, s: jnp.sin(2 * z + t) * jnp.cos(s)  # noqa: E731  not the exact one
    v = velocity(z, t)
    prediction, target = eulerian(F, z, t, s, v, v, 1.0)
    off = []
    for gap in (1e-3, 1e-4):
        both = semigroup(F, z, t, s, jnp.full_like(t, gap), v, v, True)
        off.append(np.abs((both[0] - both[1]) - (prediction - target)).max())
    assert off[1] < 2e-4
    assert off[0] / off[1] == pytest.approx(10, rel=0.05)  # first order in the gap


def test_scm_tangent(jumps):
    """Lu & Song 2024, eq. 6 with sigma_d = 1: g = -cos^2 (F - dx/dt) - cos sin (x + dF/dt)."""
    z, t, _ = jumps
    F = lambda z, t, s: jnp.sin(2 * z + t)  # noqa: E731
    v = velocity(z, t)
    prediction, target = eulerian(F, z, t, jnp.zeros_like(t), v, v, 0.7)
    f, z, t, v = (np.asarray(a) for a in (F(z, t, 0), z, t, v))
    change = np.cos(2 * z + t) * (2 * v + 1)
    tangent = -(np.cos(t) ** 2) * (f - v) - 0.7 * np.cos(t) * np.sin(t) * (z + change)
    # sCM multiplies the derivative by cos(t) once more, a weight.
    np.testing.assert_allclose(np.cos(t) * (target - prediction), tangent, atol=1e-12)


def test_mean_flows_target(jumps):
    """Geng et al. 2025, eq. 10: u_target = v - (t - r) du/dt, on rectified flow's line.

    The circle's residual is that of the line times a positive factor: both vanish together.
    """
    z, t, s = (np.asarray(a) for a in jumps)
    tau, r = np.tan(t) / (1 + np.tan(t)), np.tan(s) / (1 + np.tan(s))
    scale = np.hypot(1 - tau, tau)
    F = lambda z, t, s: jnp.sin(2 * z + t) * jnp.cos(s)  # noqa: E731

    def average(x, tau):  # u of the same map
        n, m = (jnp.hypot(1 - a, a) for a in (tau, r))
        t, s = jnp.arctan(tau / (1 - tau)), jnp.arctan(r / (1 - r))
        return (x - m * (jnp.cos(t - s) * x / n - jnp.sin(t - s) * F(x / n, t, s))) / (tau - r)

    x, v = scale * z, velocity(z, t)
    data, noise = np.cos(t) * z - np.sin(t) * v, np.sin(t) * z + np.cos(t) * v
    straight = noise - data
    u, du = jax.jvp(average, (jnp.asarray(x), jnp.asarray(tau)), (straight, jnp.ones_like(tau)))
    theirs = u - (straight - (tau - r) * du)
    prediction, target = eulerian(F, *map(jnp.asarray, (z, t, s, v, v)), 1.0)
    ratio = np.asarray(theirs / (prediction - target))
    ours = np.hypot(1 - r, r) / scale**2 * 1.0
    np.testing.assert_allclose(ratio, ours, rtol=1e-9)


# --- networks ---------------------------------------------------------------------------------


def randomised(module, shape, key=0):
    """A network with parameters that are all random, in double precision."""
    blank = Network(None, module=module, head="v", schedule=SCHEDULE, shape=shape)
    with jax.numpy_dtype_promotion("standard"):
        shapes = blank.shapes.params
    drawn = optax.tree.random_like(jax.random.key(key), shapes, dtype=jnp.float64)
    return blank.replace(params=optax.tree.scale(0.3, drawn))


SMALL_DIT = DiT(1, target=True, features=16, depth=1, heads=2)
MODERN = {name: True for name in ("rms_norm", "qk_norm", "rope", "swiglu", "velocity")}
STUDENTS = {
    "dit": SMALL_DIT,
    "modern_dit": SMALL_DIT.clone(registers=2, **MODERN),
    "unet": UNet(1, target=True, channels=16, embedding_channels=16, multipliers=(1,), blocks=1),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_derivative_along_the_flow(x64, name):
    """Forward mode against central differences, in double precision; waves as fast as ever."""
    network = randomised(STUDENTS[name].clone(time_scale=32.0), (4, 4, 1))
    z, v = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 1), jnp.float64)
    t, s = jnp.array([0.3, 0.9, 1.4]), jnp.array([0.1, 0.9, 0.5])
    told = diffusion.logsnr_of_angle(s)

    @jax.jit
    @jax.numpy_dtype_promotion("standard")  # flax's norms rely on it
    def F(z, t):
        return network.v(z, diffusion.logsnr_of_angle(t), Conditioning(target=told))

    _, found = jax.jvp(F, (z, t), (v, jnp.ones_like(t)))

    # Richardson's extrapolation of two central differences
    def difference(h):
        return (F(z + h * v, t + h) - F(z - h * v, t - h)) / (2 * h)

    expected = (4 * difference(5e-5) - difference(1e-4)) / 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * float(jnp.abs(found).max()))


def test_the_old_embedding_is_the_default():
    """What is published keeps its frequencies: 1000 rad, and a card without the entry means it."""
    module = DiT(1, features=16, depth=1, heads=2)
    assert module.time_scale == UNet(1).time_scale == 1000.0


class Gaussian1(nn.Module):
    """F of the exact map, plus a parameter that is off from it."""

    target: bool = True

    @nn.compact
    def __call__(self, z, logsnr, told, *, train=False):
        off = self.param("off", nn.initializers.zeros, (3,), z.dtype)
        like = lambda a: diffusion.expand(diffusion.angle(a), z)  # noqa: E731
        t = like(logsnr)
        s = t if told.target is None else like(told.target)
        turn = t - s
        return exact(z, t, s) + off[0] + off[1] * z + off[2] * turn


class Average1(Gaussian1):
    """The same map by the average velocity of rectified flow: the head "velocity"."""

    @nn.compact
    def __call__(self, z, logsnr, told, *, train=False):
        alpha, sigma = diffusion.alpha_sigma(diffusion.expand(logsnr, z))
        return (alpha + sigma) * super().__call__(z, logsnr, told) - (alpha - sigma) * z


def method(identity="eulerian", **values):
    return FlowMap(optimizer=Optimizer(1e-3, num_updates=10), identity=identity, **values)


def gaussian_state(method, off=(0.0, 0.0, 0.0), head="v", **given):
    schedule = CosineSchedule(-10.0, 10.0)
    module = {"v": Gaussian1(), "velocity": Average1()}[head]
    network = Network(None, module=module, head=head, schedule=schedule, shape=(1,))
    network = network.init(jax.random.key(0))
    network = network.replace(params={"off": jnp.asarray(off, jnp.result_type(float))})
    given = {"model": network, "start": network} | {k: network for k in given}
    return method.init(jax.random.key(1), **given)


def gradients(method, state, num, seed=0):
    """Gradients of the square residuals of `num` rows at the state's parameters: [num, 3]."""
    data_key, key = jax.random.split(jax.random.key(seed))
    x = MEAN + STD * jax.random.normal(data_key, (num, 1), jnp.float64)
    rows = method.examples(state, {"image": x}, key)

    def square(off):
        network = state.student.network.replace(params={"off": off})
        prediction, target = method.sides(network, state, rows)
        return jnp.sum(jnp.square(prediction - target), axis=1)

    return jax.jit(jax.jacfwd(square))(state.student.network.params["off"])


IDENTITIES = {
    "eulerian": {},
    "lagrangian": {"identity": "lagrangian"},
    "semigroup": {"identity": "semigroup"},
    "short": {"identity": "semigroup", "between": Cut(at="shrinking", least=0.1)},
}


@pytest.mark.parametrize(
    ("name", "head"),
    [("eulerian", "v"), ("lagrangian", "v"), ("semigroup", "v"), ("eulerian", "velocity")],
)
def test_the_exact_map_has_no_gradient_with_a_teachers_velocity(x64, name, head):
    """Row by row: no identity leaves any residual, whichever line the output is on."""
    distilling = method(jumps=JumpLaw(instantaneous=0.25), **IDENTITIES[name])
    state = gaussian_state(distilling, head=head, teacher=True)
    assert jnp.abs(gradients(distilling, state, 64)).max() < 1e-10
    off = gaussian_state(distilling, off=(0.0, 0.0, 0.1), head=head, teacher=True)
    assert jnp.abs(gradients(distilling, off, 64).mean(0)).max() > 1e-3


class Whole(FlowMap):
    """Evaluates its identity for all rows, also where it says no more than v."""

    def count_still(self, num):
        return 0


def preset(name, cls=FlowMap, microbatches=1):
    laws = {"jumps": JumpLaw, "between": Cut}
    values = {key: laws[key](**v) if key in laws else v for key, v in PRESETS[name].items()}
    return cls(optimizer=Optimizer(1e-3, num_updates=9, microbatches=microbatches), **values)


COSTS = {"mean_flow": 3.3, "improved_mean_flow": 4.1, "shortcut": 3.6, "tvm": 5.1}


@pytest.mark.parametrize("name", COSTS)
def test_jumps_of_no_length_cost_no_target(name):
    """Of which there are three quarters, or a half: 3 + 1/4, 3 + 2/2, 3 + 2/4, (3 + 7)/2."""
    module = DiT(1, features=32, depth=4, heads=2, target=True)
    network = Network(None, module, "v", SCHEDULE, (8, 8, 1)).init(jax.random.key(0))
    learning, batch = preset(name), {"image": jnp.zeros((16, 8, 8, 1))}
    state = learning.init(jax.random.key(0), model=network.blank)
    assert forward_passes(learning, state, batch, network) < COSTS[name]


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("name", COSTS)
def test_without_their_targets_updates_are_the_same(x64, name, microbatches):
    """Though one of three microbatches of 8 has a jump of no length more than the others."""
    batch = {"image": MEAN + STD * jax.random.normal(jax.random.key(5), (24, 1), jnp.float64)}
    found = []
    for cls in (FlowMap, Whole):
        learning = preset(name, cls, microbatches)
        learning = dataclasses.replace(
            learning, jumps=dataclasses.replace(learning.jumps, instantaneous=0.55)
        )
        state = gaussian_state(learning, off=(0.3, -0.1, 0.2))
        found.append(compiled(learning)(state, batch, jax.random.key(6)))
    assert learning.jumps.count_same(24) == 13
    for ours, whole in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-10)
    assert found[0][1]["grad_norm"] > 0.1


def test_a_map_below_stands_in_where_the_second_jump_begins(x64):
    """It is right there, and is not learnt: what is wrong with it reaches no other row."""
    jumps = JumpLaw(level=(0.9, 1.4), least=(0.0,), to="data")
    truncated = method("semigroup", jumps=jumps, between=Cut(at="ect", q=4.0, stages=1))
    state = gaussian_state(truncated, below=True, teacher=True)
    wrong = state.below.replace(params={"off": jnp.array([0.5, 0.0, 0.0])})
    rows = truncated.examples(state, {"image": jnp.zeros((256, 1))}, jax.random.key(0))
    assert rows.t.max() == 0  # log(sigma / alpha) of at least 0
    assert 0.15 < jnp.mean(rows.t == 0) < 0.35
    way = truncated.between.way(rows.t, rows.s, 0.0)
    under = np.asarray(diffusion.angle(rows.t) - way < np.pi / 4)
    sides = [truncated.sides(state.student.network, state.replace(below=b), rows)
             for b in (state.below, wrong)]  # fmt: skip
    changed = np.asarray(jnp.abs(sides[0][1] - sides[1][1])[:, 0] > 1e-6)
    np.testing.assert_array_equal(changed, under)
    assert 0.3 < under.mean() < 0.99


@pytest.mark.parametrize("name", ["semigroup", "lagrangian"])
def test_targets_are_of_the_average(x64, name):
    """Both halves of a jump, or the velocity where the student's ends, whatever it says itself."""
    values = IDENTITIES[name] | {"own_velocity": name == "lagrangian"}
    learning = method(jumps=JumpLaw(instantaneous=0.25), target_decay=0.9, **values)
    state = gaussian_state(learning, off=(0.3, 0.0, 0.2))
    right = state.target.replace(params={"off": jnp.zeros(3)})
    batch = {"image": jnp.ones((64, 1))}

    @jax.jit
    def found(state):
        """The target, and the exact one."""
        rows = learning.examples(state, batch, jax.random.key(0))
        t, s = (diffusion.angle(a)[:, None] for a in (rows.t, rows.s))
        rows, student = rows._replace(v=velocity(rows.z, t)), state.student.network  # no pair's
        end = student.jump(rows.z, rows.t, rows.s, rows.told)
        known = velocity(end, s) if name == "lagrangian" else exact(rows.z, t, s)
        return learning.sides(student, state, rows)[1], known

    heard = state.replace(student=state.student.replace(carried={"target": right}))
    np.testing.assert_allclose(*found(heard), atol=1e-9)
    target, known = found(state)
    assert jnp.abs(target - known).max() > 0.1
    after, _ = jax.jit(learning.step)(state, batch, jax.random.key(1))
    moved = 0.9 * state.target.params["off"] + 0.1 * after.student.network.params["off"]
    np.testing.assert_allclose(after.target.params["off"], moved, rtol=1e-12)
    assert (after.target.params["off"] != state.target.params["off"]).all()


def test_truncated_training_hears_the_map_below_from_its_first_update(x64):
    """At the border the residual is zero for the exact map, not for v, as if u were at the data.

    Those rows count a tenth of the others, all together.
    """
    preset = {k: v for k, v in PRESETS["tcm"].items() if k not in ("jumps", "between")}
    jumps, between = JumpLaw(**PRESETS["tcm"]["jumps"]), Cut(**PRESETS["tcm"]["between"])
    truncated = method(jumps=jumps, between=between, **preset)
    state = gaussian_state(truncated, off=(0.5, 0.0, 0.0), below=True, teacher=True)
    right = state.below.replace(params={"off": jnp.zeros(3)})
    state = state.replace(below=right, teacher=right)

    @jax.jit
    def found(state):
        """Rows, F of a jump for which the residual would be zero, and the exact one."""
        rows = truncated.examples(state, {"image": jnp.zeros((2048, 1))}, jax.random.key(0))
        f, target = truncated.sides(state.student.network, state, rows)
        t, s = (diffusion.angle(a)[:, None] for a in (rows.t, rows.s))
        way = between.way(rows.t, rows.s, 0.0)[:, None]
        wanted = f - (f - target) * jnp.sin(way) / jnp.sin(t - s)  # it is of a unit way
        return rows, wanted, exact(rows.z, t, s), truncated.weigh(state, rows, 0 * f + 1)[0]

    rows, wanted, known, weight = found(state)
    border = rows.t == 0
    np.testing.assert_allclose(wanted[border], known[border], atol=1e-3)
    assert jnp.abs(known - rows.v)[border].max() > 0.1
    assert weight[border].sum() / weight[~border].sum() == pytest.approx(0.1, abs=0.02)


def test_a_truncated_map_takes_steps_from_levels_that_it_has_learnt():
    """sigma / alpha is tan(pi / 2 n) where the last of n steps begins, and 1 / (n - 1)."""
    angles, straight = CosineSchedule(-20.0, 20.0), diffusion.RectifiedFlow()
    for schedule, least, most in (
        (angles, 0.0, 2), (angles, -0.9, 4), (angles, -0.88, 3), (angles, 10.0, 1),
        (straight, 0.0, 2), (straight, -1.1, 4), (straight, -1.09, 3), (straight, -9.0, 16),
    ):  # fmt: skip
        law = JumpLaw(level=(1.0, 1.0), least=(least,), to="data")
        law.check_within(schedule)
        assert law.most_steps(schedule) == most
    assert JumpLaw().most_steps(angles) == 0


@pytest.mark.parametrize("least", [5.1, -5.1, np.nan])
def test_a_map_is_not_truncated_beyond_its_schedule(least):
    """There is no noisier level to jump from, and at cleaner ones there is nothing to learn."""
    jumps = JumpLaw(level=(1.0, 1.0), least=(least,), to="data")
    truncated = method("semigroup", jumps=jumps, between=Cut(at="ect"))
    with pytest.raises(ValueError, match=r"jumps.least is .* in -5 .. 5; got (-?5.1|nan)"):
        gaussian_state(truncated, below=True)


def test_pairs_of_data_and_noise_leave_the_eulerian_identity_unbiased(x64):
    """docs/methods/flow_map.md, A3: zero at the exact map, within four standard errors."""
    learning = method(jumps=JumpLaw(instantaneous=0.25))
    found = gradients(learning, gaussian_state(learning), 100_000)
    error = found.std(0) / np.sqrt(len(found))
    assert (jnp.abs(found.mean(0)) < 4 * error).all()
    off = gradients(learning, gaussian_state(learning, off=(0.0, 0.0, 0.3)), 100_000)
    assert (jnp.abs(off.mean(0)) > 10 * off.std(0) / np.sqrt(len(off))).any()


def test_pairs_bias_a_semigroup_in_proportion_to_the_gap(x64):
    """docs/methods/flow_map.md, A3: z_u of a pair is not the flow's."""
    bias = []
    for least in (0.2, 0.1, 0.05):
        between = Cut(at="shrinking", least=least)
        learning = method("semigroup", between=between)
        state = gaussian_state(learning)
        end = state.student.replace(count=jnp.array(10))  # of 10 updates
        found = gradients(learning, state.replace(student=end), 100_000)
        bias.append(jnp.abs(found.mean(0)).max())
    assert bias[0] > bias[1] > bias[2]
    assert bias[0] / bias[1] == pytest.approx(2, rel=0.4)
    assert bias[1] / bias[2] == pytest.approx(2, rel=0.4)


# --- laws ---------------------------------------------------------------------------------------


def drawn(num=4096, **values):
    t, s = JumpLaw(**values).draw(jax.random.key(0), num, SCHEDULE)
    return np.asarray(t), np.asarray(s)


def test_levels_are_normal_in_log_sigma():
    t, s = drawn(level=(-0.5, 0.8), to="data")
    assert scipy.stats.kstest(-t / 2, "norm", (-0.5, 0.8)).pvalue > 1e-3
    assert (s == 20).all()


def test_ordered_levels():
    t, s = drawn(level=(-0.4, 1.0))
    assert (t < s).all()
    both = np.concatenate([t, s]) / -2
    assert scipy.stats.kstest(both, "norm", (-0.4, 1.0)).pvalue > 1e-3
    t, s = drawn(level=(-0.6, 1.6), end=(-4.0, 1.6))
    assert (t <= s).all()
    assert scipy.stats.kstest(t / -2, "norm", (-0.6, 1.6)).pvalue > 1e-3
    assert 0.05 < np.mean(t == s) < 0.1  # P(N(-4, 1.6) > N(-0.6, 1.6)) = 0.066


def test_two_sorted_levels():
    """Those of DMF: t has the law of the larger of two logit-normal times, whoever drew it."""
    law = JumpLaw(**PRESETS["dmf"]["jumps"])
    t, s = (np.asarray(a) / -2 for a in law.draw(jax.random.key(0), 8192, SCHEDULE))
    still, t, s = t[:4096], t[4096:], s[4096:]
    assert (t > s).all()
    first, second = scipy.stats.norm(0.4, 1.0), scipy.stats.norm(-1.2, 1.0)
    assert scipy.stats.kstest(t, lambda x: first.cdf(x) * second.cdf(x)).pvalue > 1e-3
    assert scipy.stats.kstest(s, lambda x: 1 - first.sf(x) * second.sf(x)).pvalue > 1e-3
    assert scipy.stats.kstest(still, "norm").pvalue > 1e-3


def test_gaps():
    """Those of TVM, in rectified flow's time: the way has its own law, whatever s is; and s, cut
    off where t would be beyond noise, is nowhere heaped up."""
    law = JumpLaw(**PRESETS["tvm"]["jumps"])
    t, s = (np.asarray(a, float) / -2 for a in law.draw(jax.random.key(0), 8192, SCHEDULE))
    still, t, s = t[:4096], t[4096:], s[4096:]
    way = scipy.special.expit(t) - scipy.special.expit(s)
    assert scipy.stats.kstest(scipy.special.logit(way), "norm", (-0.8, 1.0)).pvalue > 1e-3
    cut = scipy.stats.norm(-0.4, 1.0)
    share = cut.cdf(s) / cut.cdf(scipy.special.logit(1 - way))
    assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
    assert abs(scipy.stats.spearmanr(share, way).statistic) < 0.06
    assert scipy.stats.kstest(still, "norm", (-0.4, 1.0)).pvalue > 1e-3


def test_levels_below():
    """Uniform in the angle below t, which keeps its own law: t is not the larger of two."""
    t, s = drawn(to="below")
    t, s = (2 / np.pi * np.asarray(diffusion.angle(a)) for a in (t, s))
    assert scipy.stats.kstest(t, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(s / t, "uniform").pvalue > 1e-3


def test_stratified_times_are_even_and_in_a_random_order():
    t, s = (2 / np.pi * np.asarray(diffusion.angle(a)) for a in drawn(64, to="below", stratified=1))
    for even, other in ((t, np.arange(64)), (s / t, np.arange(64)), (t, s / t)):
        assert np.abs(np.sort(even) - (np.arange(64) + 0.5) / 64).max() < 1.1 / 64
        assert abs(scipy.stats.spearmanr(even, other).statistic) < 0.4


def test_dyadic_jumps_are_whole_steps():
    t, s = drawn(to="dyadic", most=8)
    time = 2 / np.pi * np.asarray(diffusion.angle(np.stack([t, s]).astype(np.float64)))
    count = np.rint(1 / (time[0] - time[1]))
    assert set(count) == {1, 2, 4, 8}
    assert np.allclose([np.mean(count == n) for n in (1, 2, 4, 8)], 0.25, atol=0.03)
    np.testing.assert_allclose(time[0] * count, np.rint(time[0] * count), atol=2e-3)


def test_shortcut_models_learn_velocities_at_all_times_alike():
    """Each of 128, where half of the steps would begin at noise, and none at an odd one."""
    t, s = drawn(20_000, **PRESETS["shortcut"]["jumps"])
    same = t == s
    assert same.mean() == 0.75
    step = 128 * 2 / np.pi * np.asarray(diffusion.angle(t[same].astype(np.float64)))
    np.testing.assert_allclose(step, np.rint(step), atol=0.05)
    found = np.bincount(np.rint(step).astype(int), minlength=129)
    assert found[0] == 0
    assert scipy.stats.chisquare(found[1:]).pvalue > 1e-3


def test_a_share_of_jumps_of_no_length():
    t, s = drawn(64, instantaneous=0.25)
    assert (t == s)[:16].all()
    assert (t < s)[16:].all()


def test_first_jumps_of_two():
    t, s = jnp.array([-6.0, -1.0, 3.0]), jnp.array([8.0, 5.0, 20.0])
    whole = diffusion.angle(t) - diffusion.angle(s)
    np.testing.assert_allclose(Cut().way(t, s, 0.3), whole / 2, rtol=1e-6)
    shrinking = Cut(at="shrinking", least=0.01)  # by the same factor in each tenth of a run
    for progress, fraction in ((0.0, 1.0), (0.1, 0.01**0.1), (0.5, 0.1), (1.0, 0.01)):
        np.testing.assert_allclose(shrinking.way(t, s, progress), fraction * whole, rtol=1e-4)
    ect = Cut(at="ect", q=4.0, stages=4)
    sigma = np.exp(-np.asarray(t, float) / 2)
    for progress, stage in ((0.0, 0), (0.6, 2), (0.9, 3)):
        kept = np.maximum(1 - 4.0 ** -(stage + 1) * (1 + 8 / (1 + np.exp(sigma))), 0)
        theirs = np.minimum(np.arctan(sigma) - np.arctan(sigma * kept), whole)
        np.testing.assert_allclose(ect.way(t, s, progress), theirs, rtol=1e-5)
    assert (ect.way(t, t, 0.5) == 0).all()
    later = Cut(at="ect", q=4.0, stages=1, first=2)
    for progress in (0.0, 0.99):
        np.testing.assert_array_equal(later.way(t, s, progress), ect.way(t, s, 0.6))
    sigmoid = Cut(at="sigmoid", least=0.005)
    for progress, fraction in ((0.0, 1.0), (0.5, 0.5), (0.6, 1 / (1 + np.exp(2.5))), (1.0, 0.005)):
        np.testing.assert_allclose(sigmoid.way(t, s, progress), fraction * whole, rtol=1e-4)


def test_laws_that_move_in_the_course_of_a_run():
    t, s, progress = jnp.full(2, 2.0), jnp.full(2, 20.0), jnp.array([0.0, 0.99])
    for cut in (Cut(at=at, stages=stages) for at in CUTS for stages in (1, 8)):
        early, late = cut.way(t, s, progress)
        assert cut.moves == bool(early != late)


def test_ict_steps_along_edms_grid():
    """From a node of the grid it is the next one, with 10, 20, 40, ... steps, and not beyond s."""
    cut = Cut(at="ict", stages=8)
    for progress, steps in ((0.0, 10), (0.3, 40), (0.95, 1280)):
        nodes = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps + 1) ** 7
        t = jnp.asarray(-2 * np.log(nodes[:-1]), jnp.float32)
        way = cut.way(t, jnp.full_like(t, 30.0), progress)
        theirs = np.arctan(nodes[:-1]) - np.arctan(nodes[1:])
        np.testing.assert_allclose(way, theirs, rtol=2e-3, atol=1e-6)
    t, s = jnp.array([2.0]), jnp.array([2.1])
    np.testing.assert_allclose(cut.way(t, s, 0.0), diffusion.angle(t) - diffusion.angle(s))


def test_defaults_are_the_plain_square():
    plain = {"power": 0.0, "floor": 1e-3, "normalised": 0.0, "warmup": 0, "guidance": ()}
    assert method() == method(own_velocity=False, **plain)


def test_soflows_weight_is_of_a_mean_square():
    """Of 3072 values: (mean + 0.001)^-0.75, up to a factor that is the same for all examples."""
    mean = np.array([1e-4, 1e-2, 1.0])
    preset = {name: PRESETS["soflow"][name] for name in ("power", "floor")}
    ours = method(**preset).adaptive(jnp.asarray(3072 * mean))
    np.testing.assert_allclose(ours * (mean + 1e-3) ** 0.75, 3072**-0.75, rtol=1e-5)


def test_each_residual_over_its_norm():
    """(3, 4) has the norm 5, and 0.5 more is to be added."""
    residual = jnp.array([[3.0, 4.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    found = normalise(residual, 0.5)
    np.testing.assert_allclose(found, residual / jnp.array([5.5, 0.5])[:, None, None, None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JumpLaw(to="noise"), "jumps.to must be one of"),
        (lambda: JumpLaw(level=(1.0,)), "jumps.level must be"),
        (lambda: JumpLaw(to="gap", end=(0.0, 1.0)), "to='gap' needs a level"),
        (lambda: JumpLaw(still=(0.0, 1.0)), "jumps.still is the law where s = t"),
        (lambda: JumpLaw(to="dyadic", still=(0.0, 1.0), instantaneous=0.5), "'dyadic' times"),
        (lambda: JumpLaw(to="data", end=(0.0, 1.0)), "jumps.end is for"),
        (lambda: JumpLaw(instantaneous=1.5), r"in \[0, 1\]"),
        (lambda: JumpLaw(most=12), "power of two"),
        (lambda: JumpLaw(least=(0.0,)), "for a level and to='data'"),
        (lambda: JumpLaw(border=0.3), "where jumps.least is"),
        (lambda: Cut(first=-1), "and first >= 0"),
        (lambda: gaussian_state(method("semigroup", between=Cut(at="ect")), below=True), "go toge"),
        (
            lambda: gaussian_state(
                method(
                    "semigroup",
                    between=Cut(at="ect"),
                    guidance=(0.0, 1.0),
                    jumps=JumpLaw(level=(0.0, 1.0), least=(0.0,), to="data"),
                ),
                below=True,
            ),
            "is told no weights",
        ),
        (lambda: JumpLaw(stratified=True, level=(0.0, 1.0)), "leave level out"),
        (lambda: Cut(at="third"), "between.at must be one of"),
        (lambda: Cut(q=0.5), "between needs"),
        (lambda: method("newtonian"), "identity must be one of"),
        (lambda: method("semigroup", warmup=5), "are of the Eulerian"),
        (lambda: method("semigroup", difference=0.01), "is of the Eulerian"),
        (lambda: method("semigroup", own_velocity=True), "has no velocity"),
        (lambda: method(target_decay=0.9), r"target_decay is in \[0, 1\), for the semigroup"),
        (lambda: method("lagrangian", target_decay=0.9), "or for the Lagrangian with own_velocity"),
        (lambda: method(guided_levels=(-1.0, 1.0)), "where guidance acts"),
        (lambda: method(power=-1.0), "must not be negative"),
        (lambda: method("semigroup"), "nothing would be learnt"),
        (lambda: method("lagrangian", own_velocity=True), "nothing would be learnt"),
        (lambda: gaussian_state(method("lagrangian")), "needs a velocity where jumps end"),
        (lambda: gaussian_state(method(guidance=(1.0,))), "set label_dropout"),
        (lambda: gaussian_state(method(label_dropout=0.1)), "needs a network with labels"),
        (lambda: gaussian_state(method(guidance=(1.0,)), teacher=True), "cannot be guided"),
        (lambda: method(guidance=(0.0,)), "with w finite and above 0"),
        (lambda: method(guidance=(np.inf,)), "with w finite and above 0"),
        (lambda: JumpLaw(level=(0.0, np.inf)), "jumps.level must be"),
        (lambda: method(label_dropout=1.0), r"label_dropout in \[0, 1\)"),
        (lambda: method(guidance=(2.0, 1.0)), "low < high"),
        (lambda: method(guidance=(0.0, np.inf)), "both finite"),
        (lambda: method(jumps=JumpLaw(instantaneous=0.75)).check_batch(2), "not of both kinds"),
        (lambda: method(jumps=JumpLaw(instantaneous=0.5)).check_batch(1), "not of both kinds"),
        (lambda: method(guided_levels=(1.0,)), "low < high"),
        (lambda: method(omega=0.0), r"in \(0, 1\]"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_of_both_kinds_of_jumps():
    """Or of one, where the law has no other."""
    for instantaneous, batch_size in ((0.75, 3), (0.5, 2), (0.0, 1), (1.0, 1)):
        method(jumps=JumpLaw(instantaneous=instantaneous)).check_batch(batch_size)


def test_maps_to_the_data_are_sampled_by_the_jumps_that_they_learn():
    """Multistep consistency sampling: its jumps all end at the data."""
    for law, sampler in ((JumpLaw(), "gamma"), (JumpLaw(level=(0.0, 1.0), to="data"), "gamma:1")):
        assert gaussian_state(method(jumps=law)).student.network.sampler == sampler


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_stages(name):
    config = digits_pd.get_config()
    stage = {"name": "map", "method": "flow_map", **PRESETS[name]}
    stage |= {key: config.stages[0][key] for key in ("loop", "optimizer")}
    config.stages = (stage,)
    [run] = parse(as_plain(config)).stages
    assert isinstance(run.method, FlowMap)
