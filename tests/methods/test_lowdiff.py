"""LowDiff: its resolutions against the plain methods and closed forms, its stage, a whole run."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from stepping import compiled, plan_of, run, same
from tiny_experiment import leaves, tiny_lowdiff

import pdistill
from pdistill import diffusion, evaluate, experiment, sample
from pdistill.data.images import average, repeat
from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    alpha_sigma,
    denoising_loss,
    eps_from_x,
    v_from_x,
)
from pdistill.experiment.config import ConfigError, Named, as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.interop import read_folder, write_folder
from pdistill.interop.stablehlo import export_sampler
from pdistill.methods import LowDiff, Progressive, Run, Teacher
from pdistill.methods.parts.cascade import per_resolution, split_rows
from pdistill.methods.parts.regression import Examples, regress
from pdistill.methods.parts.times import uniform_times
from pdistill.model.sampling import Sampling, generate
from pdistill.networks import NOTHING, Conditioning, DiT, Network, UNet
from pdistill.runtime.files import read_jsonl
from pdistill.samplers import Cascade, Ddim, LowRes
from pdistill.training import Learner, LoopConfig, Optimizer

SCHEDULE = CosineSchedule()
ADAM = Optimizer(1e-3)
SMALL = {
    "channels": 8, "embedding_channels": 16, "multipliers": (1, 2), "blocks": 1,
    "attention_sizes": (4,),
}  # fmt: skip
UNET = UNet(1, **SMALL)
PLAIN = Network(None, module=UNET, head="v", schedule=SCHEDULE, shape=(8, 8, 1))
ALONE = PLAIN.replace(module=UNET.clone(resolutions=(8,)))
PAIR = PLAIN.replace(module=UNET.clone(resolutions=(4, 8)), shifts=(1.5, 0.0))
KEY = jax.random.key(3)


def batch(num=12, side=8):
    return {
        "image": jax.random.uniform(jax.random.key(5), (num, side, side, 1), minval=-1),
        "label": jnp.zeros(num, jnp.int32),
    }


def spoiled(network):
    """A network with parameters none of which is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), network.shapes)


# --- the network ----------------------------------------------------------------------------------


def test_one_resolution_is_the_plain_network():
    """Parameters and outputs to the bit, and one's share of several resolutions is its own."""
    init, v = jax.jit(Network.init), jax.jit(Network.v)
    params = init(PLAIN, KEY).params
    chex.assert_trees_all_equal(init(ALONE, KEY).params, params)
    spoil = spoiled(PLAIN)
    z, logsnr = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([-3.0, 0.0, 4.0])
    assert same(v(ALONE.replace(params=spoil.params), z, logsnr), v(spoil, z, logsnr))
    pair = init(PAIR, KEY).params
    shared = set(params) - {"conv_in"}  # it also takes the condition
    assert all(same(pair[name], params[name]) for name in shared)
    assert set(pair) - set(params) == {
        *("conv_in_4", "norm_out_4", "conv_out_4", "resolution_emb", "condition_in")
    }


def test_small_images_skip_the_outer_level():
    """Their output depends on all but what the larger size has for itself."""
    network = spoiled(PAIR)
    z, logsnr = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.zeros(2)
    grads = jax.jit(jax.grad(lambda net: jnp.sum(net.v(z, logsnr) ** 2)))(network).params
    told = grads["resolution_emb"]["embedding"]
    assert jnp.any(told[0] != 0)
    assert not jnp.any(told[1])
    zero = {
        name
        for name, tree in grads.items()
        if all(not jnp.any(leaf) for leaf in jax.tree.leaves(tree))
    }
    assert zero == {
        *("conv_in", "norm_out", "conv_out", "condition_in", "up_1.upsample"),
        *(name for name in grads if name.startswith(("down_0.", "up_0."))),
    }


DIT = PLAIN.replace(module=DiT(1, patch=2, features=16, depth=1, heads=2))
DIT_PAIR = DIT.replace(module=DIT.module.clone(resolutions=(4, 8)), shifts=(1.5, 0.0))


def test_a_transformer_of_one_resolution_is_the_plain_one():
    """And of several: all sizes share its blocks; a smaller one has its own way in."""
    init, v = jax.jit(Network.init), jax.jit(Network.v)
    params, spoil = init(DIT, KEY).params, spoiled(DIT)
    alone = DIT.replace(module=DIT.module.clone(resolutions=(8,)))
    chex.assert_trees_all_equal(init(alone, KEY).params, params)
    z, logsnr = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([-3.0, 0.0, 4.0])
    assert same(v(alone.replace(params=spoil.params), z, logsnr), v(spoil, z, logsnr))
    pair = init(DIT_PAIR, KEY).params
    assert set(pair) - set(params) == {
        *("patches_4", "position_4", "resolution_in", "condition_in")
    }
    network = spoiled(DIT_PAIR)
    grads = jax.jit(jax.grad(lambda net: jnp.sum(net.v(z[:, :4, :4], logsnr) ** 2)))(network)
    grads = {
        name: any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(tree))
        for name, tree in grads.params.items()
    }
    assert {name for name, any_ in grads.items() if not any_} == {
        *("patches", "position", "condition_in")
    }


@pytest.mark.parametrize(
    ("network", "table"), [(PAIR, "resolution_emb"), (DIT_PAIR, "resolution_in")]
)
def test_the_network_is_told_its_resolution_and_its_condition(network, table):
    network, v = spoiled(network), jax.jit(Network.v)
    z, logsnr = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.zeros(2)
    before = jax.random.normal(jax.random.key(4), (2, 4, 4, 1))

    def told(network=network, image=before, noise=3.0):
        return v(network, z, logsnr, Conditioning(image=LowRes(image, jnp.full(2, noise))))

    def without_row(i):
        rows = network.params[table]["embedding"]
        others = {table: {"embedding": rows.at[i].set(0.0)}}
        return network.replace(params=network.params | others)

    assert not same(told(), told(noise=4.0))
    assert not same(told(), told(image=before + 1))
    assert same(told(), told(without_row(0)))  # the first row is that of the smaller size
    assert not same(told(), told(without_row(1)))
    # No noise is a log-SNR of infinity, which is told as any of 20 and more.
    assert same(told(noise=jnp.inf), told(noise=20.0))


def test_flops():
    """The larger size has the condition's channel and the embedding of its noise besides."""
    unet = UNet(1, **(SMALL | {"multipliers": (1, 1), "attention_sizes": ()}))
    network = PLAIN.replace(module=unet, shape=(32, 32, 1))
    cascade = network.replace(module=unet.clone(resolutions=(16, 32)))
    small, large = (cascade.flops(shape) for shape in cascade.sizes)
    assert large - network.flops() == 2 * 9 * 8 * 32**2 + 2 * (8 * 16 + 16 * 16)
    assert 0.1 < small / large < 0.35
    sampling = Sampling((4, 2), Cascade())
    assert sampling.nfe == 6
    assert sampling.effective_nfe(cascade) == pytest.approx(2 + 4 * small / large)
    assert Sampling(4).effective_nfe(PLAIN) == 4


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow  # parts of it: the network above, the loss below
def test_one_resolution_is_the_plain_method():
    """docs/methods/lowdiff.md, A6: updates and samples to the bit, with dropout too."""
    network = PLAIN.replace(module=UNET.clone(dropout=0.2))
    plain = Teacher(optimizer=ADAM)
    alone = LowDiff(optimizer=ADAM, resolutions=(8,), split=(12,), max_noise=0.2)
    found = []
    for method in (plain, alone):
        state = jax.jit(lambda method=method: method.init(KEY, model=network))()
        (*_, last), _ = run(method, state, batch(), 3)
        found.append(last)
    assert same(*found)
    image = generate(plain.product(found[0]), KEY, jnp.arange(4), sampling=Sampling(5, Ddim()))
    one = generate(
        alone.product(found[1]), KEY, jnp.arange(4), sampling=Sampling((5,), Cascade(noise=0.1))
    )
    assert same(image, one)


@pytest.mark.slow  # it compiles for half a minute
def test_resolutions_have_dropout_of_their_own():
    """Inside, the maps of all have one size: with one key their masks would be the same."""
    learner = Learner.of(spoiled(PLAIN.replace(module=UNET.clone(dropout=0.5))), ADAM)
    x, key = batch()["image"], jax.random.key(6)
    logsnr = SCHEDULE(uniform_times(key, len(x), stratified=False))
    z, eps = diffusion.noised(KEY, x, logsnr)
    part = Examples(z, logsnr, diffusion.v_target(x, eps, logsnr), NOTHING)
    update = jax.jit(regress, static_argnums=2)

    def loss(parts, key):
        return float(update(learner, parts, "v_mse", key)[1]["loss"])

    alone = [loss([part], k) for k in (key, jax.random.fold_in(key, 1))]
    assert abs(alone[0] - alone[1]) > 1e-3 * alone[0]
    assert loss([part, part], key) == pytest.approx(sum(alone) / 2, rel=1e-5)


def teachers_examples(network, rows, below, key):
    """The examples that `Teacher` has at one resolution."""
    time_key, noise_key, *_ = jax.random.split(key, 4)
    x = rows["image"]
    logsnr = network.schedule(uniform_times(time_key, len(x), stratified=False))
    z, eps = diffusion.noised(noise_key, x, logsnr)
    return Examples(z, logsnr, diffusion.v_target(x, eps, logsnr), Conditioning(image=below))


@pytest.mark.parametrize("kind", [LowDiff, pytest.param(Progressive, marks=pytest.mark.slow)])
def test_the_loss_is_the_mean_over_all_resolutions(kind):
    """That of each is the plain method's, at the resolution's schedule, with its condition."""
    network = spoiled(DIT_PAIR).replace(sampler="cascade:ddim:0.1")
    settings = {"optimizer": ADAM, "split": (8, 4), "max_noise": 0.2}
    if kind is Progressive:
        method = Progressive(start_steps=8, **settings)
        state = method.init(KEY, teacher=network, num_steps=4)
    else:
        method = LowDiff(resolutions=(4, 8), **settings)
        state = method.State(Learner.of(network, ADAM))
    key, losses = jax.random.key(4), []
    loss = jax.jit(lambda *inputs: method.step(*inputs)[1]["loss"])  # compiles no gradient
    whole = loss(state, batch(), key)

    for i, (_, rows, below, own_key) in enumerate(
        per_resolution(network, batch(), key, (8, 4), 0.2)
    ):
        assert rows["image"].shape[1:] == PAIR.sizes[i]
        size = PAIR.resolutions[i]
        plain = network.replace(schedule=CosineSchedule(shift=(1.5, 0.0)[i]), shifts=())
        if kind is Progressive:
            found = jax.jit(method.examples)(plain, jnp.int32(4), rows, below, own_key)
        else:
            found = jax.jit(teachers_examples)(plain, rows, below, own_key)
        assert found.z.shape[1:3] == (size, size)
        v_hat = jax.jit(Network.v)(network, found.z, found.logsnr, found.told)
        losses.append(denoising_loss(v_hat, found.v, found.logsnr))
    assert [len(loss) for loss in losses] == [8, 4]
    assert whole == pytest.approx(float(jnp.concatenate(losses).mean()), rel=1e-5)


def test_conditions_are_averages_with_known_noise():
    images = {"image": batch(8000)["image"]}
    small, large = split_rows(images, (4000, 4000))
    first, second = per_resolution(PAIR, images, KEY, (1, 1), 0.3)
    _, rows, (noisy, logsnr), _ = second
    std = jnp.exp(-logsnr / 2)
    eps = (noisy - average(large["image"], 2)) / std[:, None, None, None]
    # 64,000 normal numbers: 4 standard errors of their mean and their std; and s uniform.
    assert float(eps.mean()) == pytest.approx(0, abs=0.016)
    assert float(eps.std()) == pytest.approx(1, abs=0.012)
    assert 0 <= float(std.min()) < float(std.max()) <= 0.3
    assert float(std.mean()) == pytest.approx(0.15, abs=0.006)
    assert same(rows, large)
    _, rows, below, _ = first
    assert same(rows["image"], average(small["image"], 2))
    assert below is None


def test_shifts_make_equal_times_equally_noisy():
    """Averages of z at lambda are images at lambda + 2 log 2, which is the default."""
    network = planned().network
    small, large = (network.at(size).schedule for size in (4, 8))
    t = jnp.array([0.3, 0.6])
    alpha, sigma = alpha_sigma(large(t))
    np.testing.assert_allclose(
        2 * jnp.log(alpha / (sigma / 2)), small(t), rtol=1e-5, atol=1e-5
    )  # averaging four pixels halves sigma


def test_parts_of_a_batch():
    """All rows once; of rows over gcd devices each keeps its share of every part."""
    rows = {"row": jnp.arange(24), "pair": jnp.arange(48).reshape(24, 2)}
    parts = split_rows(rows, (12, 8, 4))
    assert [len(part["row"]) for part in parts] == [12, 8, 4]
    assert sorted(np.concatenate([part["row"] for part in parts])) == list(range(24))
    for part in parts:
        assert same(part["pair"][:, 0], 2 * part["row"])
        of_device = np.asarray(part["row"]).reshape(4, -1) // 6
        np.testing.assert_array_equal(
            of_device, np.broadcast_to(np.arange(4)[:, None], of_device.shape)
        )
    assert same(split_rows(rows, (24,))[0], rows)


class Whites(nn.Module):
    """v of averages of four pixels N(0, 1), and of the pixels given such with noise.

    Exact for off = 0. The averages are N(0, 1 / 4); x | c has the mean K c with
    K = (1 / 4) / (1 / 4 + s^2) and, in each square, the covariance 1 - (K / 4) 1 1^T: 1 - K along
    its mean, 1 across.
    """

    resolutions: tuple[int, ...] = (2, 4)

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        off = self.param("off", nn.initializers.ones, ())
        alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(logsnr))
        if told.image is None:
            x_hat = Gaussian(0.0, 0.5).denoise(z, logsnr)
        else:
            noisy, noise = told.image
            k = 0.25 / (0.25 + jnp.exp(-noise))[:, None, None, None]
            mean = repeat(k * noisy, 2)
            offset = z - alpha * mean
            along = repeat(average(offset, 2), 2)
            gain = alpha * (1 - k) / (alpha**2 * (1 - k) + sigma**2)
            x_hat = mean + alpha * (offset - along) + repeat(average(along, 2) * gain, 2)
        return v_from_x(z, x_hat, logsnr) + off * eps_from_x(z, x_hat, logsnr)


def test_the_closed_form_is_what_is_learnt():
    """Off = 1 at first; at the conditional expectation the gradient is zero.

    Not if conditions were other than the network is told: averages taken for N(0, 1) end at 0.08.
    The gradient of an update, a mean over 26,000 pixels, has a standard error of about 0.006 there;
    Adam's average of ten is less, times a falling rate: 0.02 is ample.
    """
    method = LowDiff(
        optimizer=Optimizer(0.05, anneal="linear", num_updates=100),
        resolutions=(2, 4), split=(512, 1536), max_noise=0.5, shifts=(0.0, 0.0),
    )  # fmt: skip
    state = method.init(KEY, model=PLAIN.replace(module=Whites(), shape=(4, 4, 1)))

    for i in range(100):
        key = jax.random.fold_in(KEY, i)
        images = jax.random.normal(jax.random.fold_in(key, 1), (2048, 4, 4, 1))
        state, _ = compiled(method)(state, {"image": images}, key)
    assert abs(float(state.model.network.params["off"])) < 0.02


# --- stages ---------------------------------------------------------------------------------------


def stage(measured_at=((4, 2), (1, 1)), **changes):
    method = LowDiff(**{"optimizer": ADAM, "resolutions": (4, 8), "split": (8, 4)} | changes)
    loop = LoopConfig(num_updates=100, batch_size=12)
    return Run(name="lowdiff", method=method, loop=loop, measured_at=measured_at)


def few_steps(batch_size=6, **changes):
    method = Progressive(**{"optimizer": ADAM, "start_steps": 8, "split": (8, 4)} | changes)
    loop = LoopConfig(num_updates=100, batch_size=batch_size)
    return Run(name="few", method=method, given={"teacher": "lowdiff"}, loop=loop)


def planned(*later, **changes):
    """The plan of the stage, alone or with later ones."""
    found = plan_of(stage(**changes), *later, network=Named("unet", SMALL))
    return found["lowdiff"] if not later else list(found.values())


def test_a_stage_and_its_rounds():
    r = planned()
    assert (r.network.sampler, r.measured_at) == ("cascade:ddim:0.1", ((4, 2), (1, 1)))
    assert r.network.shifts == pytest.approx((2 * np.log(2), 0))
    heun, *few = planned(few_steps(), solver="heun")
    assert heun.network.sampler == "cascade:heun:0.1"
    assert [(f.name, f.measured_at) for f in few] == [
        ("few/4", ((4, 4),)), ("few/2", ((2, 2),)), ("few/1", ((1, 1),)),
    ]  # fmt: skip
    for f in few:  # their students are taught steps of DDIM
        assert f.network.sampler == r.network.sampler
        split = f.run.method.split
        rows = [rows for _, rows, *_ in per_resolution(f.network, batch(6), KEY, split, 0.2)]
        assert [len(part["image"]) for part in rows] == [4, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": (8, 8)}, r"split \(8, 8\) must add up to loop.batch_size 12"),
        ({"split": (12,)}, r"split must be images at each of the resolutions \(4, 8\)"),
        ({"measured_at": ((4,),)}, r"each must be of the resolutions \(4, 8\)"),
        ({"resolutions": (4, 16)}, "resolutions end at 16, but images are of"),
        ({"resolutions": (2, 8)}, "one for each of the 2 levels at most"),
        ({"resolutions": (6, 8)}, "must rise by powers of two"),
        ({"shifts": (1.0,)}, "shifts must be one for each of the resolutions"),
        ({"label_dropout": -0.5}, r"label_dropout must be in \[0, 1\]"),
        ({"noise": 0.5}, "noise 0.5 in sampling is more than any in training"),
        ({"solver": "ancestral"}, "solver must be deterministic"),
        ({"network": FrozenDict(grown=(8,))}, "cannot have grown levels"),
    ],
)
def test_stages_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        planned(**changes)


def test_what_cannot_start_from_a_cascade():
    with pytest.raises(ConfigError, match="rounds cannot be stochastic"):
        planned(few_steps(stochastic=True))
    with pytest.raises(ConfigError, match="batch_size 7 cannot be split"):
        planned(few_steps(batch_size=7))
    config = tiny_lowdiff()
    direct = {"name": "direct", "method": "direct", "teacher": "lowdiff", "teacher_steps": 2}
    progressive = config.stages[2]
    direct |= {"loop": progressive["loop"], "optimizer": progressive["optimizer"]}
    config.stages = (*config.stages[:2], type(config)(direct))
    with pytest.raises(ConfigError, match="teacher is a cascade, which this method cannot"):
        plan(parse(as_plain(config)), (8, 8, 1))


# --- an experiment --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny_lowdiff())


@pytest.mark.slow  # as are all of the run's
def test_an_experiment(workdir):
    """Rows say what a cascade costs; its model makes images in one call."""
    rows = read_jsonl(workdir / "results.jsonl")
    found = [(r["stage"], r["method"], r["solver"], r["nfe"], r["num_steps"]) for r in rows]
    assert found == [
        ("teacher", "teacher", "ddim", 2, 2),
        ("lowdiff", "lowdiff", "cascade", 3, "2+1"),
        ("lowdiff", "lowdiff", "cascade", 3, "1+2"),
        ("distilled/1", "progressive", "cascade", 2, "1+1"),
    ]
    assert "effective_nfe" not in rows[0]
    assert 1 < rows[1]["effective_nfe"] < 2 < rows[2]["effective_nfe"] < 3
    assert 1 < rows[3]["effective_nfe"] < 2
    model = pdistill.load(workdir / "lowdiff")
    assert (model.card["kind"], model.card["num_steps"]) == ("cascade", [2, 1])
    images = model.sample(jax.random.key(0), 3)
    assert images.shape == (3, 8, 8, 1)
    assert same(images, model.sample(jax.random.key(0), 3, num_steps=(2, 1)))
    assert not same(images, model.sample(jax.random.key(0), 3, num_steps=(1, 2)))
    assert set(np.load(workdir / "lowdiff" / "samples.npz")) == {"2+1", "1+2"}
    assert "effective_nfe" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_what_a_cascade_is_not_made_for(workdir):
    model, key = pdistill.load(workdir / "lowdiff"), jax.random.key(0)
    with pytest.raises(ValueError, match="a cascade takes a tuple of steps"):
        model.sample(key, 2, num_steps=4)
    with pytest.raises(ValueError, match="the cascade has 2 resolutions"):
        model.sample(key, 2, num_steps=(4, 2, 1))
    with pytest.raises(ValueError, match="this model is made for the solver cascade; got ddim"):
        model.sample(key, 2, num_steps=4, solver=Ddim())
    # As a plain denoiser, to encode with say, it lacks the condition.
    with pytest.raises(ValueError, match="made on the condition of an image of the size before"):
        model.denoiser()(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2))
    plain = pdistill.load(workdir / "teacher")
    with pytest.raises(ValueError, match="this network has no resolutions"):
        plain.sample(key, 2, num_steps=(1, 1), solver=Cascade())


@pytest.mark.slow
def test_a_run_without_its_last_stage_goes_on(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "distilled")
    experiment.run(tiny_lowdiff(), copy)
    for a, b in zip(*(leaves(d / "distilled/1") for d in (copy, workdir)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(read_jsonl(copy / "results.jsonl")) == 4


@pytest.mark.slow
def test_command_lines(workdir, tmp_path, capsys):
    at = f"--model={workdir / 'lowdiff'}"
    sample.main([at, "--num=4", f"--out={tmp_path / 'grid.png'}", "--num_steps=1+1"])
    assert "4 images, 1+1 steps" in capsys.readouterr().out
    out = tmp_path / "rows.jsonl"
    evaluate.main([
        at, "--reference=digits:train", "--metrics=fd_pixels", "--num_samples=64",
        f"--out={out}", "--num_steps=2+2",
    ])  # fmt: skip
    [row] = read_jsonl(out)
    assert (row["nfe"], row["num_steps"], row["solver"]) == (4, "2+2", "cascade")


@pytest.mark.slow
def test_a_cascade_is_exported(workdir, tmp_path, optimized):
    """To the bit; and as a folder of weights, and back."""
    model, key = pdistill.load(workdir / "distilled" / "1"), jax.random.key(0)
    images = model.sample(key, 3)
    np.testing.assert_array_equal(export_sampler(model).call(key, jnp.arange(3)), images)
    with pytest.raises(ValueError, match="draws noise at each step: use a key"):
        export_sampler(model, start="noise")
    write_folder(tmp_path / "folder", model)
    read = read_folder(tmp_path / "folder")
    assert read.network.blank == model.network.blank
    assert read.network.shifts
