"""Edits by a model whose pixels are known: independent normals, of a mean that the label says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill import diffusion
from pdistill.diffusion import CosineSchedule, DdpmSchedule, Gaussian, RectifiedFlow
from pdistill.model import Model
from pdistill.model.editor import Editor
from pdistill.networks import NOTHING, Network

SHAPE, STD, MEANS = (4, 4, 1), 0.3, (-0.4, 0.4, 0.0)
KEY, NUM = jax.random.key(0), 400


class Denoiser(nn.Module):
    """v of pixels N(mean of the label, STD^2); label 2 is "no label"."""

    num_labels: int = 2
    target: bool = False
    variance: bool = False  # its output is eps, and a variance

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        self.param("none", nn.initializers.zeros, ())
        label = jnp.full(len(z), 2) if told.label is None else told.label
        of_label = Gaussian(jnp.array(MEANS)[label][:, None, None, None], STD)
        if self.variance:
            eps = diffusion.eps_from_x(z, of_label.denoise(z, logsnr), logsnr)
            return jnp.concatenate([eps, jnp.zeros_like(eps)], axis=-1)
        if told.target is None or not self.target:
            return diffusion.v_from_x(z, of_label.denoise(z, logsnr), logsnr)
        turn = diffusion.expand(diffusion.angle(logsnr) - diffusion.angle(told.target), z)
        z_s = of_label.flow(z, logsnr, told.target)
        return (jnp.cos(turn) * z - z_s) / jnp.sin(turn)


def model(solver="ddim", steps=4, codec=None, schedule=CosineSchedule(), **more):  # noqa: B008
    learnt = solver == "iddpm"
    module = Denoiser(target=solver == "gamma", variance=learnt)
    head, schedule = ("eps_variance", DdpmSchedule()) if learnt else ("v", schedule)
    network = Network(
        {"none": jnp.zeros(())}, module=module, head=head, schedule=schedule, shape=SHAPE,
        guidance=(0.0, 4.0), codec=codec,
    )  # fmt: skip
    card = {
        "num_steps": steps, "solver": solver, "clip": None, "stage": "s", "method": "m",
        "data": {"shape": SHAPE, "noise_shape": SHAPE}, **more,
    }  # fmt: skip
    return Model(network, card)


LEVELS = "multistep:-8,-2,0,2"
SOLVERS = ["ddim", LEVELS, "gamma", "edm", "heun", "euler_maruyama", "iddpm"]


@pytest.fixture(scope="module")
def images():
    """Samples of label 0."""
    drawn = jax.random.normal(jax.random.key(5), (NUM, *SHAPE))
    return MEANS[0] + STD * drawn


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_change_moves_images_to_the_label(solver, images):
    """The more, the stronger it is; with all steps nothing of the image is left."""
    editor = Editor(model(solver))
    means, kept = [], []
    for strength in (0.25, 0.5, 1.0):
        changed = editor.change(KEY, images, strength=strength, label=1)
        assert changed.shape == images.shape
        means.append(float(changed.mean()))
        kept.append(float(np.corrcoef(np.ravel(images), np.ravel(changed))[0, 1]))
    assert MEANS[0] < means[0] < means[1] < means[2]
    assert means[2] == pytest.approx(MEANS[1], abs=0.03)
    assert kept[0] > kept[1] > kept[2]
    assert abs(kept[2]) < 0.1


def test_a_change_by_the_label_of_the_image_changes_its_law_not(images):
    """Many steps of the exact flow keep mean and deviation."""
    changed = Editor(model(steps=64), 64).change(KEY, images, strength=0.5, label=0)
    assert float(changed.mean()) == pytest.approx(MEANS[0], abs=0.02)
    assert float(changed.std()) == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_are_kept(solver, images):
    """To the bit; the others are those of the label, whatever stood there before."""
    known = np.zeros((1, 4, 4, 1), bool)
    known[:, :, :2] = True
    other = jnp.where(known, images, 9.0)
    editor = Editor(model(solver))
    found = editor.inpaint(KEY, images, known, label=1)
    np.testing.assert_array_equal(found[:, :, :2], images[:, :, :2])
    np.testing.assert_array_equal(editor.inpaint(KEY, other, known, label=1), found)
    assert float(found[:, :, 2:].mean()) == pytest.approx(MEANS[1], abs=0.03)
    own = {"edm": "heun", "euler_maruyama": "ddim", "iddpm": "ddim"}.get(solver)
    assert editor.sampling.nfe == editor.model.sampling.nfe
    whole = editor.model.sample(KEY, NUM, label=1, solver=own)  # by 4 steps: images differ less
    assert float(found[:, :, 2:].std()) == pytest.approx(float(whole.std()), rel=0.05)


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedFlow()], ids=str)
def test_a_transfer_is_the_flow_there_and_back(images, schedule):
    """A pixel of one normal law becomes that of the other with the same quantile."""
    editor = Editor(model(steps=256, schedule=schedule))
    found = editor.transfer(images, {"label": 0}, {"label": 1})
    np.testing.assert_allclose(found, images - MEANS[0] + MEANS[1], atol=0.03)
    z = editor.encode(images, label=0)
    assert float(z.std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("solver", ["ancestral", "gamma:0.5"])
def test_a_transfer_draws_no_noise(solver, images):
    """A solver that does would make other images of the label, a correlation of 0."""
    found = Editor(model(solver)).transfer(images, {"label": 0}, {"label": 1})
    # By 4 steps, which scale what is left of each pixel.
    assert np.corrcoef(np.ravel(images), np.ravel(found))[0, 1] > 0.999


def test_guidance_and_counts(images):
    """They are those of `Model.sample`."""
    editor = Editor(model())
    far = editor.change(KEY, images, strength=1.0, label=1, guidance=2.0)
    assert float(far.mean()) > MEANS[1] + 0.3  # three times as far from "no label", if not for few
    with pytest.raises(ValueError, match="labels must be in 0"):
        editor.change(KEY, images, label=2)
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\]; got 0"):
        editor.change(KEY, images, strength=0.0)


@pytest.mark.parametrize(
    ("solver", "message"),
    [("one_step", "is a generator of one step"), ("cascade:ddim:0.1", "is a cascade")],
)
def test_models_that_know_no_image_on_the_way(solver, message):
    steps = (1, 1) if "cascade" in solver else 1
    with pytest.raises(ValueError, match=message):
        Editor(model(solver, steps=steps))


def test_grey_values_are_refused():
    editor, images = Editor(model()), jnp.zeros((2, *SHAPE), jnp.uint8)
    known = jnp.zeros((1, 4, 4, 1), bool)
    for edit in (
        lambda: editor.change(KEY, images, label=1),
        lambda: editor.inpaint(KEY, images, known, label=1),
        lambda: editor.encode(images, label=1),
    ):
        with pytest.raises(ValueError, match=r"images must be numbers in \[-1, 1\].*; got uint8"):
            edit()


def test_enlarged_images_are_refused():
    small = model()
    with pytest.raises(ValueError, match="the model enlarges what it makes"):
        Editor(Model(small.network.replace(enlarged=2), small.card))


def test_few_levels_and_stochastic_steps_have_no_flow(images):
    for solver, message in (
        (LEVELS, "knows a few noise levels only, so that no flow"),
        ("stochastic", "a student of stochastic steps, of which no flow"),
    ):
        with pytest.raises(ValueError, match=message):
            Editor(model(solver)).encode(images, label=0)
