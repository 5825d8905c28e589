"""Progressive distillation against the analytic values of docs/methods/progressive.md."""

import dataclasses
import functools
import warnings as python_warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import compiled, plan_of

from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule, DdpmSchedule, Gaussian, alpha_sigma, angle
from pdistill.experiment.config import ConfigError
from pdistill.methods import Progressive, Run, Teacher
from pdistill.methods.progressive import first_step_gain, halvings, two_step_target
from pdistill.networks import DiT, Network
from pdistill.runtime.mesh import make_mesh
from pdistill.training import (
    Learner,
    LoopConfig,
    Optimizer,
    compile_update,
    init_state,
    kinds_of,
    start_of,
    take_frozen,
)

SCHEDULE = CosineSchedule()


def levels(i, num_steps, dtype=jnp.float64):
    """logsnr at t, m and s of grid index i."""
    i = jnp.asarray(i, dtype)
    return (
        SCHEDULE((i + 1) / num_steps),
        SCHEDULE((i + 0.5) / num_steps),
        SCHEDULE(i / num_steps),
    )


def tanh_teacher(z, logsnr):
    """The teacher of docs/methods/progressive.md, T5: 0.8 tanh(1.3 z + t), for any dtype."""
    t = angle(logsnr) * (2 / np.pi)  # t = 2 phi / pi but for the trimmed ends
    return 0.8 * jnp.tanh(1.3 * z + diffusion.expand(t, z))


def two_teacher_steps(teacher, z, logsnr_t, logsnr_m, logsnr_s):
    z_m = samplers.ddim_step(z, teacher(z, logsnr_t), logsnr_t, logsnr_m)
    return samplers.ddim_step(z_m, teacher(z_m, logsnr_m), logsnr_m, logsnr_s)


@pytest.fixture
def points(x64):
    return jax.random.normal(jax.random.key(0), (64,))


def test_one_student_step_lands_where_two_teacher_steps_do(points):
    """docs/methods/progressive.md, T4, at every index of the grid but the last step's."""
    for num_steps in (2, 8, 1024):
        i = jax.random.randint(jax.random.key(1), points.shape, 1, num_steps)
        t, m, s = levels(i, num_steps)
        target = two_step_target(tanh_teacher, points, t, m, s, last=i == 0)
        z_s = two_teacher_steps(tanh_teacher, points, t, m, s)
        np.testing.assert_allclose(samplers.ddim_step(points, target, t, s), z_s, atol=1e-12)


def test_the_three_forms_of_the_target_agree(points):
    """docs/methods/progressive.md, T4; 1e-11 is what subtraction keeps in float64."""
    i = jax.random.randint(jax.random.key(1), points.shape, 1, 32)
    t, m, s = levels(i, 32)
    target = two_step_target(tanh_teacher, points, t, m, s, last=i == 0)
    z_s = two_teacher_steps(tanh_teacher, points, t, m, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    q = sigma_s / sigma_t
    np.testing.assert_allclose(target, (z_s - q * points) / (alpha_s - q * alpha_t), atol=1e-11)
    delta = angle(t) - angle(s)
    by_angle = (sigma_t * z_s - sigma_s * points) / jnp.sin(delta)
    np.testing.assert_allclose(target, by_angle, atol=1e-11)
    v = (jnp.cos(delta) * points - z_s) / jnp.sin(delta)
    np.testing.assert_allclose(diffusion.v_from_x(points, target, t), v, atol=1e-10)


def test_golden_target(x64):
    """docs/methods/progressive.md, T5. The teacher depends on t, looked up by noise level."""
    t, m, s = levels(jnp.array([2]), 4)
    time = {float(t[0]): 0.75, float(m[0]): 0.625}

    def teacher(z, logsnr):
        return 0.8 * jnp.tanh(1.3 * z + time[float(logsnr[0])])

    z = jnp.array([0.5])
    x_1 = teacher(z, t)
    z_m = samplers.ddim_step(z, x_1, t, m)
    target = two_step_target(teacher, z, t, m, s, last=jnp.array([False]))
    got = [x_1, z_m, teacher(z_m, m), samplers.ddim_step(z_m, teacher(z_m, m), m, s), target]
    expected = [0.7082813186, 0.5995454906, 0.7090407857, 0.6762316267, 0.7087115204]
    np.testing.assert_allclose(jnp.concatenate(got), expected, atol=1e-10)
    np.testing.assert_allclose(diffusion.v_from_x(z, target, t), [-0.5599909564], atol=1e-10)


def test_the_last_step_targets_the_middle_prediction(points):
    """docs/methods/progressive.md, T6: at i = 0 the target is the teacher's second x_hat."""
    t, m, s = levels(jnp.zeros(64), 4)
    z_m = samplers.ddim_step(points, tanh_teacher(points, t), t, m)
    target = two_step_target(tanh_teacher, points, t, m, s, last=jnp.full(64, True))
    np.testing.assert_array_equal(target, tanh_teacher(z_m, m))


def test_gaussian_rounds_keep_the_sampler(x64):
    """docs/methods/progressive.md, T7: linear denoisers, halved exactly from 64 to 1."""
    mean, std, num_steps = 0.3, 0.4, 64

    def line(denoise, num_steps):
        """The sampler, an affine map, by its values at two noises."""
        ends = jnp.array([-1.0, 1.0])
        return samplers.sample(denoise, None, z_init=ends, schedule=SCHEDULE, num_steps=num_steps)

    def table(gains, num_steps):
        """x_hat = mean + gain (z - alpha mean), the gain looked up on the grid t = (i + 1) / N."""

        def denoise(z, logsnr):
            t = (angle(logsnr) - angle(SCHEDULE(0.0))) / (
                angle(SCHEDULE(1.0)) - angle(SCHEDULE(0.0))
            )
            i = jnp.round(t * num_steps).astype(int) - 1
            return mean + gains[i] * (z - alpha_sigma(logsnr)[0] * mean)

        return denoise

    def gains_of(denoise, logsnr):
        centre = alpha_sigma(logsnr)[0] * mean
        return denoise(centre + 1.0, logsnr) - denoise(centre, logsnr)

    grid = SCHEDULE(jnp.arange(1, num_steps + 1) / num_steps)
    teacher = table(gains_of(Gaussian(mean, std).denoise, grid), num_steps)
    start = line(teacher, num_steps)
    while num_steps > 1:
        num_steps //= 2
        i = jnp.arange(num_steps)
        t, m, s = levels(i, num_steps)

        def target(z, t=t, m=m, s=s, i=i, teacher=teacher):
            return two_step_target(teacher, z, t, m, s, last=i == 0)

        centre = alpha_sigma(t)[0] * mean
        gains = jax.jit(lambda z, target=target: target(z + 1.0) - target(z))(centre)
        teacher = table(gains, num_steps)
    one_step = line(teacher, 1)
    # Rounding: 64 float64 steps, each of a few 1e-16.
    np.testing.assert_allclose(one_step, start, atol=1e-13)
    fine = line(Gaussian(mean, std).denoise, 1024)
    np.testing.assert_allclose((fine[1] - fine[0]) / 2, 0.3993017870, atol=1e-10)


def test_no_gradient_reaches_the_teacher(mlp):
    """docs/methods/progressive.md, T10: of the loss through the whole step."""
    method = Progressive(optimizer=Optimizer(1e-3), start_steps=8)
    network = mlp.init(jax.random.key(0))
    state = method.init(jax.random.key(0), teacher=network, num_steps=4)
    batch = {"image": jax.random.normal(jax.random.key(1), (16, 2))}

    def loss(teacher, student):
        spoiled = state.replace(teacher=teacher, student=state.student.replace(network=student))
        return compiled(method)(spoiled, batch, jax.random.key(2))[1]["loss"]

    teacher = jax.tree.map(lambda a: a * 1.1, state.teacher)
    to_teacher, to_student = jax.grad(loss, argnums=(0, 1))(teacher, state.student.network)
    assert all(not jnp.any(g) for g in jax.tree.leaves(to_teacher))
    assert all(jnp.any(g) for g in jax.tree.leaves(to_student))


def test_a_teacher_is_nearly_its_own_student_on_fine_grids(x64):
    """docs/methods/progressive.md, T11: the squared error falls as N^-2."""
    z = jax.random.normal(jax.random.key(0), (4096,))
    errors = []
    for num_steps in (64, 128, 256):
        i = jax.random.randint(jax.random.key(1), z.shape, num_steps // 4, num_steps)
        t, m, s = levels(i, num_steps)
        target = two_step_target(tanh_teacher, z, t, m, s, last=i == 0)
        errors.append(jnp.mean((target - tanh_teacher(z, t)) ** 2))
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    np.testing.assert_allclose(ratios, 4, rtol=0.1)


def test_rounds_hand_over(mlp):
    """docs/methods/progressive.md, T12: fresh moments, the teacher's weights, half the steps."""
    loop = LoopConfig(num_updates=100)
    adam = Optimizer(1e-3, anneal="linear")
    method = Progressive(optimizer=adam, start_steps=8, long_rounds=1)
    short = Progressive(optimizer=dataclasses.replace(adam, warmup=100), start_steps=8)
    stage = Run(name="pd", method=method, given={"teacher": "t"}, loop=loop)
    teacher = Run(name="t", method=Teacher(optimizer=Optimizer(1e-3)), loop=loop, measured_at=(8,))
    with pytest.raises(ConfigError, match="starts from 't', which no earlier stage makes"):
        plan_of(stage)
    _, *rounds = plan_of(teacher, stage).values()
    assert [r.name for r in rounds] == ["pd/4", "pd/2", "pd/1"]
    assert [r.given for r in rounds] == [{"teacher": name} for name in ("t", "pd/4", "pd/2")]
    assert [r.measured_at for r in rounds] == [(4,), (2,), (1,)]
    assert [r.run.loop.num_updates for r in rounds] == [100, 100, 200]
    assert len({r.run.method for r in rounds}) == 1  # so they share a compiled step
    network = mlp.init(jax.random.key(0))
    for r in rounds:  # the learning rate starts anew and ends at zero in each
        length = r.init(None, {"teacher": network}).num_updates
        assert length == r.run.loop.num_updates
        schedule = r.run.method.optimizer.schedule(length)
        np.testing.assert_allclose([schedule(0), schedule(length // 2)], [1e-3, 5e-4], rtol=1e-6)
        assert schedule(length) == 0
    with pytest.raises(ConfigError, match="num_updates above warmup"):
        plan_of(teacher, dataclasses.replace(stage, method=short))

    state = init_state(rounds[1].init, make_mesh(), jax.random.key(0), {"teacher": network})
    student = state.student
    for found in (student.network, student.average, state.teacher):
        chex.assert_trees_all_equal(found.params, network.params)
    assert state.num_steps == 2
    assert student.count == 0
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(student.opt_state))


@pytest.mark.parametrize(("start", "end"), [(12, 1), (8, 8), (4, 8), (8, 0), (6, 4)])
def test_halvings_refuses_what_does_not_halve(start, end):
    with pytest.raises(ValueError, match="power of two"):
        halvings(start, end)


def test_float32_targets_keep_their_digits(x64):
    """docs/methods/progressive.md, T13: within 1e-6 of float64 up to N = 16384."""
    z = jax.random.normal(jax.random.key(0), (4096,))
    for num_steps in (16, 512, 16384):
        i = jax.random.randint(jax.random.key(1), z.shape, 0, num_steps)

        def target(dtype, i=i, num_steps=num_steps):
            t, m, s = levels(i, num_steps, dtype)
            return two_step_target(tanh_teacher, z.astype(dtype), t, m, s, last=i == 0)

        # The levels are rounded too: compare at the same z and the same float32 levels' target.
        assert target(jnp.float32).dtype == jnp.float32
        difference = target(jnp.float32).astype(jnp.float64) - target(jnp.float64)
        assert jnp.max(jnp.abs(difference)) < 1e-6


def test_its_rounds_have_their_own_counts():
    stage = Run(
        name="rounds", method=Progressive(optimizer=Optimizer(1e-3), start_steps=4),
        loop=LoopConfig(10, 16, log_every=10, save_every=10), measured_at=(2, 1),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"each round is measured at its own count, \[2, 1\]; leave it out"
    ):
        stage.unfold(None)


def test_a_teacher_of_eps_is_warned_of():
    """Where errors of eps count too much; DDPM's noise levels by their products."""
    betas = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
    linear, scaled = (DdpmSchedule(name, *ends) for name, ends in betas.items())
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = np.sqrt(alpha2), np.sqrt(1 - alpha2)
    two = alpha[499] * sigma[999] / alpha[999] - sigma[499]
    for arguments, gain in (((linear, 2), two), ((linear, 4, 2), two), ((linear, 1), 157.4)):
        assert first_step_gain(*arguments) == pytest.approx(gain, rel=2e-4)

    def warnings(schedule, head="eps", **counts):
        method = Progressive(optimizer=Optimizer(1e-3), **{"start_steps": 16} | counts)
        blank = Network(None, module=DiT(1, features=8, depth=1, heads=2), head=head,
            schedule=schedule, shape=(4, 4, 1))  # fmt: skip
        init = functools.partial(method.init, None, num_steps=method.end_steps)
        with python_warnings.catch_warnings(record=True) as found:
            python_warnings.simplefilter("always")
            jax.eval_shape(lambda teacher: init(teacher=teacher), blank.shapes)
        return [str(each.message) for each in found]

    [told] = warnings(linear)
    assert "predicts eps, whose errors count 157 times in the first of 1 steps" in told
    assert told.endswith("v, x or both, or end_steps=4")
    assert "43 times in the first of 4" in warnings(linear, end_steps=4, stochastic=True)[0]
    assert warnings(DdpmSchedule("cosine"))[0].endswith("take a teacher that predicts v, x or both")
    for quiet in (
        warnings(linear, "v"), warnings(linear, "x"), warnings(linear, end_steps=4),
        warnings(scaled, end_steps=2),
    ):  # fmt: skip
        assert not quiet


def test_all_rounds_share_one_compiled_update(mlp):
    """Teacher, step count and length are traced: three rounds compile once."""

    class Counted(Progressive):
        step = chex.assert_max_traces(n=1)(Progressive.step)

    mesh = make_mesh()
    method = Counted(optimizer=Optimizer(1e-3, anneal="linear", warmup=1), start_steps=8)
    update = compile_update(method, mesh, flip=False)
    network = mlp.init(jax.random.key(0))
    resident = {"image": np.zeros((8, 2), np.uint8), "label": np.zeros(8, np.int32)}
    raw = {"index": np.zeros((3, 8), np.int32)}
    for num_steps, length in ((4, 4), (2, 3), (1, 2)):
        state = init_state(
            lambda network, *n: method.init(
                None, teacher=network, num_steps=n[0], num_updates=n[1]
            ),
            mesh, network, jnp.int32(num_steps), jnp.int32(length),
        )  # fmt: skip
        learning, frozen = take_frozen(state)
        kinds = kinds_of(method, range(3), 3)(0)
        after, metrics = update(
            start_of(learning, mesh), frozen, resident, raw, jax.random.key(0), **kinds
        )
        network = method.product(after.method)
        _, second, third = metrics["values"]["param_norm"].tolist()
        assert (second == third) == (length == 2)  # at whose end the rate is zero


def test_the_loss_is_that_of_the_paper(gaussian, x64):
    """The step's loss for a student that is off by `off` eps_hat: weight * (off eps_hat)^2.

    With the optimal Gaussian network as teacher and N large, target and teacher agree, so the
    student's v error is off * eps_hat, whose mean square is off^2 alpha^2-free and known:
    E[eps_hat^2] = sigma^2 / (alpha^2 std^2 + sigma^2).
    """
    off = 0.1
    method = Progressive(optimizer=Optimizer(1e-3), start_steps=8192)
    key = jax.random.key(0)
    state = method.init(key, teacher=gaussian.init(key), num_steps=4096)
    student = state.teacher.replace(params={"off": jnp.full((), off)})
    state = state.replace(student=Learner.of(student, method.optimizer))
    x = Gaussian(0.3, 0.7).sample(jax.random.key(0), (1_000_000, 1))
    loss = compiled(method)(state, {"image": x}, jax.random.key(1))[1]["loss"]
    alpha, sigma = alpha_sigma(SCHEDULE(jnp.arange(1.0, 4097) / 4096))
    expected = off**2 * jnp.mean(sigma**2 / (alpha**2 * 0.49 + sigma**2))
    np.testing.assert_allclose(loss, expected, rtol=0.01)  # Monte Carlo of 1e6 samples
