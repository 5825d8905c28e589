"""LowDiff: its levels against the plain methods and closed forms, its stage, and a whole run."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from stepping import run, same
from tiny_experiment import leaves, tiny_lowdiff

import pdistill
from pdistill import evaluate, experiment, sample
from pdistill.data.images import average, repeat
from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    alpha_sigma,
    denoising_loss,
    eps_from_x,
    v_from_x,
)
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.interop import read_folder, write_folder
from pdistill.interop.stablehlo import export_sampler
from pdistill.methods import Levels, LowDiffStage, Progressive, ProgressiveStage, Teacher
from pdistill.methods.levels import cut
from pdistill.model.sampling import Sampling, generate
from pdistill.networks import Diffuser, UNet
from pdistill.runtime.files import read_jsonl
from pdistill.samplers import Cascade, Ddim
from pdistill.training import Learner, LoopConfig, Optimizer

SCHEDULE = CosineSchedule()
ADAM = Optimizer(1e-3)
UNET = UNet(
    1, channels=8, embedding_channels=16, multipliers=(1, 2), blocks=1, attention_sizes=(4,)
)
PLAIN = Diffuser(UNET, "v", SCHEDULE)
PAIR = Diffuser(UNET.clone(resolutions=(4, 8)), "v", SCHEDULE, (1.5, 0.0))
KEY = jax.random.key(3)


def batch(num=12, side=8):
    return {
        "image": jax.random.uniform(jax.random.key(5), (num, side, side, 1), minval=-1),
        "label": jnp.zeros(num, jnp.int32),
    }


def spoiled(diffuser, shape=(8, 8, 1)):
    """Parameters without zeros."""
    rng = np.random.default_rng(0)
    shapes = diffuser.param_shapes(shape)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)


# --- the network ----------------------------------------------------------------------------------


def test_one_resolution_is_the_plain_network():
    """Parameters and outputs to the bit, and one's share of several resolutions is its own."""
    alone = dataclasses.replace(PLAIN, network=UNET.clone(resolutions=(8,)))
    params = PLAIN.init(KEY, (8, 8, 1))
    assert same(alone.init(KEY, (8, 8, 1)), params)
    spoil = spoiled(PLAIN)
    z, logsnr = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([-3.0, 0.0, 4.0])
    assert same(alone.v(spoil, z, logsnr), PLAIN.v(spoil, z, logsnr))
    pair = PAIR.init(KEY, (8, 8, 1))
    shared = set(params) - {"conv_in"}  # it also takes the condition
    assert all(same(pair[name], params[name]) for name in shared)
    assert set(pair) - set(params) == {
        *("conv_in_4", "norm_out_4", "conv_out_4", "resolution_emb", "condition_in")
    }


def test_small_images_skip_the_outer_level():
    """Their output depends on all but what the larger size has for itself."""
    params = spoiled(PAIR)
    z, logsnr = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.zeros(2)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(PAIR.v(p, z, logsnr) ** 2)))(params)
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
        *(name for name in params if name.startswith(("down_0.", "up_0."))),
    }


def test_the_network_is_told_its_resolution_and_its_condition():
    params, v = spoiled(PAIR), jax.jit(PAIR.v)
    z, logsnr = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.zeros(2)
    before = jax.random.normal(jax.random.key(4), (2, 4, 4, 1))

    def told(params=params, image=before, noise=3.0):
        return v(params, z, logsnr, condition=(image, jnp.full(2, noise)))

    assert not same(told(), told(noise=4.0))
    assert not same(told(), told(image=before + 1))
    table = params["resolution_emb"]["embedding"]
    others = params | {"resolution_emb": {"embedding": table.at[0].set(0.0)}}
    assert same(told(), told(others))  # the first row is that of the smaller size
    others = params | {"resolution_emb": {"embedding": table.at[1].set(0.0)}}
    assert not same(told(), told(others))
    # No noise is a log-SNR of infinity, which is told as any of 20 and more.
    assert same(told(noise=jnp.inf), told(noise=20.0))


def test_flops():
    """The larger size has the condition's channel and the embedding of its noise besides."""
    network = UNet(
        1, channels=8, embedding_channels=16, multipliers=(1, 1), blocks=1, attention_sizes=()
    )
    cascade = Diffuser(network.clone(resolutions=(16, 32)), "v", SCHEDULE)
    small, large = (cascade.flops(shape) for shape in cascade.sizes((32, 32, 1)))
    plain = Diffuser(network, "v", SCHEDULE).flops((32, 32, 1))
    assert large - plain == 2 * 9 * 8 * 32**2 + 2 * (8 * 16 + 16 * 16)
    assert 0.1 < small / large < 0.35
    sampling = Sampling((4, 2), Cascade())
    assert sampling.nfe == 6
    assert sampling.effective_nfe(cascade, (32, 32, 1)) == pytest.approx(2 + 4 * small / large)
    assert Sampling(4).effective_nfe(PLAIN, (8, 8, 1)) == 4


# --- training -------------------------------------------------------------------------------------


def test_one_level_is_the_plain_method():
    """Updates and samples to the bit, with dropout too."""
    dropout = dataclasses.replace(PLAIN, network=UNET.clone(dropout=0.2))
    alone = dataclasses.replace(dropout, network=dropout.network.clone(resolutions=(8,)))
    plain, level = Teacher(dropout, ADAM), Levels(Teacher(alone, ADAM), (12,), 0.2)
    states = [
        run(method, method.init(KEY, (8, 8, 1)), batch(), 3)[0][-1] for method in (plain, level)
    ]
    assert same(*(state.learners for state in states))
    params = plain.export(states[0])
    how = {"shape": (8, 8, 1)}
    images = generate(PLAIN, params, KEY, jnp.arange(4), sampling=Sampling(5, Ddim()), **how)
    cascade = dataclasses.replace(PLAIN, network=UNET.clone(resolutions=(8,)))
    one = generate(
        cascade, params, KEY, jnp.arange(4), sampling=Sampling((5,), Cascade(noise=0.1)), **how
    )
    assert same(images, one)


def test_levels_have_dropout_of_their_own():
    """Inside, all levels' maps have one size: with one key their masks would be the same."""
    diffuser = dataclasses.replace(PLAIN, network=UNET.clone(dropout=0.5))
    method = Teacher(diffuser, ADAM)
    state = method.init(KEY, (8, 8, 1))
    state = state.replace(learners={method.learner: Learner.create(spoiled(diffuser), ADAM)})
    part, key = method.examples(state, batch(), KEY)

    def loss(parts, key):
        return float(jax.jit(method.regress)(state, parts, key)[1]["loss"])

    alone = [loss([part], k) for k in (key, jax.random.fold_in(key, 1))]
    assert abs(alone[0] - alone[1]) > 1e-3 * alone[0]
    assert loss([part, part], key) == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", [Teacher, Progressive])
def test_the_loss_is_the_mean_over_all_levels(kind):
    """That of each level is the plain method's, at the level's schedule, with its condition."""
    inner = kind(PAIR, ADAM)
    method = Levels(inner, (8, 4), 0.2)
    params = spoiled(PAIR)
    init = inner.init(params, 4) if kind is Progressive else inner.init(KEY, (8, 8, 1))
    learner = dataclasses.replace(init.learners[inner.learner], params=params)
    state = init.replace(learners={inner.learner: learner})
    _, [row] = run(method, state, batch(), 1)

    key = jax.random.fold_in(jax.random.key(4), 0)
    losses = []
    for level, rows in enumerate(cut(batch(), (8, 4))):
        rows, level_key = method._reduced(rows, level, key)
        assert rows["image"].shape[1:] == PAIR.sizes((8, 8, 1))[level]
        size = PAIR.resolutions[level]
        schedule = CosineSchedule(shift=(1.5, 0.0)[level])
        plain = kind(dataclasses.replace(PAIR, schedule=schedule, shifts=()), ADAM)
        found, _ = plain.examples(state, rows, level_key)
        assert found["z"].shape[1:3] == (size, size)
        v_hat = PAIR.v(params, found["z"], found["logsnr"], condition=rows.get("condition"))
        losses.append(denoising_loss(v_hat, found["v"], found["logsnr"]))
    assert [len(loss) for loss in losses] == [8, 4]
    assert row["loss"] == pytest.approx(float(jnp.concatenate(losses).mean()), rel=1e-5)


def test_conditions_are_averages_with_known_noise():
    method = Levels(Teacher(PAIR, ADAM), (1, 1), 0.3)
    images = batch(4000)["image"]
    rows, _ = method._reduced({"image": images}, 1, KEY)
    noisy, logsnr = rows["condition"]
    std = jnp.exp(-logsnr / 2)
    eps = (noisy - average(images, 2)) / std[:, None, None, None]
    # 64,000 normal numbers: 4 standard errors of their mean and their std; and s uniform.
    assert float(eps.mean()) == pytest.approx(0, abs=0.016)
    assert float(eps.std()) == pytest.approx(1, abs=0.012)
    assert 0 <= float(std.min()) < float(std.max()) <= 0.3
    assert float(std.mean()) == pytest.approx(0.15, abs=0.006)
    assert same(rows["image"], images)
    rows, _ = method._reduced({"image": images}, 0, KEY)
    assert same(rows["image"], average(images, 2))
    assert "condition" not in rows


def test_shifts_make_equal_times_equally_noisy():
    """Averages of z at lambda are images at lambda + 2 log 2, which is the default."""
    [r] = stage().rounds(PLAIN, (8, 8, 1), {})
    small, large = (r.method.diffuser.at(size).schedule for size in (4, 8))
    t = jnp.array([0.3, 0.6])
    alpha, sigma = alpha_sigma(large(t))
    np.testing.assert_allclose(
        2 * jnp.log(alpha / (sigma / 2)), small(t), rtol=1e-5, atol=1e-5
    )  # averaging four pixels halves sigma


def test_parts_of_a_batch():
    """All rows once; of rows over gcd devices each keeps its share of every part."""
    rows = {"row": jnp.arange(24), "pair": jnp.arange(48).reshape(24, 2)}
    parts = cut(rows, (12, 8, 4))
    assert [len(part["row"]) for part in parts] == [12, 8, 4]
    assert sorted(np.concatenate([part["row"] for part in parts])) == list(range(24))
    for part in parts:
        assert same(part["pair"][:, 0], 2 * part["row"])
        of_device = np.asarray(part["row"]).reshape(4, -1) // 6
        np.testing.assert_array_equal(
            of_device, np.broadcast_to(np.arange(4)[:, None], of_device.shape)
        )
    assert same(cut(rows, (24,))[0], rows)


class Whites(nn.Module):
    """v of averages of four pixels N(0, 1), and of the pixels given such with noise.

    Exact for off = 0. The averages are N(0, 1 / 4); x | c has the mean K c with
    K = (1 / 4) / (1 / 4 + s^2) and, in each square, the covariance 1 - (K / 4) 1 1^T: 1 - K along
    its mean, 1 across.
    """

    resolutions: tuple[int, ...] = (2, 4)

    @nn.compact
    def __call__(
        self, z, logsnr, label=None, guidance=None, target=None, condition=None, *, train=False
    ):
        off = self.param("off", nn.initializers.ones, ())
        alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(logsnr))
        if condition is None:
            x_hat = Gaussian(0.0, 0.5).denoise(z, logsnr)
        else:
            noisy, noise = condition
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
    network = Whites()
    adam = Optimizer(0.05, anneal="linear", num_updates=100)
    method = Levels(Teacher(Diffuser(network, "v", SCHEDULE), adam), (512, 1536), 0.5)
    state = method.init(KEY, (4, 4, 1))
    step = jax.jit(method.step)
    for i in range(100):
        key = jax.random.fold_in(KEY, i)
        images = jax.random.normal(jax.random.fold_in(key, 1), (2048, 4, 4, 1))
        state, _ = step(state, {"image": images}, key)
    assert abs(float(state.learners["model"].params["off"])) < 0.02


# --- stages ---------------------------------------------------------------------------------------


def stage(**changes):
    settings = {
        "name": "lowdiff", "resolutions": (4, 8), "split": (8, 4), "num_steps": ((4, 2), (1, 1)),
        "loop": LoopConfig(num_updates=100, batch_size=12), "optimizer": ADAM,
    }  # fmt: skip
    return LowDiffStage(**settings | changes)


def rounds_of_few_steps(earlier, **changes):
    settings = {
        "name": "few", "teacher": "lowdiff", "start_steps": 8,
        "loop": LoopConfig(num_updates=100, batch_size=6), "optimizer": ADAM,
    }  # fmt: skip
    return ProgressiveStage(**settings | changes).rounds(PLAIN, (8, 8, 1), earlier)


def test_a_stage_and_its_rounds():
    [r] = stage().rounds(PLAIN, (8, 8, 1), {})
    assert (r.solver, r.num_steps) == ("cascade:ddim:0.1", ((4, 2), (1, 1)))
    assert r.method.diffuser.shifts == pytest.approx((2 * np.log(2), 0))
    [heun] = stage(solver="heun").rounds(PLAIN, (8, 8, 1), {})
    assert heun.solver == "cascade:heun:0.1"
    few = rounds_of_few_steps({"lowdiff": heun})  # whose students are taught steps of DDIM
    assert [(f.name, f.num_steps) for f in few] == [
        ("few/4", ((4, 4),)), ("few/2", ((2, 2),)), ("few/1", ((1, 1),)),
    ]  # fmt: skip
    assert all(f.solver == r.solver and f.method.split == (4, 2) for f in few)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": (8, 8)}, r"split \(8, 8\) must add up to loop.batch_size 12"),
        ({"split": (12,)}, r"split must be images at each of the resolutions \(4, 8\)"),
        ({"num_steps": ((4,),)}, r"each must be of the levels \(4, 8\)"),
        ({"resolutions": (4, 16)}, "resolutions end at 16, but images are of"),
        ({"resolutions": (2, 8)}, "one for each of the 2 levels at most"),
        ({"resolutions": (6, 8)}, "must rise by powers of two"),
        ({"shifts": (1.0,)}, "shifts must be one for each of the resolutions"),
        ({"noise": 0.5}, "noise 0.5 in sampling is more than any in training"),
        ({"solver": "ancestral"}, "solver must be deterministic"),
        ({"network": {"grown": (8,)}}, "cannot have grown levels"),
    ],
)
def test_stages_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        stage(**changes).rounds(PLAIN, (8, 8, 1), {})


def test_what_cannot_start_from_a_cascade():
    [r] = stage().rounds(PLAIN, (8, 8, 1), {})
    with pytest.raises(ValueError, match="rounds are not stochastic"):
        rounds_of_few_steps({"lowdiff": r}, stochastic=True)
    with pytest.raises(ValueError, match="batch_size 7 cannot be split"):
        rounds_of_few_steps({"lowdiff": r}, loop=LoopConfig(num_updates=10, batch_size=7))
    config = tiny_lowdiff()
    gan = {"name": "direct", "method": "direct", "teacher": "lowdiff", "teacher_steps": 2}
    progressive = config.stages[2]
    gan |= {"loop": progressive["loop"], "optimizer": progressive["optimizer"]}
    config.stages = (*config.stages[:2], type(config)(gan))
    with pytest.raises(ConfigError, match="'lowdiff' is a cascade, which this method cannot"):
        parse(as_plain(config)).rounds((8, 8, 1))


# --- an experiment --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny_lowdiff())


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


def test_what_a_cascade_is_not_made_for(workdir):
    model, key = pdistill.load(workdir / "lowdiff"), jax.random.key(0)
    with pytest.raises(ValueError, match="a cascade takes a tuple of steps"):
        model.sample(key, 2, num_steps=4)
    with pytest.raises(ValueError, match="the cascade has 2 levels"):
        model.sample(key, 2, num_steps=(4, 2, 1))
    # As a plain denoiser, to encode with say, it lacks the condition.
    with pytest.raises(ValueError, match="made on the condition of an image of the size before"):
        model.sample(key, 2, num_steps=4, solver=Ddim())
    plain = pdistill.load(workdir / "teacher")
    with pytest.raises(ValueError, match="this network has no resolutions"):
        plain.sample(key, 2, num_steps=(1, 1), solver=Cascade())


def test_a_run_without_its_last_stage_goes_on(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "distilled")
    experiment.run(tiny_lowdiff(), copy)
    for a, b in zip(*(leaves(d / "distilled/1") for d in (copy, workdir)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(read_jsonl(copy / "results.jsonl")) == 4


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


def test_a_cascade_is_exported(workdir, tmp_path):
    """To the bit; and as a folder of weights, and back."""
    model, key = pdistill.load(workdir / "distilled" / "1"), jax.random.key(0)
    images = model.sample(key, 3)
    np.testing.assert_array_equal(export_sampler(model).call(key, jnp.arange(3)), images)
    with pytest.raises(ValueError, match="draws noise at each step: use a key"):
        export_sampler(model, start="noise")
    write_folder(tmp_path / "folder", model)
    read = read_folder(tmp_path / "folder")
    assert read.diffuser == model.diffuser
    assert read.diffuser.shifts
