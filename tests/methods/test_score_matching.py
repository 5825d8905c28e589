"""Score matching on a teacher, with linear networks: known optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill.diffusion import LinearLogsnrSchedule, alpha_sigma
from pdistill.methods import ScoreMatching
from pdistill.networks import Diffuser
from pdistill.training import Optimizer

D = 4
SCHEDULE = LinearLogsnrSchedule(-1e-3, 1e-3)  # one level, as far as a test can tell
COVARIANCE = np.array([[2.0, 0.6, 0, 0], [0.6, 1.0, 0, 0], [0, 0, 0.5, 0.1], [0, 0, 0.1, 0.1]])


class Linear(nn.Module):
    """v = z W + b; of rank `rank` if it is given."""

    rank: int = 0

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, train=False):
        if self.rank:
            z = nn.Dense(self.rank, use_bias=False, name="in")(z)
        return nn.Dense(D, name="out")(z)


def diffuser(rank=0):
    return Diffuser(Linear(rank), "v", SCHEDULE)


@functools.partial(jax.jit, static_argnums=(0, 2))
def train(method, state, updates):
    root = jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32))

    def update(state, _):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), state.step))
        x = jax.random.normal(data_key, (512, D)) @ root.T
        state, metrics = method.step(state, {"image": x}, key)
        return state.replace(step=state.step + 1), (metrics["loss"], metrics["grad_norm"])

    return jax.lax.scan(update, state, length=updates)


@pytest.fixture(scope="module")
def teacher():
    w, b = jax.random.normal(jax.random.key(7), (D + 1, D))[:D], jnp.arange(D) / 4
    return {"out": {"kernel": w, "bias": b}}


def test_of_its_own_teacher_there_is_nothing_to_learn(teacher):
    method = ScoreMatching(diffuser(), Optimizer(1e-2), teacher=diffuser())
    _, (loss, norm) = train(method, method._from(teacher, teacher), 3)
    assert float(loss.max()) == float(norm.max()) == 0.0


def test_a_linear_student_finds_a_linear_teacher(teacher):
    rate = Optimizer(3e-2, anneal="linear", num_updates=1000, clip_norm=0.0)
    method = ScoreMatching(diffuser(), rate, teacher=diffuser())
    state, _ = train(method, method.init(jax.random.key(0), teacher, (D,)), 1000)
    student = method.export(state)["out"]
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(student[name], teacher["out"][name], atol=1e-3)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_narrow_student_finds_the_best_of_its_rank(teacher, rank):
    """Eckart and Young in the metric of the noised data: the loss is of the singular values left.

    alpha^2 = sigma^2 = 1 / 2, so z has the covariance (C + I) / 2; the bias is learnt.
    """
    rate = Optimizer(3e-2, anneal="cosine", num_updates=3000, clip_norm=0.0)
    method = ScoreMatching(diffuser(rank), rate, teacher=diffuser())
    _, (losses, _) = train(method, method.init(jax.random.key(0), teacher, (D,)), 3000)
    alpha, sigma = (float(a) for a in alpha_sigma(jnp.zeros(())))
    root = np.linalg.cholesky(alpha**2 * COVARIANCE + sigma**2 * np.eye(D))
    singular = np.linalg.svd(root.T @ np.asarray(teacher["out"]["kernel"]), compute_uv=False)
    # The mean over D coordinates, of the last 300 updates: 150,000 examples, half a percent.
    expected = np.sum(singular[rank:] ** 2) / D
    assert float(losses[-300:].mean()) == pytest.approx(expected, rel=0.02)
