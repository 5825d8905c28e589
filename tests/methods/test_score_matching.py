"""Score matching on a teacher, with linear networks: known optima."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from pdistill.diffusion import LinearLogsnrSchedule, alpha_sigma
from pdistill.methods import ScoreMatching
from pdistill.methods.parts.regression import Taught
from pdistill.networks import NOTHING, Network
from pdistill.training import Learner, Optimizer

D = 4
SCHEDULE = LinearLogsnrSchedule(-1e-3, 1e-3)  # one level, as far as a test can tell
COVARIANCE = np.array([[2.0, 0.6, 0, 0], [0.6, 1.0, 0, 0], [0, 0, 0.5, 0.1], [0, 0, 0.1, 0.1]])


class Linear(nn.Module):
    """v = z W + b; of rank `rank` if it is given."""

    rank: int = 0

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        if self.rank:
            z = nn.Dense(self.rank, use_bias=False, name="in")(z)
        return nn.Dense(D, name="out")(z)


@functools.partial(jax.jit, static_argnums=(0, 2))
def train(method, state, updates):
    root = jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32))

    def update(state, step):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        x = jax.random.normal(data_key, (512, D)) @ root.T
        state, metrics = method.step(state, {"image": x}, key)
        return state, (metrics["loss"], metrics["grad_norm"])

    return jax.lax.scan(update, state, jnp.arange(updates))


@pytest.fixture(scope="module")
def teacher():
    w, b = jax.random.normal(jax.random.key(7), (D + 1, D))[:D], jnp.arange(D) / 4
    params = {"out": {"kernel": w, "bias": b}}
    return Network(params, module=Linear(), head="v", schedule=SCHEDULE, shape=(D,))


def test_of_its_own_teacher_there_is_nothing_to_learn(teacher):
    """docs/methods/teacher.md, S1."""
    method = ScoreMatching(optimizer=Optimizer(1e-2))
    state = Taught(Learner.of(teacher, method.optimizer), teacher)
    _, (loss, norm) = train(method, state, 3)
    assert float(loss.max()) == float(norm.max()) == 0.0


def test_a_linear_student_finds_a_linear_teacher(teacher):
    """docs/methods/teacher.md, S2."""
    rate = Optimizer(3e-2, anneal="linear", num_updates=1000, clip_norm=0.0)
    method = ScoreMatching(optimizer=rate)
    state, _ = train(method, method.init(jax.random.key(0), teacher=teacher), 1000)
    chex.assert_trees_all_close(method.product(state), teacher, rtol=1e-7, atol=1e-3)


def test_a_narrow_student_finds_the_best_of_its_rank(teacher):
    """docs/methods/teacher.md, S3: the loss is of the singular values left.

    alpha^2 = sigma^2 = 1 / 2, so z has the covariance (C + I) / 2; the bias is learnt.
    """
    rank, rate = 1, Optimizer(3e-2, anneal="cosine", num_updates=3000, clip_norm=0.0)
    method = ScoreMatching(optimizer=rate, network=FrozenDict(rank=rank))
    _, (losses, _) = train(method, method.init(jax.random.key(0), teacher=teacher), 3000)
    alpha, sigma = (float(a) for a in alpha_sigma(jnp.zeros(())))
    root = np.linalg.cholesky(alpha**2 * COVARIANCE + sigma**2 * np.eye(D))
    singular = np.linalg.svd(root.T @ np.asarray(teacher.params["out"]["kernel"]), compute_uv=False)
    # The mean over D coordinates, of the last 300 updates: 150,000 examples, half a percent.
    expected = np.sum(singular[rank:] ** 2) / D
    assert float(losses[-300:].mean()) == pytest.approx(expected, rel=0.02)
