"""Direct distillation: where it points, and where it leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stepping import compiled, plan_of, run

from pdistill import samplers
from pdistill.experiment.config import ConfigError
from pdistill.methods import Direct, Run
from pdistill.training import LoopConfig, Optimizer

KEY = jax.random.key(0)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_loss_is_the_distance_to_the_teachers_sample(gaussian, steps):
    """docs/methods/teacher.md, S4: with an optimal teacher, and a student that is a copy of it.

    The student says x_hat(z, 1), the mean m as far as float32 can tell; the teacher's sample is
    m + s z for s the product of its steps' slopes, so the loss in v is s^2 in the mean.
    """
    method = Direct(optimizer=Optimizer(1e-3), teacher_steps=steps)
    teacher = gaussian.init(KEY)
    state = method.init(KEY, teacher=teacher)
    batch = {"image": jnp.zeros((50, 400))}
    _, metrics = compiled(method)(state, batch, jax.random.key(1))

    at_0, at_1 = samplers.sample(
        teacher.denoiser(), None, z_init=jnp.array([[0.0], [1.0]]), schedule=teacher.schedule,
        num_steps=steps,
    )[:, 0]  # fmt: skip
    slope = float(at_1 - at_0)
    # 20,000 squares of normals: a standard deviation of 1 %.
    assert float(metrics["loss"]) == pytest.approx(slope**2, rel=0.05, abs=1e-6)


def test_the_student_learns_the_sampler(gaussian):
    """One parameter cannot express it, but the loss must fall to where a step does nothing."""
    method = Direct(optimizer=Optimizer(3e-2, ema_decay=0.0), teacher_steps=4)
    state = method.init(KEY, teacher=gaussian.init(KEY))
    _, rows = run(method, state, {"image": jnp.zeros((64, 8))}, 60)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_mistakes():
    with pytest.raises(ValueError, match="at least 1"):
        Direct(optimizer=Optimizer(1e-3), teacher_steps=0)
    method = Direct(optimizer=Optimizer(1e-3), teacher_steps=2)
    stage = Run(name="direct", method=method, given={"teacher": "x"}, loop=LoopConfig(10))
    with pytest.raises(ConfigError, match="starts from 'x', which no earlier stage makes"):
        plan_of(stage)
