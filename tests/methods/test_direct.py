"""Direct distillation: where it points, and where it leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import samplers
from pdistill.methods.direct import Direct, DirectStage
from pdistill.methods.stage import Round
from pdistill.methods.teacher import Teacher
from pdistill.training import LoopConfig, Optimizer

LOOP = LoopConfig(10, 16, log_every=10, save_every=10)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_loss_is_the_distance_to_the_teachers_sample(gaussian, steps):
    """With an optimal teacher, and a student that is a copy of it: known in closed form.

    The student says x_hat(z, 1), the mean m as far as float32 can tell; the teacher's sample is
    m + s z for s the product of its steps' slopes, so the loss in v is s^2 in the mean.
    """
    method = Direct(gaussian, Optimizer(1e-3), teacher_steps=steps)
    params = gaussian.init(jax.random.key(0), (400,))
    state = method.init(params)
    batch = {"image": jnp.zeros((50, 400))}
    _, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))

    def image(z):
        z = jnp.full((1, 1), z)
        return samplers.sample(
            gaussian.denoiser(params), None, z_init=z, schedule=gaussian.schedule, num_steps=steps
        )[0, 0]

    slope = float(image(1.0) - image(0.0))
    # 20,000 squares of normals: a standard deviation of 1 %.
    assert float(metrics["loss"]) == pytest.approx(slope**2, rel=0.05, abs=1e-6)


def test_the_student_learns_the_sampler(gaussian):
    """One parameter cannot express it, but the loss must fall to where a step does nothing."""
    method = Direct(gaussian, Optimizer(3e-2, ema_decay=0.0), teacher_steps=4)
    state = method.init(gaussian.init(jax.random.key(0), (8,)))
    step = jax.jit(method.step)
    losses = []
    for i in range(60):
        state, metrics = step(state, {"image": jnp.zeros((64, 8))}, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"teacher_steps": 0}, "at least 1"), ({"teacher": "x"}, "no earlier stage makes")],
)
def test_mistakes(gaussian, changes, message):
    settings = {
        "name": "direct", "loop": LOOP, "optimizer": Optimizer(1e-3), "teacher": "teacher",
        "teacher_steps": 2,
    } | changes  # fmt: skip
    method = Teacher(gaussian, Optimizer(1e-3))
    earlier = {"teacher": Round("teacher", "teacher", method, lambda *_: None, LOOP, (4,))}
    with pytest.raises(ValueError, match=message):
        DirectStage(**settings).rounds(gaussian, (8,), earlier)
