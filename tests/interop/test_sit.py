"""SiT, DiT and LightningDiT against `sit_reference`, whose numbers are those of their code."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.integrate
import sit_reference
from comparison import checkpoint, nhwc
from ddpm_reference import p_sample_loop
from sit_reference import normal, state_dict

import pdistill
from pdistill import convert
from pdistill.diffusion import DdpmSchedule, RectifiedFlow, alpha_sigma
from pdistill.interop import (
    ConversionError,
    convert_dit,
    convert_lightningdit,
    convert_sit,
    write_model,
)
from pdistill.interop import sit as published
from pdistill.networks import Conditioning
from pdistill.samplers import EulerMaruyama, ImprovedDdpm, integrate, sample
from pdistill.samplers.noise import as_threefry, fold_in
from pdistill.samplers.noise import normal as normal_of

PUBLISHED = {"inputs": 6, "patch": 1, "rms": True, "rope": True, "swiglu": True}
CONVERTERS = {"sit": convert_sit, "dit": convert_dit, "lightningdit": convert_lightningdit}
# Tensors, what is read off them, and their authors' code's mean, deviation, first and last number
# of the output for normal(1, ...), labels 3 and none; at their own times.
FLOW_TIMES = np.array([0.25, 0.9])
FILES = {
    "sit": (
        {"outputs": 8}, {"patch": 2, "shifts": True}, FLOW_TIMES,
        (0.074406, 1.022567, -0.376213, -3.449064),
    ),
    "dit": (
        {"outputs": 8}, {"patch": 2, "rms_norm": False}, np.array([37.25, 911.0]),
        (-0.075427, 1.035310, -0.716135, -1.439939),
    ),
    "lightningdit": (
        {"outputs": 6, **PUBLISHED}, {"patch": 1, "rope": True, "swiglu": True}, FLOW_TIMES,
        (0.512048, 0.775046, 0.284301, 1.086834),
    ),
    # Options that the published networks do not have.
    "lightningdit norms": (
        {"outputs": 4, "qk_norm": True, "shifts": False}, {"qk_norm": True, "shifts": False},
        FLOW_TIMES, None,
    ),
    "lightningdit rms norms": (
        {"outputs": 4, "qk_norm": True, "rms": True, "rope": True},
        {"qk_norm": True, "rms_norm": True, "swiglu": False}, FLOW_TIMES, None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Conversions by name, and the tensors that they are of."""
    path, found = tmp_path_factory.mktemp("files") / "net.pt", {}
    for name, (arguments, *_) in FILES.items():
        tensors = state_dict(**arguments)
        source = checkpoint(path, tensors, ("model", "ema"))
        found[name] = CONVERTERS[name.split()[0]](source, heads=4), tensors
        if name == "dit":
            found["dit with variance"] = convert_dit(source, heads=4, variance=True), tensors
    return found


def double(function):
    """Compiles for a few calls in double precision."""

    def call(*arguments):
        options = {"xla_backend_optimization_level": 0}
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            return jax.jit(function, compiler_options=options)(*map(jnp.asarray, arguments))

    return call


@pytest.mark.parametrize("name", FILES)
def test_parity(made, name):
    conversion, tensors = made[name]
    _, expected, times, golden = FILES[name]
    network = conversion.network
    assert {key: getattr(network.module, key) for key in expected} == expected
    shape = (2, network.shape[2], *network.shape[:2])
    x, label = normal(1, *shape).astype(float), np.array([3, 10])
    output = sit_reference.network(tensors, x, times, label)
    if golden:
        drawn = output if name == "dit" else output[:, : shape[1]]
        found = drawn.mean(), drawn.std(ddof=1), drawn.ravel()[0], drawn.ravel()[-1]
        np.testing.assert_allclose(found, golden, atol=4e-6)

    rng = np.random.default_rng(2)
    x, label = rng.normal(size=(10, *shape[1:])), np.arange(1, 11)
    if name == "dit":
        logsnr = double(network.schedule)(np.linspace(0.001, 1.0, 10))
        alpha, sigma = (np.asarray(a)[:, None, None, None] for a in double(alpha_sigma)(logsnr))
        eps = sit_reference.network(tensors, x, np.linspace(0, 999, 10), label)[:, : shape[1]]
        z, desired = x, (x - sigma * eps) / alpha
    else:
        t = np.linspace(0.005, 0.995, 10)
        logsnr, t4 = 2 * np.log(t / (1 - t)), t[:, None, None, None]
        velocity = sit_reference.network(tensors, x, t, label)[:, : shape[1]]
        z, desired = x / np.hypot(t4, 1 - t4), x + (1 - t4) * velocity
    denoise = double(lambda z, logsnr, label: network.denoise(z, logsnr, Conditioning(label)))
    actual = np.asarray(denoise(nhwc(z), logsnr, label))
    assert actual.dtype == np.float64
    errors = np.abs(actual - nhwc(desired)).max((1, 2, 3)) / np.abs(desired).max((1, 2, 3))
    assert errors.max() < 1e-9, errors
    assert desired.std() > 0.1


def test_cards(made):
    """What the authors' samplers do: steps, noise levels, and where they guide."""
    found = {
        name: (
            network.schedule,
            network.guidance_levels,
            conversion.card["num_steps"],
            conversion.card["solver"],
        )
        for name, (conversion, _) in made.items()
        if (network := conversion.network).guidance_channels == 3
    }
    assert found["sit"] == (RectifiedFlow(), None, 250, "euler_maruyama:0.04")
    assert found["dit"] == (DdpmSchedule("linear", 1e-4, 0.02), None, 250, "ddim")
    schedule, (low, high), num_steps, solver = found["lightningdit"]
    assert (schedule, num_steps, solver) == (RectifiedFlow(1 / 0.3), 249, "ddim")
    np.testing.assert_allclose(low, 2 * np.log(0.125 / 0.875))
    assert high > schedule(jnp.zeros(()))
    for conversion, _ in made.values():
        card = conversion.card
        assert (card["clip"], card["data"]["scale"], card["guidance"]) == (
            None, "latents", (0.0, None),
        )  # fmt: skip


def guided(tensors, x, now, label, scale, start=0.0):
    """The published code's velocity at the time `now`: three channels guided from `start` on."""
    at, none = np.full(len(x), now), np.full_like(label, 10)
    velocity, free = (
        sit_reference.network(tensors, x, at, y)[:, : x.shape[1]] for y in (label, none)
    )
    if now >= start:
        velocity[:, :3] = free[:, :3] + scale * (velocity[:, :3] - free[:, :3])
    return velocity


def published_euler(tensors, x, label, scale, *, num, shift=1.0, start=0.0):
    """The published code's sampler: Euler's steps between `num` times; they have 250."""
    t = np.linspace(0, 1, num)
    t = shift * t / (1 + (shift - 1) * t)
    for now, then in itertools.pairwise(t):
        x = x + (then - now) * guided(tensors, x, now, label, scale, start)
    return x


def published_sde(tensors, x, label, scale, *, num, draw):
    """SiT's stochastic sampler of `num` evaluations, with its code's own defaults."""
    times, last = np.linspace(0, 0.96, num), 0.04

    def drift(now):
        velocity = guided(tensors, x, now, label, scale)
        return velocity + (now * velocity - x)  # the score times 1 - now

    for i in range(num - 1):
        noise = draw(i) * np.sqrt(2 * (1 - times[i]) * times[1])
        x = x + drift(times[i]) * times[1] + noise
    return x + drift(times[-1]) * last


def run_as(model, sampling, noise, label, scale):
    """Samples of a model from the noise, with the key 0."""
    key = jax.random.key(0)
    run = double(
        lambda z, label, weight: sampling.run(
            model.network, Conditioning(label, guidance=weight), key=key, z_init=z
        )
    )
    return run(nhwc(noise), label, np.full(len(label), scale - 1))


def published_ddpm(tensors, x, label, scale, *, num, draw):
    """p_sample_loop of DiT's code: `num` of 1,000 steps, three channels guided, learnt variance."""

    def predict(x, step, _):
        at = np.full(len(x), float(step))
        output, free = (
            sit_reference.network(tensors, x, at, y) for y in (label, np.full_like(label, 10))
        )
        eps, share = output[:, :4].copy(), (output[:, 4:] + 1) / 2
        eps[:, :3] = free[:, :3] + scale * (eps[:, :3] - free[:, :3])
        return eps, share

    return p_sample_loop(predict, np.linspace(1e-4, 0.02, 1000), num, x, draw)


@pytest.fixture(scope="module")
def models(made, tmp_path_factory):
    """Model, tensors, noise and labels, by name."""
    found = {}
    for name in ("sit", "lightningdit", "dit with variance"):
        conversion, tensors = made[name]
        out = tmp_path_factory.mktemp(name) / "model"
        write_model(out, conversion)
        model = pdistill.load(out)
        noise = normal(3, 2, model.noise_shape[2], *model.noise_shape[:2]).astype(float)
        found[name] = model, tensors, noise, np.array([3, 7])
    return found


@pytest.mark.parametrize(
    ("name", "scale", "how"),
    [("sit", 1.5, {}), ("lightningdit", 6.7, {"shift": 0.3, "start": 0.125})],
)
def test_sampled_by_eulers_steps(models, name, scale, how):
    model, tensors, noise, label = models[name]
    desired = nhwc(published_euler(tensors, noise, label, scale, num=26, **how))
    actual = run_as(model, model.sampling_with(25, "ddim"), noise, label, scale)
    np.testing.assert_allclose(actual, desired, atol=1e-9 * np.abs(desired).max())
    assert desired.std() > 0.1


def test_sampled_by_the_stochastic_sampler(models):
    """SiT's, which its card has, on the same noise in every step."""
    model = models["sit"][0]
    assert (model.sampling.num_steps, model.sampling.solver) == (250, EulerMaruyama(0.04))
    check_steps_of_noise(published_sde, *models["sit"])


def test_sampled_with_the_learnt_variance(models):
    """DiT's, which its card has, on the same noise in every step; guidance leaves it alone."""
    model = models["dit with variance"][0]
    assert (model.sampling.num_steps, model.sampling.solver) == (250, ImprovedDdpm())
    check_steps_of_noise(published_ddpm, *models["dit with variance"])


def test_a_model_samples_with_its_variance(models):
    """Any number of steps by one program, as by the one of a number; each sample by its own key."""
    model, _, _, label = models["dit with variance"]
    key, how = jax.random.key(1), {"guidance": 0.5}
    for num_steps in (1, 3):
        found = model.sample(key, 2, label=label, num_steps=num_steps, **how)
        within = jax.jit(
            lambda key, n=num_steps: model.sample(key, 2, label=label, num_steps=n, **how)
        )
        np.testing.assert_allclose(within(key), found, atol=1e-4 * np.abs(found).max())
        alone = model.sample(key, 1, label=label[:1], num_steps=num_steps, **how)
        np.testing.assert_allclose(alone[0], found[0], atol=1e-4 * np.abs(found).max())
    with pytest.raises(ValueError, match="knows 1000 time steps; got num_steps=1001"):
        model.sample(key, 1, num_steps=1001)


def check_steps_of_noise(published, model, tensors, noise, label):
    """Samples of 12 steps against those of the published code, which draws the same noise."""
    shape = nhwc(noise).shape

    def draw(i):
        drawn = normal_of(fold_in(as_threefry(jax.random.key(0)), i), shape, jnp.float64)
        return np.moveaxis(np.asarray(drawn), -1, 1)

    with jax.enable_x64(True):
        desired = nhwc(published(tensors, noise, label, 1.5, num=12, draw=draw))
    actual = run_as(model, model.sampling_with(12), noise, label, 1.5)
    np.testing.assert_allclose(actual, desired, atol=1e-9 * np.abs(desired).max())
    assert desired.std() > 0.1


def test_the_flow_to_a_tolerance(models):
    """SiT's dopri5, against SciPy's solution of the published code's velocity."""
    model, tensors, noise, label = models["sit"]

    def velocity(t, x):
        return guided(tensors, x.reshape(noise.shape), t, label, 1.5).ravel()

    truth = scipy.integrate.solve_ivp(
        velocity, (0, 1), noise.ravel(), method="DOP853", rtol=1e-7, atol=1e-8
    ).y[:, -1]
    weight = np.full(2, 0.5)
    run = double(
        lambda z, label, weight: integrate(
            model.denoiser(label, weight), z, schedule=model.network.schedule, rtol=1e-6, atol=1e-7
        )
    )
    actual, _ = run(nhwc(noise), label, weight)
    desired = nhwc(truth.reshape(noise.shape))
    np.testing.assert_allclose(actual, desired, atol=2e-6 * np.abs(desired).max())


@pytest.mark.parametrize("name", ["sit", "dit", "lightningdit"])
def test_ten_steps_in_single_precision(made, name):
    conversion, tensors = made[name]
    network = conversion.network
    noise, label = normal(3, 2, network.shape[2], *network.shape[:2]), np.array([3, 7])
    times = np.linspace(1, 0, 11)
    levels = np.asarray(network.schedule(jnp.asarray(times)), np.float64)
    x, z = None, noise.astype(float)
    for i in range(10):
        alpha, sigma = (np.asarray(a, float) for a in alpha_sigma(levels[i]))
        at = np.full(2, 1000 * times[i] - 1 if name == "dit" else alpha / (alpha + sigma))
        given = z if name == "dit" else z / (alpha + sigma)
        output = sit_reference.network(tensors, given, at, label)[:, : z.shape[1]]
        if name == "dit":
            x, eps = (z - sigma * output) / alpha, output
        else:
            x, eps = given + (1 - at[0]) * output, given - at[0] * output
        alpha, sigma = (np.asarray(a, float) for a in alpha_sigma(levels[i + 1]))
        z = alpha * x + sigma * eps
    denoiser = network.denoiser(Conditioning(label=jnp.asarray(label)))
    actual = jax.jit(
        lambda z: sample(denoiser, None, schedule=network.schedule, num_steps=10, z_init=z),
        compiler_options={"xla_backend_optimization_level": 0},
    )(jnp.asarray(nhwc(noise)))
    np.testing.assert_allclose(actual, nhwc(x), atol=1e-4 * np.abs(x).max())


# --- Files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sit(made):
    return made["sit"]


def same(conversion, other, rtol=0.0):
    assert conversion.network.blank == other.network.blank
    assert conversion.card == other.card | {"stage": conversion.card["stage"]}
    for a, b in zip(*(jax.tree.leaves(c.network.params) for c in (conversion, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("keys", "prefix"), [((), ""), (("model",), "module."), (("ema",), "module._orig_mod.")]
)
def test_forms_of_a_checkpoint(sit, tmp_path, keys, prefix):
    tensors = {prefix + name: a for name, a in sit[1].items()}
    same(convert_sit(checkpoint(tmp_path / "a.pt", tensors, keys), heads=4), sit[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_half_precision(sit, tmp_path, dtype, suffix):
    path, tensors = tmp_path / f"a.{suffix}", {n: a.astype(dtype) for n, a in sit[1].items()}
    write = checkpoint if suffix == "pt" else lambda p, t: safetensors.numpy.save_file(t, p)
    write(path, tensors)
    same(convert_sit(path, heads=4), sit[0], rtol=4e-3)


def without(name):
    return lambda tensors: {k: a for k, a in tensors.items() if k != name}


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


WRONG = {
    "foreign": (lambda t: {"conv.weight": t["pos_embed"]}, "it lacks 'x_embedder.proj.weight'"),
    "renamed": (
        lambda t: {k.replace("mlp.fc1", "mlp.in"): a for k, a in t.items()},
        "'blocks.0.mlp.in.weight', which this network lacks",
    ),
    "missing": (without("blocks.1.attn.proj.bias"), "has no tensor 'blocks.1.attn.proj.bias'"),
    "more": (lambda t: t | {"head.bias": t["pos_embed"]}, "has a tensor 'head.bias', which this"),
    "shape": (changed("blocks.1.attn.qkv.bias", lambda a: a[1:]), "has shape [143], not [144]"),
    "positions": (changed("pos_embed", lambda a: a + 0.01), "is not the table of positions"),
    "oblong": (changed("pos_embed", lambda a: a[:, :-4]), "of shape [1, 12, 48], is not the table"),
    "nan": (changed("final_layer.linear.bias", lambda a: a * np.nan), "is not finite"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files(sit, tmp_path, change, message):
    path = checkpoint(tmp_path / "a.pt", change(sit[1]))
    with pytest.raises(ConversionError) as error:
        convert_sit(path, heads=4)
    assert message in str(error.value)


def test_a_variance_that_is_not_there(tmp_path):
    path, out = checkpoint(tmp_path / "a.pt", state_dict(outputs=4)), tmp_path / "model"
    with pytest.raises(SystemExit, match=r"a\.pt has no learnt variance; leave --variance out"):
        convert.main(["--from=dit", f"--source={path}", f"--out={out}", "--heads=4", "--variance"])


def test_heads_of_the_published_widths():
    """64 channels each, but for those of width 1152, which have 72."""
    assert {width // heads for width, heads in published.HEADS.items()} == {64, 72}
    assert all(width % heads == 0 for width, heads in published.HEADS.items())
    assert published.HEADS[1152] == 16


def test_truncated_files_and_heads_by_the_command(sit, tmp_path):
    path, out = checkpoint(tmp_path / "a.pt", sit[1]), tmp_path / "model"
    with pytest.raises(SystemExit, match="none of the published networks is 48 wide; give --heads"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}"])
    with pytest.raises(SystemExit, match="is 48 wide, which 5 heads do not divide"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}", "--heads=5"])
    with pytest.raises(SystemExit, match="--variance is not for --from=sit; leave it out"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}", "--variance"])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SystemExit, match=r"cannot read .*a.pt: .*; get the file again"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}", "--heads=4"])
    assert not out.exists()
