import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    KarrasSchedule,
    LinearLogsnrSchedule,
    alpha_sigma,
    x_from_v,
)
from pdistill.samplers import (
    Ancestral,
    Ddim,
    DpmSolverPP2M,
    Edm,
    Gamma,
    Heun,
    Multistep,
    OneStep,
    Stochastic,
    num_evaluations,
)
from pdistill.samplers import encode as eager_encode
from pdistill.samplers import sample as eager_sample

COSINE = CosineSchedule()
DETERMINISTIC = [Ddim(), Heun(), DpmSolverPP2M()]
SOLVERS = [*DETERMINISTIC, Ancestral()]
GAUSSIAN = Gaussian(0.3, 0.7).denoise
KEY = jax.random.key(0)
Z = np.array([[-1.5, 0.3], [0.4, 0.9], [2.0, -0.1]])

# One compilation for each setting, instead of one for each operation outside the scan.
STATIC = ("schedule", "num_steps", "solver", "return_trajectory")
sample = functools.partial(
    jax.jit(
        eager_sample,
        static_argnums=(0, 2),
        static_argnames=(*STATIC, "times", "clip", "last_step_is_x_hat"),
    ),
    schedule=COSINE,
)
encode = jax.jit(eager_encode, static_argnums=0, static_argnames=STATIC)


def wavy(z, logsnr):
    """A nonlinear denoiser that no solver integrates exactly: v_hat = 0.8 tanh(...)."""
    return x_from_v(z, 0.8 * jnp.tanh(1.3 * z + 0.1 * logsnr[:, None]), logsnr)


def largest_error(actual, desired):
    return np.max(np.abs(np.asarray(actual) - desired))


def order(error, num_steps):
    """Measured order of convergence from N to 4 N steps."""
    return np.log(error(num_steps) / error(4 * num_steps)) / np.log(4)


# --- Counts that are arguments ------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        *SOLVERS, Edm(), Edm(churn=3.0), Stochastic(), Multistep((-6.0, -2.0, 1.0)), Gamma(0.0),
        Gamma(0.6),
    ],
    ids=str,
)  # fmt: skip
def test_one_program_of_any_count(x64, solver):
    """Levels, memory and keys are those of a fixed count, and the last step is x_hat."""
    jump = lambda z, logsnr_t, logsnr_s: wavy(z, logsnr_t) * jnp.cos(logsnr_s)[:, None]  # noqa: E731
    model = jump if solver.jumps else wavy
    draw = functools.partial(eager_sample, model, schedule=COSINE, solver=solver, z_init=Z)
    traces = []

    @jax.jit
    def any_count(key, num_steps):
        traces.append(num_steps)
        return draw(key, num_steps=num_steps)

    for num_steps in (1, 3):
        fixed = jax.jit(lambda key, n=num_steps: draw(key, num_steps=n))(KEY)
        np.testing.assert_allclose(any_count(KEY, num_steps), fixed, rtol=1e-12)
    assert len(traces) == 1


def test_a_trajectory_has_a_fixed_count():
    def draw(num_steps):
        return eager_sample(
            wavy, KEY, Z.shape, schedule=COSINE, num_steps=num_steps, return_trajectory=True
        )

    with pytest.raises(ValueError, match="num_steps is traced"):
        jax.jit(draw)(3)


# --- Known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "std"), [(1, 7.26399e-06), (4, 0.2478887), (16, 0.3575134), (1024, 0.3993017870)]
)
def test_ddim_on_a_gaussian(x64, num_steps, std):
    """docs/methods/progressive.md, T7."""
    z = np.array([[0.0], [1.0]])
    x = sample(Gaussian(0.3, 0.4).denoise, None, z_init=z, num_steps=num_steps)
    np.testing.assert_allclose(x[1] - x[0], std, rtol=5e-7)  # linear in z: the gain is the std
    # ... and mean 0.3 is hit, but for alpha(1) = 4.5e-5 of it that z_1 ~ N(0, 1) leaves out.
    alpha, _ = alpha_sigma(-20.0)
    np.testing.assert_allclose(x[0], 0.3 * (1 - std * alpha), rtol=1e-9)


@pytest.mark.parametrize(
    ("num_steps", "x"),
    [
        (4, [-0.776993, -0.078859, 0.396386, 0.592541]),
        (64, [-0.903380, -0.148183, 0.421750, 0.714838]),
        (1024, [-0.913757, -0.173247, 0.423083, 0.724331]),
    ],
)
def test_ddim_on_a_mixture(golden, num_steps, x):
    """docs/methods/progressive.md, T8."""
    actual = sample(golden.mixture.denoise, None, z_init=golden.z, num_steps=num_steps)
    np.testing.assert_allclose(actual.ravel(), x, rtol=0, atol=6e-7)  # given to six places


def test_one_step_finds_the_mean_of_the_data(golden):
    x = sample(golden.mixture.denoise, None, z_init=golden.z, num_steps=1)
    np.testing.assert_allclose(x, 0.110, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("variance", "std"), [("small", 0.286758), ("large", 0.426335), ("medium:0.5", 0.345827)]
)
def test_ancestral_on_a_gaussian(variance, std):
    """docs/methods/progressive.md, T7; only if each step's noise is independent of all before."""
    solver = Ancestral(variance)
    x = sample(Gaussian(0.3, 0.4).denoise, KEY, (50_000, 4), num_steps=8, solver=solver)
    # Five standard errors of 2e5 samples.
    np.testing.assert_allclose(np.std(x), std, rtol=0.008)
    np.testing.assert_allclose(np.mean(x), 0.3, atol=5 * std / np.sqrt(x.size))


def test_noise_of_the_first_levels_deviation(x64):
    """Without an image, sigma / alpha goes from 1 to 1/2 and z with sigma: by hand."""
    zero, solver = (lambda z, logsnr: 0 * z), Edm(sigma_min=0.5, sigma_max=1.0)
    settings = {"schedule": KarrasSchedule(0.5, 1.0), "num_steps": 3, "solver": solver}
    x, trajectory = sample(
        zero, None, z_init=Z, last_step_is_x_hat=False, return_trajectory=True, **settings
    )
    np.testing.assert_allclose(trajectory[0], Z / np.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(x, Z / np.sqrt(5), rtol=1e-12)
    np.testing.assert_allclose(encode(zero, Z, **settings), 2 * Z, rtol=1e-12)


def test_two_times_are_one_step():
    steps = [
        sample(GAUSSIAN, KEY, (3, 2), **how) for how in ({"num_steps": 1}, {"times": (1.0, 0.0)})
    ]
    np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize("solver", [Heun(), Edm()], ids=str)
def test_an_image_with_noise_stays_as_it_is(x64, solver):
    """From its time on; only pure noise has the deviation that a solver gives it."""
    schedule, start = KarrasSchedule(), 0.3
    z = np.random.default_rng(0).normal(size=(500, 1))
    alpha, sigma = (float(a) for a in alpha_sigma(schedule(start)))
    z = alpha * 0.3 + np.sqrt((alpha * 0.7) ** 2 + sigma**2) * z
    times = tuple(start * (1 - i / 32) for i in range(33))
    x = sample(GAUSSIAN, None, z_init=z, schedule=schedule, times=times, solver=solver)
    exact = jax.jit(Gaussian(0.3, 0.7).flow)(z, schedule(start), schedule(0.0))
    np.testing.assert_allclose(x, exact, rtol=0, atol=2e-3)


# --- Orders of convergence ----------------------------------------------------------------------


@pytest.mark.parametrize("last_step_is_x_hat", [True, False])
@pytest.mark.parametrize(
    ("solver", "num_steps", "error_there", "low", "high"),
    # Measured 0.97 for DDIM; for Heun 2.03 with the last step x_hat, 1.91 without.
    [(Ddim(), 256, 8e-3, 0.9, 1.1), (Heun(), 64, 5e-3, 1.85, 2.15)],
    ids=["ddim", "heun"],
)
def test_order_on_the_cosine_grid(
    golden, solver, num_steps, error_there, low, high, last_step_is_x_hat
):
    @functools.cache
    def error(num_steps):
        x = sample(
            golden.mixture.denoise, None, z_init=golden.z, num_steps=num_steps, solver=solver,
            last_step_is_x_hat=last_step_is_x_hat,
        )  # fmt: skip
        return largest_error(x, golden.x)

    assert error(num_steps) < error_there
    assert low < order(error, num_steps) < high


def test_dpm_solver_is_second_order_on_its_grid(golden):
    exact = jax.jit(golden.mixture.flow)(golden.z, -6.0, 6.0)

    @functools.cache
    def error(num_steps, solver=DpmSolverPP2M()):  # noqa: B008
        x = sample(
            golden.mixture.denoise, None, z_init=golden.z, num_steps=num_steps, solver=solver,
            schedule=LinearLogsnrSchedule(), last_step_is_x_hat=False,
        )  # fmt: skip
        return largest_error(x, exact)

    assert 1.9 < order(error, 64) < 2.1  # measured 2.02
    assert error(64) < error(64, Ddim()) / 50  # at the same cost; measured 140


@pytest.mark.parametrize(
    ("solver", "last_step_is_x_hat", "low_encoding", "low", "error_at_128"),
    # Measured orders of encoding alone, and of encoding and sampling.
    [
        (Ddim(), False, 0.9, 0.85, 0.03),  # 0.99, 0.93
        (Ddim(), True, 0.9, 0.85, 0.03),  # 0.99, 0.93
        # Most of Heun's error is undone on the way back, which gains an order ...
        (Heun(), False, 1.9, 2.8, 1e-4),  # 2.01, 2.99
        # ... but for the local error, of order 2, of one Euler step at the end.
        (Heun(), True, 1.9, 1.9, 1e-3),  # 2.01, 2.01
        # The cosine grid starts with huge steps in logsnr, which this solver does not like.
        (DpmSolverPP2M(), False, 1.5, 1.9, 1e-2),  # 1.64, 2.15
        (DpmSolverPP2M(), True, 1.5, 1.9, 1e-3),  # 1.64, 2.57
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_order_of_encoding_and_sampling(
    golden, solver, last_step_is_x_hat, low_encoding, low, error_at_128
):
    denoise = golden.mixture.denoise

    @functools.cache
    def errors(num_steps):
        z = encode(denoise, golden.x, schedule=COSINE, num_steps=num_steps, solver=solver)
        x = sample(
            denoise, None, z_init=z, num_steps=num_steps, solver=solver,
            last_step_is_x_hat=last_step_is_x_hat,
        )  # fmt: skip
        return largest_error(z, golden.z), largest_error(x, golden.x)

    assert errors(128)[1] < error_at_128
    assert order(lambda n: errors(n)[0], 128) > low_encoding
    assert order(lambda n: errors(n)[1], 128) > low


def test_encode_starts_at_the_data(golden):
    z, trajectory = encode(
        golden.mixture.denoise, golden.x, schedule=LinearLogsnrSchedule(-6.0, 2.0), num_steps=64,
        return_trajectory=True,
    )  # fmt: skip
    assert trajectory.shape == (65, 4, 1)
    alpha, _ = alpha_sigma(2.0)
    np.testing.assert_allclose(trajectory[0], alpha * golden.x, rtol=1e-14)
    np.testing.assert_array_equal(trajectory[-1], z)
    exact = jax.jit(golden.mixture.flow)(alpha * golden.x, 2.0, -6.0)
    np.testing.assert_allclose(z, exact, rtol=0, atol=3e-4)  # Heun at 64 steps, measured 1.3e-4


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
def test_float32_is_enough(golden, solver):
    mixture = golden.mixture
    single = GaussianMixture(
        *(np.asarray(a, np.float32) for a in (mixture.weights, mixture.means, mixture.stds))
    )
    actual, exact = (
        sample(denoise, None, z_init=z, num_steps=256, solver=solver)
        for denoise, z in (
            (single.denoise, golden.z.astype(np.float32)),
            (mixture.denoise, golden.z),
        )
    )
    assert actual.dtype == jnp.float32
    # A few hundred roundings of 6e-8 that mostly cancel; the method's own error is 8e-3 (DDIM).
    np.testing.assert_allclose(actual, exact, rtol=0, atol=2e-5)


# --- The last step, clipping, the trajectory ----------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_one_step_returns_x_hat(x64, solver):
    desired = wavy(Z, np.full(3, -20.0))
    x = sample(wavy, KEY, z_init=Z, num_steps=1, solver=solver)
    np.testing.assert_allclose(x, desired, rtol=1e-14)
    stepped = sample(wavy, KEY, z_init=Z, num_steps=1, solver=solver, last_step_is_x_hat=False)
    assert largest_error(stepped, desired) > 1e-5


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_last_step_returns_x_hat(x64, solver):
    x, trajectory = sample(wavy, KEY, z_init=Z, num_steps=5, solver=solver, return_trajectory=True)
    np.testing.assert_allclose(x, wavy(trajectory[-2], COSINE(np.full(3, 0.2))), rtol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_clips_every_evaluation(x64, solver):
    def tame(z, logsnr):
        return jnp.maximum(jnp.minimum(wavy(z, logsnr), 0.6), -0.2)

    run = functools.partial(sample, key=KEY, z_init=Z, num_steps=6, solver=solver)
    clipped = run(wavy, clip=(-0.2, 0.6))
    np.testing.assert_allclose(clipped, run(tame), rtol=1e-12)
    assert np.min(clipped) >= -0.2
    assert np.max(clipped) <= 0.6
    # Clipping only at the end is something else.
    assert largest_error(clipped, np.clip(run(wavy), -0.2, 0.6)) > 1e-3


@pytest.mark.parametrize("last_step_is_x_hat", [True, False])
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
def test_trajectory_is_that_of_a_python_loop(x64, solver, last_step_is_x_hat):
    logsnr = -2 * np.log(np.tan(1.5707055269354342 * np.arange(6, -1, -1) / 6 + 4.539992973e-05))
    z, memory = Z, solver.init(Z, None, 1)
    desired = [Z]
    for i in range(6):
        x_hat = wavy(z, np.full(3, logsnr[i]))
        z, memory = solver.step(wavy, z, x_hat, logsnr[i], logsnr[i + 1], None, memory)
        desired.append(x_hat if last_step_is_x_hat and i == 5 else z)
    x, trajectory = sample(
        wavy, None, z_init=Z, num_steps=6, solver=solver, return_trajectory=True,
        last_step_is_x_hat=last_step_is_x_hat,
    )  # fmt: skip
    assert trajectory.shape == (7, 3, 2)
    np.testing.assert_array_equal(trajectory[0], Z)
    np.testing.assert_array_equal(trajectory[-1], x)
    # Rounding of logsnr near its ends times the 1 / sigma = 2e4 of v_from_x.
    np.testing.assert_allclose(trajectory, desired, rtol=0, atol=1e-8)


# --- Randomness ---------------------------------------------------------------------------------


def test_key_draws_standard_normal_noise():
    x, trajectory = sample(wavy, KEY, (20_000, 4), num_steps=2, return_trajectory=True)
    noise = trajectory[0]
    assert noise.dtype == jnp.float32
    # Five standard errors of 8e4 samples.
    np.testing.assert_allclose([np.mean(noise), np.std(noise)], [0, 1], atol=0.018)
    again = sample(wavy, None, z_init=noise, num_steps=2)
    np.testing.assert_allclose(again, x, rtol=1e-6)


@pytest.mark.parametrize("solver", [Ddim(), Ancestral()], ids=str)
def test_samples_are_a_function_of_the_key(solver):
    draws = [
        sample(wavy, jax.random.key(seed), (3, 2), num_steps=4, solver=solver) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert largest_error(draws[0], draws[2]) > 0.01


def test_noise_of_the_steps_depends_on_the_key_with_z_init():
    z = Z.astype(np.float32)
    draws = [
        sample(wavy, jax.random.key(seed), z_init=z, num_steps=4, solver=Ancestral())
        for seed in (0, 1)
    ]
    assert largest_error(draws[0], draws[1]) > 0.01


# --- Cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_step_is_x_hat", [True, False])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_num_evaluations_counts_calls_at_run_time(x64, solver, last_step_is_x_hat):
    levels, num_steps = [], 5

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: levels.append(float(level)), logsnr[0])
        return 0.5 * z

    sample(
        denoise, KEY, z_init=Z, num_steps=num_steps, solver=solver,
        last_step_is_x_hat=last_step_is_x_hat,
    )  # fmt: skip
    jax.effects_barrier()
    assert len(levels) == num_evaluations(solver, num_steps, last_step_is_x_hat)
    # At every grid point but the last; Heun's second evaluation is at the end of each full step.
    grid = COSINE(np.arange(num_steps, -1, -1) / num_steps)
    second = grid[1:-1] if last_step_is_x_hat else grid[1:]
    desired = [*grid[:-1], *(second if solver.evaluations_per_step == 2 else [])]
    np.testing.assert_allclose(sorted(levels), sorted(desired), atol=1e-12)


def test_num_evaluations():
    assert [num_evaluations(s, 8) for s in SOLVERS] == [8, 15, 8, 8]
    assert [num_evaluations(s, 8, last_step_is_x_hat=False) for s in SOLVERS] == [8, 16, 8, 8]
    assert num_evaluations("heun", jnp.array(8)) == 15
    assert jax.jit(lambda num_steps: num_evaluations("heun", num_steps))(8) == 15
    assert num_evaluations("cascade", [8, 4]) == 12
    for solver, num_steps, message in (
        ("ddim", (8, 4), r"ddim takes one count of steps; got \(8, 4\)"),
        ("cascade", 8, "cascade takes a count a resolution of steps; got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            num_evaluations(solver, num_steps)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_program_size_does_not_depend_on_the_number_of_steps(solver):
    sizes = {
        sample.func.lower(
            wavy, KEY, (2, 2), schedule=COSINE, num_steps=num_steps, solver=solver
        ).as_text().count("\n")
        for num_steps in (2, 256)
    }  # fmt: skip
    assert len(sizes) == 1


# --- Transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_jit_and_vmap_change_nothing(x64, solver):
    def run(sample, key, z):
        return sample(wavy, key, z_init=z, schedule=COSINE, num_steps=4, solver=solver)

    keys, z = jax.random.split(KEY, 3), np.stack([Z, Z + 1, -Z])
    batched = jax.vmap(functools.partial(run, eager_sample))(keys, z)
    for i in range(3):
        np.testing.assert_allclose(batched[i], run(sample, keys[i], z[i]), rtol=1e-12)
    np.testing.assert_allclose(batched[0], run(eager_sample, keys[0], z[0]), rtol=1e-12)


def test_gradient_of_ddim_on_a_gaussian(x64):
    """x = mean + G (z - alpha(1) mean), G the product of the steps' gains."""
    std, num_steps = 0.4, 5
    phi = np.arctan(np.exp(-COSINE(np.arange(num_steps + 1) / num_steps) / 2))
    scale = np.hypot(std * np.cos(phi), np.sin(phi))
    psi = np.arctan2(np.sin(phi), std * np.cos(phi))
    psi[0] = 0.0  # the last step returns x_hat
    gain = std / scale[-1] * np.prod(np.cos(np.diff(psi)))

    def run(mean, z):
        denoise = Gaussian(mean, std).denoise
        x = eager_sample(denoise, None, z_init=z, schedule=COSINE, num_steps=num_steps)
        return x[0, 0]

    of_mean, of_z = jax.jit(jax.grad(run, argnums=(0, 1)))(0.3, np.ones((1, 1)))
    np.testing.assert_allclose(of_z, [[gain]], rtol=1e-12)
    np.testing.assert_allclose(of_mean, 1 - gain * np.cos(phi[-1]), rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_gradients_in_a_parameter_and_the_noise(x64, solver):
    """Forward and reverse mode agree with finite differences."""

    @jax.jit
    def run(scale, z):
        return eager_sample(
            lambda z, logsnr: scale * wavy(z, logsnr), KEY, z_init=z, schedule=COSINE, num_steps=3,
            solver=solver,
        )  # fmt: skip

    check_grads(run, (0.9, Z), order=1, modes=("fwd", "rev"), rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_sharded_samples_are_the_same_and_stay_sharded(solver):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    z = jax.random.normal(KEY, (16, 2))

    def run(z):
        return sample(wavy, KEY, z_init=z, num_steps=4, solver=solver, return_trajectory=True)

    whole, (x, trajectory) = run(z), run(jax.device_put(z, sharding))
    assert x.sharding.is_equivalent_to(sharding, 2)
    assert trajectory.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "data")), 3)
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 2)}
    # The compiler fuses other shapes differently.
    np.testing.assert_allclose(x, whole[0], rtol=0, atol=1e-6)


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"key": None, "shape": (1, 2)}, "key may be None only"),
        ({"key": None, "z_init": np.zeros((1, 2)), "solver": Ancestral()}, "key may be None only"),
        ({"shape": None}, "give either shape or z_init"),
        ({"num_steps": None, "times": (0.5, 0.5)}, r"times must fall, in \[0, 1\]; got"),
        ({"num_steps": None, "times": (80.0, 10.0, 0.0)}, r"times must fall, in \[0, 1\]; got"),
        ({"num_steps": None, "times": (1.0, np.nan)}, r"times must fall, in \[0, 1\]; got"),
        ({"num_steps": None, "times": (1.0, -0.1)}, r"times must fall, in \[0, 1\]; got"),
        (
            {"key": jax.random.split(KEY, 1), "shape": None, "z_init": np.zeros((5, 2))},
            "or one for each of the 5 samples",
        ),
        ({"key": jax.random.split(KEY, 3)}, "or one for each of the 1 samples"),
        ({"num_steps": None, "times": (1.0,)}, r"times must be at least two, .*; got \(1.0,\)"),
        ({"num_steps": jnp.array(2.7)}, "num_steps must be at least 1; got .*no whole number"),
        ({"z_init": np.zeros((2, 2))}, r"shape \(1, 2\) is not z_init's \(2, 2\)"),
        ({"shape": None, "z_init": np.zeros((1, 2), int)}, "must be floating point, .*; got int"),
        ({"clip": (1, -1)}, r"clip must be \(low, high\) or None; got \(1, -1\)"),
        ({"clip": jnp.array([1.0, -1.0])}, r"clip must be \(low, high\) or None; got \[ 1. -1.\]"),
    ],
)
def test_bad_arguments_of_sample(arguments, message):
    arguments = {"key": KEY, "shape": (1, 2), "num_steps": 2, "schedule": COSINE} | arguments
    with pytest.raises(ValueError, match=message):
        eager_sample(wavy, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"solver": Ancestral()}, "encode needs a deterministic solver"),
        ({"solver": "one_step", "num_steps": 1}, "encode needs a deterministic solver"),
        ({"x": np.zeros((1, 2), np.uint8)}, "must be floating point, .*; got uint8"),
    ],
)
def test_bad_arguments_of_encode(arguments, message):
    with pytest.raises(ValueError, match=message):
        eager_encode(
            wavy, **({"x": np.zeros((1, 2)), "num_steps": 2, "schedule": COSINE} | arguments)
        )


@pytest.mark.parametrize("solver", [Ddim(), DpmSolverPP2M(), Heun()], ids=str)
def test_half_precision_noise_is_sampled_in_float32(solver):
    """A grid of 1,024 levels in bfloat16 repeats itself, which made 2M divide by zero."""
    denoise = Gaussian(0.3, 0.7).denoise
    z = jax.random.normal(jax.random.key(0), (4, 1)).astype(jnp.bfloat16)
    arguments = {"schedule": CosineSchedule(), "num_steps": 1024, "solver": solver}
    x = sample(denoise, None, z_init=z, **arguments)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(
        x, sample(denoise, None, z_init=z.astype(jnp.float32), **arguments)
    )


def test_a_count_of_steps_may_be_an_array():
    """Outside jit, too."""
    arguments = {"key": None, "z_init": Z, "schedule": COSINE}
    np.testing.assert_array_equal(
        eager_sample(wavy, **arguments, num_steps=jnp.asarray(2)),
        eager_sample(wavy, **arguments, num_steps=2),
    )


def test_one_step():
    """x_hat of pure noise, at the largest noise; no more steps than that."""
    denoise = Gaussian(0.3, 0.7).denoise
    x = eager_sample(denoise, None, z_init=Z, schedule=COSINE, num_steps=1, solver=OneStep())
    np.testing.assert_array_equal(x, denoise(jnp.asarray(Z), jnp.full(3, COSINE(jnp.ones(())))))
    with pytest.raises(ValueError, match="one_step takes 1 step; got num_steps=2"):
        eager_sample(denoise, None, z_init=Z, schedule=COSINE, num_steps=2, solver=OneStep())


def test_solvers_by_name():
    x = [
        sample(GAUSSIAN, KEY, (3, 2), num_steps=4, solver=solver)
        for solver in ("ancestral:small", Ancestral("small"))
    ]
    np.testing.assert_array_equal(*x)
    assert num_evaluations("heun", 4) == num_evaluations(Heun(), 4)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_denoiser_in_half_precision(num_steps):
    def denoise(z, logsnr):
        return (0.5 * z).astype(jnp.bfloat16)

    x = sample(denoise, KEY, (3, 2), schedule=CosineSchedule(), num_steps=num_steps)
    assert x.dtype == jnp.float32


def test_a_denoiser_where_a_jump_should_be():
    with pytest.raises(ValueError, match=r"gamma is for jumps, .* another solver, such as 'ddim'"):
        sample(lambda z, logsnr: z, KEY, (3, 2), schedule=CosineSchedule(), num_steps=2,
               solver="gamma")  # fmt: skip


@pytest.mark.parametrize(
    ("denoise", "num_steps", "found"),
    [
        (lambda z, logsnr: z[:, :1], 2, r"\(3, 1\)"),
        (lambda z, logsnr: z[:2], 1, r"\(2, 2\)"),
        (lambda z, logsnr: jnp.stack([z, z], -1), 1, r"\(3, 2, 2\)"),
        (lambda z, logsnr: (z, logsnr), 2, "tuple"),
        (lambda z, logsnr: (z, logsnr), 1, "tuple"),
    ],
)
def test_a_denoiser_of_another_shape(denoise, num_steps, found):
    with pytest.raises(ValueError, match=rf"x_hat of z's shape \(3, 2\); it returned {found}"):
        sample(denoise, KEY, (3, 2), num_steps=num_steps)


def test_one_step_may_enlarge():
    """As of a network that has grown beyond its teacher; more steps may not."""
    denoise = lambda z, logsnr: jnp.tile(z, (1, 2))  # noqa: E731
    x = sample(denoise, KEY, (3, 2), num_steps=1)
    assert x.shape == (3, 4)
    with pytest.raises(ValueError, match=r"x_hat of z's shape \(3, 2\); it returned \(3, 4\)"):
        sample(denoise, KEY, (3, 2), num_steps=2)


def test_noise_may_be_a_list():
    start = [[0.5], [1.0]]
    x, same = (
        eager_sample(GAUSSIAN, KEY, z_init=z, schedule=COSINE, num_steps=2)
        for z in (start, jnp.asarray(start))
    )
    np.testing.assert_array_equal(x, same)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key must be a PRNG key, such as jax\.random\.key\(0\); got 0"),
        (np.arange(3), "key must be a PRNG key"),
        (jax.random.split(KEY, 2), r"one for each of the 3 samples; got \(2,\)"),
    ],
)
def test_what_is_no_key(key, message):
    with pytest.raises(ValueError, match=message):
        eager_sample(GAUSSIAN, key, (3, 2), schedule=COSINE, num_steps=2)
