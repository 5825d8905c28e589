"""The teacher's loss against closed forms, and the whole chain on a 2-D mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_networks import ClassNetwork, GaussianNetwork, blank
from scipy.spatial.distance import cdist
from scipy.stats import norm
from stepping import compiled, run

from pdistill import samplers
from pdistill.diffusion import (
    Gaussian,
    GaussianMixture,
    LinearLogsnrSchedule,
    RectifiedFlow,
    noised,
)
from pdistill.methods import Progressive, Teacher
from pdistill.methods.parts.times import noise_levels, uniform_times
from pdistill.training import Learner, Optimizer


@pytest.mark.parametrize("stratified", [False, True])
def test_times_are_uniform(stratified):
    """Mean and variance of U[0, 1), and all of it is reached."""
    keys = jax.random.split(jax.random.key(0), 200)
    t = np.ravel(jax.vmap(lambda key: uniform_times(key, 64, stratified))(keys))
    assert t.min() >= 0
    assert t.max() < 1
    # 12,800 draws: the standard error of the mean is 0.0026, of the variance 0.0007.
    np.testing.assert_allclose([t.mean(), t.var()], [1 / 2, 1 / 12], atol=0.01)


def test_stratified_times_fill_every_interval():
    t = uniform_times(jax.random.key(3), 16, stratified=True)
    np.testing.assert_array_equal(np.floor(np.asarray(t) * 16), np.arange(16))


def test_stratified_times_stay_below_one(monkeypatch):
    """(B - 1 + u) / B rounds to 1 for u near 1, and a student's index then left the grid: NaN."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, largest))
    for batch in (32, 64, 2048):
        assert uniform_times(jax.random.key(0), batch, stratified=True).max() < 1


def test_optimal_loss_of_a_gaussian(gaussian):
    """docs/methods/teacher.md, T9: over uniform t it is the data's std (times the trim)."""
    method = Teacher(optimizer=Optimizer(1e-3))
    state = method.init(jax.random.key(0), model=gaussian)
    x = Gaussian(0.3, 0.7).sample(jax.random.key(1), (1_000_000, 1))
    loss = compiled(method)(state, {"image": x}, jax.random.key(2))[1]["loss"]
    np.testing.assert_allclose(loss, 0.7, rtol=0.01)  # Monte Carlo of 1e6 samples


def test_gradient_of_a_gaussian(gaussian, x64):
    """d loss / d off at off = a is 2 a E[eps_hat^2]: the error is off eps_hat plus noise
    uncorrelated with it."""
    off = 0.2
    method = Teacher(optimizer=Optimizer(1.0, clip_norm=0.0))
    network = gaussian.replace(params={"off": jnp.full((), off)})
    state = method.State(Learner.of(network, method.optimizer))
    x = Gaussian(0.3, 0.7).sample(jax.random.key(1), (1_000_000, 1))
    norm = compiled(method)(state, {"image": x}, jax.random.key(2))[1]["grad_norm"]
    phi = (np.arange(100_000) + 0.5) / 100_000 * np.pi / 2
    eps_squared = np.mean(np.sin(phi) ** 2 / (0.49 * np.cos(phi) ** 2 + np.sin(phi) ** 2))
    np.testing.assert_allclose(norm, 2 * off * eps_squared, rtol=0.01)


def test_a_teacher_goes_on():
    """From the parameters of another, with a fresh optimizer: the first update is that of a rate
    that begins at zero; what guided the other does not guide it."""
    method = Teacher(optimizer=Optimizer(1e-2, warmup=2, ema_widths=(0.1,)))
    network = blank(ClassNetwork(), 1)
    start = network.replace(params={"off": jnp.full((), 0.25)}, guidance=(0.0, np.inf))
    start = start.replace(sampler="stochastic")
    state = method.init(jax.random.key(0), model=network, start=start)
    assert (state.model.network.guidance, state.model.network.sampler) == (None, "")
    batch = {"image": jnp.ones((4, 1)), "label": jnp.zeros(4, jnp.int32)}
    states, _ = run(method, state, batch, 2)
    values = [float(state.model.network.params["off"]) for state in states]
    assert values[0] == values[1] == 0.25 != values[2]


@pytest.mark.parametrize("head", ["x", "eps"])
def test_a_teacher_goes_on_with_its_starts_head(mlp, head):
    method, start = Teacher(optimizer=Optimizer(1e-2), head=head), mlp.init(jax.random.key(0))
    with pytest.raises(ValueError, match=f"head: start predicts v, .* is not {head}; leave"):
        method.init(jax.random.key(0), model=mlp, start=start)


def test_a_teacher_does_not_go_on_from_a_generator(mlp):
    method = Teacher(optimizer=Optimizer(1e-2))
    start = mlp.init(jax.random.key(0)).replace(sampler="one_step")
    with pytest.raises(ValueError, match="start is a generator"):
        method.init(jax.random.key(0), model=mlp, start=start)


def test_label_dropout_makes_a_network_that_can_be_guided():
    method = Teacher(optimizer=Optimizer(1e-2), label_dropout=0.1)
    told = blank(ClassNetwork(), 1)
    state = method.init(jax.random.key(0), model=told)
    assert state.model.network.guidance == (0.0, np.inf)


@pytest.mark.parametrize("stratified", [False, True])
def test_levels_by_a_law(stratified):
    """log(sigma / alpha) is normal, within the schedule's ends."""
    logsnr = np.asarray(
        noise_levels(jax.random.key(0), 20_000, (-0.4, 1.2), RectifiedFlow(), stratified)
    )
    # Standard errors of 20,000 draws, in units of the deviation: 0.007 and 0.005.
    np.testing.assert_allclose([(-logsnr / 2).mean(), (-logsnr / 2).std()], [-0.4, 1.2], atol=0.03)
    skew = ((-logsnr / 2 + 0.4) ** 3).mean() / 1.2**3
    assert abs(skew) < 0.06
    narrow = noise_levels(
        jax.random.key(0), 1000, (0.0, 5.0), LinearLogsnrSchedule(-1.0, 2.0), stratified
    )
    assert (narrow.min(), narrow.max()) == (-1.0, 2.0)


def test_optimal_loss_of_flow_matching(gaussian):
    """E[var(eps - x | x_t)] at logit-normal times: s^2 / ((1 - tau)^2 s^2 + tau^2)."""
    method = Teacher(optimizer=Optimizer(1e-3), weighting="velocity_mse", level=(-0.4, 1.0))
    model = gaussian.replace(schedule=RectifiedFlow())
    state = method.init(jax.random.key(0), model=model)
    x = Gaussian(0.3, 0.7).sample(jax.random.key(1), (1_000_000, 1))
    loss = compiled(method)(state, {"image": x}, jax.random.key(2))[1]["loss"]
    tau = 1 / (1 + np.exp(0.4 - norm.ppf((np.arange(100_000) + 0.5) / 100_000)))
    desired = np.mean(0.49 / ((1 - tau) ** 2 * 0.49 + tau**2))
    np.testing.assert_allclose(loss, desired, rtol=0.01)  # Monte Carlo of 1e6 samples


def test_the_directions_part_of_the_loss():
    """Of one channel 1 - cosine is 2 where signs differ: arccos(rho) / pi of normal u and u_hat.

    rho^2 is the part of the variance of u = eps - x that x_t explains.
    """
    model = blank(GaussianNetwork(mean=0.0), 1).replace(schedule=RectifiedFlow())
    x = Gaussian(0.0, 0.7).sample(jax.random.key(1), (100_000, 1))
    losses = []
    for direction in (False, True):
        method = Teacher(
            optimizer=Optimizer(1e-3), weighting="velocity_mse", level=(0.0, 1.0),
            direction=direction,
        )  # fmt: skip
        state = method.init(jax.random.key(0), model=model)
        losses.append(compiled(method)(state, {"image": x}, jax.random.key(2))[1]["loss"])
    tau = 1 / (1 + np.exp(-norm.ppf((np.arange(100_000) + 0.5) / 100_000)))
    rest = 0.49 / ((1 - tau) ** 2 * 0.49 + tau**2) / 1.49
    desired = np.mean(2 / np.pi * np.arccos(np.sqrt(1 - rest)))
    np.testing.assert_allclose(losses[1] - losses[0], desired, atol=0.012)  # four standard errors


@pytest.mark.parametrize("level", [(0.0,), (0.0, 0.0), (0.0, 1.0, 2.0), (np.nan, 1.0)])
def test_a_law_that_is_none(level):
    with pytest.raises(ValueError, match=r"level must be \(mean, deviation\) or empty"):
        Teacher(optimizer=Optimizer(1e-3), level=level)


def energy_distance(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()


MIXTURE = GaussianMixture(
    np.full(4, 0.25),
    np.array([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]]),
    np.full(4, 0.12),
)


@functools.partial(jax.jit, static_argnums=(0, 2))
def fit(method, state, num_updates, seed=7):
    """The product after `num_updates` updates on fresh batches of `MIXTURE`."""

    def update(state, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        data_key, step_key = jax.random.split(key)
        batch = {"image": MIXTURE.sample(data_key, 256)}
        return method.step(state, batch, step_key)[0], None

    return method.product(jax.lax.scan(update, state, jnp.arange(num_updates))[0])


@pytest.mark.slow
def test_a_mixture_from_teacher_to_one_step(mlp):
    """docs/methods/progressive.md, T15: the one-step student is near the 64-step teacher and far
    below the undistilled teacher at one step."""

    def draw(network, num_steps):
        return samplers.sample(
            network.denoiser(), jax.random.key(5), (2000, 2),
            schedule=network.schedule, num_steps=num_steps,
        )  # fmt: skip

    data = MIXTURE.sample(jax.random.key(6), 2000)
    adam = Optimizer(3e-3, num_updates=3000, anneal="cosine", ema_decay=0.99)
    method = Teacher(optimizer=adam, stratified=True)
    student = teacher = fit(method, method.init(jax.random.key(0), model=mlp), 3000)
    adam = Optimizer(1e-3, num_updates=600, anneal="linear")
    method = Progressive(optimizer=adam, start_steps=64, stratified=True)
    for num_steps in (32, 16, 8, 4, 2, 1):
        state = method.init(jax.random.key(0), teacher=student, num_steps=num_steps)
        student = fit(method, state, 600)

    at_64 = energy_distance(draw(teacher, 64), data)
    at_1 = energy_distance(draw(teacher, 1), data)
    distilled = energy_distance(draw(student, 1), data)
    assert at_64 < 0.01
    assert distilled < at_64 + 0.01
    assert distilled < 0.05 * at_1


@pytest.mark.slow
def test_a_flow_differs_from_a_v_network_like_another_seed(mlp):
    """With times that are uniform a rectified flow's denoiser is as far from a cosine schedule's of
    v as two of a kind are from each other; at 6, where all agree to 0.002, 1.36 times as far. With
    flow matching's logit-normal times it is further at the ends, which these seldom draw: 1.6 times
    at -6 and 2.7 at 6."""
    kinds = {"v": mlp, "flow": mlp.replace(head="velocity", schedule=RectifiedFlow())}
    seeds, adam = range(3), Optimizer(3e-3, num_updates=3000, anneal="cosine", ema_decay=0.99)

    def teacher(kind, seed):
        weighting = "velocity_mse" if kind == "flow" else "v_mse"
        method = Teacher(optimizer=adam, stratified=True, weighting=weighting)
        state = method.init(jax.random.key(seed), model=kinds[kind])
        return fit(method, state, 3000, seed + 50)

    teachers = {(kind, seed): teacher(kind, seed) for kind in kinds for seed in seeds}
    data = MIXTURE.sample(jax.random.key(8), 4000)
    for level in (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0):
        logsnr = jnp.full(len(data), level)
        z, _ = noised(jax.random.key(9), data, logsnr)
        made = {name: network.denoise(z, logsnr) for name, network in teachers.items()}

        def apart(first, second):
            return jnp.mean(jnp.square(made[first] - made[second]))  # noqa: B023

        pairs = [(i, j) for i in seeds for j in seeds if i < j]
        same = np.mean([apart((kind, i), (kind, j)) for kind in kinds for i, j in pairs])
        other = np.mean([apart(("v", i), ("flow", j)) for i in seeds for j in seeds])
        assert other < 1.3**2 * same, level
