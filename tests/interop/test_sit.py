"""SiT, DiT and LightningDiT against `sit_reference`, whose numbers are those of their code."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import sit_reference
from comparison import checkpoint, nhwc
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
from pdistill.networks import Conditioning
from pdistill.samplers import Ddim, sample

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
        name: (network.schedule, network.guidance_levels, conversion.card["num_steps"])
        for name, (conversion, _) in made.items()
        if (network := conversion.network).guidance_channels == 3
    }
    assert found["sit"] == (RectifiedFlow(), None, 249)
    assert found["dit"] == (DdpmSchedule("linear", 1e-4, 0.02), None, 250)
    schedule, (low, high), num_steps = found["lightningdit"]
    assert (schedule, num_steps) == (RectifiedFlow(1 / 0.3), 249)
    np.testing.assert_allclose(low, 2 * np.log(0.125 / 0.875))
    assert high > schedule(jnp.zeros(()))
    for conversion, _ in made.values():
        card = conversion.card
        assert (card["clip"], card["data"]["scale"], card["guidance"]) == (
            None, "latents", (0.0, None),
        )  # fmt: skip


def published_euler(tensors, noise, label, scale, *, shift, start, num):
    """The published code's sampler: Euler's steps between `num` times, three channels guided.

    From the time `start` on; they have 250 times.
    """
    t = np.linspace(0, 1, num)
    t = shift * t / (1 + (shift - 1) * t)
    x, none = noise.astype(float), np.full_like(label, 10)
    for now, then in itertools.pairwise(t):
        at = np.full(len(x), now)
        velocity, free = (
            sit_reference.network(tensors, x, at, y)[:, : x.shape[1]] for y in (label, none)
        )
        if now >= start:
            velocity[:, :3] = free[:, :3] + scale * (velocity[:, :3] - free[:, :3])
        x = x + (then - now) * velocity
    return x


@pytest.mark.parametrize(
    ("name", "scale", "how"),
    [
        ("sit", 1.5, {"shift": 1.0, "start": 0.0}),
        ("lightningdit", 6.7, {"shift": 0.3, "start": 0.125}),
    ],
)
def test_sampled_as_published(made, tmp_path, name, scale, how):
    conversion, tensors = made[name]
    out = tmp_path / "model"
    write_model(out, conversion)
    model = pdistill.load(out)
    assert (model.sampling.num_steps, model.sampling.solver) == (249, Ddim())
    noise, label = normal(3, 2, model.noise_shape[2], *model.noise_shape[:2]), np.array([3, 7])
    desired = nhwc(published_euler(tensors, noise, label, scale, num=26, **how))
    sampling = model.sampling_with(25)
    run = double(
        lambda z, label, weight: sampling.run(
            model.network, Conditioning(label, guidance=weight), key=None, z_init=z
        )
    )
    actual = run(nhwc(noise).astype(float), label, np.full(2, scale - 1))
    np.testing.assert_allclose(actual, desired, atol=1e-9 * np.abs(desired).max())
    assert desired.std() > 0.1


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


def test_truncated_files_and_heads_by_the_command(sit, tmp_path):
    path, out = checkpoint(tmp_path / "a.pt", sit[1]), tmp_path / "model"
    with pytest.raises(SystemExit, match="none of the published networks is 48 wide; give --heads"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}"])
    with pytest.raises(SystemExit, match="is 48 wide, which 5 heads do not divide"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}", "--heads=5"])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SystemExit, match=r"cannot read .*a.pt: .*; get the file again"):
        convert.main(["--from=sit", f"--source={path}", f"--out={out}", "--heads=4"])
    assert not out.exists()
