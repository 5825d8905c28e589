"""The same training on one device and on meshes of eight: gradients, losses, memory."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from tiny_training import Double, in_double, noise_dataset

from pdistill.data import Pipeline
from pdistill.diffusion import CosineSchedule
from pdistill.methods import Teacher
from pdistill.networks import DiT, Network
from pdistill.runtime.mesh import batch_sharding, make_mesh, replicated, to_device
from pdistill.training import Optimizer, compile_update, init_state, start_of, take_frozen

pytestmark = pytest.mark.eight_devices

SHAPE = (8, 8, 1)
DATA = noise_dataset(64, SHAPE)
B1 = 0.9


def method_and_model(dtype="float32", features=64):
    module = DiT(out_channels=1, patch=2, features=features, depth=1, heads=4, dtype=dtype)
    optimizer = Optimizer(1e-3, warmup=2, b1=B1, ema_decay=0.9, clip_norm=0.0)
    cls = Double if dtype == "float64" else Teacher
    model = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=SHAPE)
    return cls(optimizer=optimizer), model


def mesh_of(data, fsdp):
    if data * fsdp == 8:
        return make_mesh(data, fsdp)
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def train(mesh, num_updates, dtype="float32", features=64):
    """Losses of `num_updates` updates, and the gradient of the first.

    After one update Adam's first moment is (1 - b1) times the gradient.
    """
    method, model = method_and_model(dtype, features)
    state = init_state(lambda key: method.init(key, model=model), mesh, jax.random.key(0))
    if dtype == "float64":
        state = in_double(state)
    update = compile_update(method, mesh, flip=False)
    pipeline = Pipeline(DATA, 32, seed=0)
    resident = to_device(pipeline.resident_arrays(), replicated(mesh))
    batches, losses, gradient = pipeline.iterator(1), [], None
    learning, frozen = take_frozen(state)
    state, alike = start_of(learning, mesh), {"which": np.zeros(1, np.int32), "kinds": ((),)}
    for _ in range(num_updates):
        raw = to_device(next(batches), batch_sharding(mesh, leading=1))
        state, metrics = update(state, frozen, resident, raw, jax.random.key(1), **alike)
        losses.append(float(metrics["values"]["loss"][0]))
        if gradient is None:
            adam = state.method.model.opt_state[1][0]
            gradient = np.concatenate(
                [np.ravel(np.asarray(m)) for m in jax.tree.leaves(adam.mu)]
            ) / (1 - B1)
    return np.array(losses), gradient, state


@pytest.fixture(scope="module")
def one_device():
    return train(mesh_of(1, 1), 20)


@pytest.mark.slow  # the test in double precision sees more
@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)], ids=str)
def test_meshes_compute_what_one_device_does(one_device, shape):
    losses, gradient, _ = train(mesh_of(*shape), 20)
    error = np.linalg.norm(gradient - one_device[1]) / np.linalg.norm(one_device[1])
    assert np.linalg.norm(gradient) > 0
    assert error < 1e-6
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [(2, 4), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1), (1, 8)))],
    ids=str,
)
def test_meshes_agree_to_rounding_in_double_precision(x64, shape):
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention asks for it
        losses, gradient, _ = train(mesh_of(1, 1), 20, "float64")
        ours, our_gradient, _ = train(mesh_of(*shape), 20, "float64")
    np.testing.assert_allclose(ours, losses, rtol=1e-9)
    np.testing.assert_allclose(our_gradient, gradient, rtol=0, atol=1e-12)
