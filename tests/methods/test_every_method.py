"""What holds for every method: labels stay with their images, and averages are what is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from stepping import compiled

from pdistill.diffusion import CosineSchedule, alpha_sigma, expand
from pdistill.experiment.config import trains
from pdistill.methods import (
    METHODS,
    Ctm,
    Direct,
    Dmd,
    FlowMap,
    Gan,
    Guided,
    KlCodec,
    LowDiff,
    Pagoda,
    Progressive,
    ScoreMatching,
    Teacher,
)
from pdistill.methods.columns import Pairs
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.methods.parts.jumps import JumpLaw
from pdistill.networks import NOTHING, Network
from pdistill.training import Learner, Optimizer

SHAPE, BATCH = (8, 8, 1), 32
UNTOLD = 4


class Labelled(nn.Module):
    """x_hat is the label's image, of one brightness, and NaN if another one is seen in the noise.

    It is NaN without a label too, and a map of an encoder is the same.
    """

    num_labels: int = 3
    out_channels: int = 1
    guidance: bool = False
    target: bool = False
    resolutions: tuple[int, ...] = ()
    grown: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        label = jnp.full(z.shape[:1], UNTOLD) if told.label is None else told.label
        seen = z.mean(axis=(1, 2, 3)) / alpha_sigma(logsnr)[0]
        # Above a log-SNR of 2 the noise's mean over the pixels is within 0.05, or 0.5 / 10.
        wrong = (logsnr > 2) & (label < self.num_labels)
        wrong &= jnp.abs(seen - brightness(label)) > 0.5
        x_hat = jnp.where(wrong, jnp.nan, brightness(label))
        if self.guidance and told.guidance is not None:
            x_hat = (1 + told.guidance) * x_hat
        x_hat = expand(x_hat, z) * (1 + 0 * z) + off  # so that slopes at z are NaN with it
        self.sow("maps", "maps", x_hat)
        return x_hat


def brightness(label):
    """-1, 0 and 1 for the labels, and 0 for "no label"."""
    return jnp.array([-1.0, 0.0, 1.0, 0.0, jnp.nan])[label]


def image_of(label):
    return jnp.broadcast_to(expand(brightness(label), jnp.zeros((BATCH, *SHAPE))), (BATCH, *SHAPE))


ADAM = Optimizer(1e-3, ema_decay=0.9)
PLAIN = Optimizer(1e-3)
JUDGE = Judge(features="teacher", halvings=(1,), width=8, mixing=0, batch_norm=False)
JUDGED = Adversary(judges=(JUDGE,), optimizer=PLAIN, r1=1.0)
BLANK = Network(None, Labelled(), "x", CosineSchedule(), SHAPE)
TEACHER = BLANK.replace(params={"off": jnp.zeros(())}, guidance=(0.0, np.inf))
PAIRED = Dmd(
    optimizer=ADAM,
    fake_optimizer=PLAIN,
    fake_updates=1,
    adversarial=1.0,
    regression=1.0,
    pairs=Pairs(BATCH),
)

# The method, what `init` gets, and the metrics that are zero if every image is its label.
CASES = {
    "teacher": (Teacher(optimizer=ADAM), {"model": BLANK}, ("loss",)),
    "progressive": (
        Progressive(optimizer=ADAM, start_steps=8), {"teacher": TEACHER, "num_steps": 4}, ("loss",)
    ),
    "guided": (Guided(optimizer=ADAM), {"teacher": TEACHER}, ("loss",)),
    "gan": (Gan(optimizer=ADAM, adversary=JUDGED), {"teacher": TEACHER}, ()),
    "direct": (Direct(optimizer=ADAM, teacher_steps=2), {"teacher": TEACHER}, ("loss",)),
    "dmd": (PAIRED, {"teacher": TEACHER}, ("fake_score_loss", "regression", "matching_grad_norm")),
    "score_matching": (ScoreMatching(optimizer=ADAM), {"teacher": TEACHER}, ("loss",)),
    "ctm": (
        Ctm(optimizer=ADAM, layer="off", adversary=JUDGED),
        {"model": BLANK, "teacher": TEACHER}, ("consistency", "denoising"),
    ),
    "flow_map": (
        FlowMap(optimizer=ADAM, jumps=JumpLaw(level=(-1.0, 1.0))), {"model": BLANK}, ("residual",)
    ),
    "pagoda": (
        Pagoda(optimizer=ADAM, adversary=JUDGED), {"teacher": TEACHER}, ("reconstruction",)
    ),
    "lowdiff": (
        LowDiff(optimizer=ADAM, resolutions=(4, 8), split=(20, 12)), {"model": BLANK}, ("loss",)
    ),
    "codec": (
        KlCodec(optimizer=ADAM, network=FrozenDict(channels=(4,), blocks=1)), {"model": BLANK}, ()
    ),
}  # fmt: skip


def test_every_method_is_here():
    assert set(CASES) == {name for name, method in METHODS.items() if trains(method)}


@pytest.mark.parametrize("name", CASES)
def test_labels_stay_with_their_images(name):
    """In a world where an image is its label one step finds nothing to mend, and no metric is NaN,
    as it is where anything meets an image with the label of another."""
    method, given, zeros = CASES[name]
    state = jax.jit(lambda: method.init(jax.random.key(0), **given))()
    label, other = (
        jax.random.randint(jax.random.key(seed), (BATCH,), 0, 3, jnp.int32) for seed in (1, 2)
    )
    noise = jax.random.normal(jax.random.key(3), (BATCH, *SHAPE))
    pairs = {"noise": noise, "image": image_of(other), "label": other}
    batch = {"image": image_of(label), "label": label, "latent": noise, "pairs": pairs}
    step = compiled(method, method.parts(16))  # when R1 is due
    _, metrics = step(state, batch, jax.random.key(4))
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    for metric in zeros:
        assert float(metrics[metric]) < 1e-3, metric


@pytest.mark.parametrize("name", CASES)
def test_the_average_is_what_is_learnt(name):
    """The product of a state whose averages are ones, and whose every other number is zero."""
    method, given, _ = CASES[name]

    def fill(part):
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), part)
        if not isinstance(part, Learner):
            return zeros
        return zeros.replace(average=jax.tree.map(np.ones_like, zeros.average))

    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), **given))
    state = jax.tree.map(fill, shapes, is_leaf=lambda part: isinstance(part, Learner))
    leaves = jax.tree.leaves(method.product(state))
    assert leaves
    assert all(np.all(leaf == 1) for leaf in leaves)
