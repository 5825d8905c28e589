"""Batches stay cut over all devices where parameters are cut too: it is weights that move."""

import jax
import jax.numpy as jnp
import pytest
from jax import Array, ShapeDtypeStruct

from pdistill.diffusion import CosineSchedule
from pdistill.methods.dmd import Dmd
from pdistill.methods.flow_map import FlowMap
from pdistill.methods.parts.jumps import JumpLaw
from pdistill.model.sampling import Sampling, generate
from pdistill.networks import Conditioning, DiT, Network
from pdistill.runtime.costs import collective_bytes
from pdistill.runtime.mesh import (
    batch_sharding,
    batches_over,
    cut_batch,
    make_mesh,
    param_sharding,
    replicated,
)
from pdistill.training import Optimizer, TrainState, compile_update, take_frozen

pytestmark = pytest.mark.eight_devices

MODULE = DiT(out_channels=4, patch=2, features=64, depth=1, heads=4, num_labels=10)
NETWORK = Network(None, MODULE, "v", CosineSchedule(), (8, 8, 4), guidance=(0.0, 4.0))
KEY = jax.eval_shape(lambda: jax.random.key(0))


def on(mesh, tree):
    """Shapes of parameters and states where a run has them."""
    shardings = param_sharding(tree, mesh)
    return jax.tree.map(
        lambda a, s: ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )


def initialised(mesh) -> Network:
    return on(mesh, jax.eval_shape(NETWORK.init, KEY))


def sampling(mesh, num, rows):
    def draw(network: Network, key: Array, indices: Array) -> Array:
        with batches_over(mesh):
            told = Conditioning(label=indices % 10)
            return generate(network, key, indices, told, sampling=Sampling(1))

    return jax.jit(draw).lower(initialised(mesh), KEY, rows((num,), jnp.int32))


def guided(mesh, num, rows):
    def v(network: Network, z: Array, level: Array, label: Array) -> Array:
        with batches_over(mesh):
            return network.v(z, level, Conditioning(label=label, guidance=level))

    images, levels = rows((num, 8, 8, 4), jnp.float32), rows((num,), jnp.float32)
    return jax.jit(v).lower(initialised(mesh), images, levels, rows((num,), jnp.int32))


def fake_score(mesh, num, rows):
    """An update of DMD that begins with noise, and trains the fake score alone."""
    optimizer = Optimizer(1e-3, num_updates=9)
    method = Dmd(optimizer=optimizer, fake_optimizer=optimizer, fake_updates=2)
    teacher = jax.eval_shape(NETWORK.init, KEY)
    state = on(mesh, jax.eval_shape(lambda key, t: method.init(key, teacher=t), KEY, teacher))
    learning, frozen = take_frozen(state)
    count = ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    raw = {"image": rows((1, num, 8, 8, 4), jnp.uint8), "label": rows((1, num), jnp.int32)}
    update = compile_update(method, mesh, flip=False)
    which = ShapeDtypeStruct((1,), jnp.int32)
    kinds = (method.parts(1),)
    state = TrainState(count, count, learning)
    return update.lower(state, frozen, {}, raw, KEY, which, kinds=kinds)


@pytest.mark.parametrize("program", [sampling, guided, fake_score])
def test_devices_send_parameters_and_not_activations(program):
    """Where each device holds all rows, these are 17 to 42 times the parameters' bytes."""
    mesh, num = make_mesh(1, 8), 256

    def rows(shape, dtype):
        return ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, shape.index(num)))

    hlo = program(mesh, num, rows).compile().as_text()
    of_parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(initialised(mesh)))
    assert collective_bytes(hlo) < 4 * of_parameters


def test_jumps_of_no_length_are_as_many_on_each_device():
    """Parts of a batch that the devices do not divide would be on all of them."""
    optimizer = Optimizer(1e-3, num_updates=9)
    jumps = JumpLaw(to="below", instantaneous=0.75)
    method = FlowMap(optimizer=optimizer, jumps=jumps)
    assert [method.count_still(num) for num in (16, 32)] == [12, 24]
    with batches_over(make_mesh(4, 2)):
        assert [method.count_still(num) for num in (16, 32)] == [8, 24]


def test_a_level_of_no_axis_is_left_as_it_is():
    with batches_over(make_mesh(1, 8)):
        z, level = cut_batch((jnp.zeros((8, 2)), jnp.zeros(())))
    assert (z.shape, level.shape) == ((8, 2), ())
