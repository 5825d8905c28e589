"""A user's program that a type checker must accept, and that says what it takes the types to be.

    mypy tests/typed_program.py

It is not run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import assert_type

import jax
from jax import Array

import pdistill
from pdistill import diffusion, samplers
from pdistill.interop import export_sampler
from pdistill.methods import METHODS, Method
from pdistill.methods.dmd import Dmd
from pdistill.methods.progressive import Progressive
from pdistill.model import Model
from pdistill.networks import Codec, Conditioning, Network, Posterior, UNet
from pdistill.training import Learner, Optimizer

KEY = jax.random.key(0)
SCHEDULE = diffusion.CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)


def a_model(path: Path) -> Array:
    model = pdistill.load(path)
    assert_type(model, Model)
    assert_type(model.network, Network)
    images = model.sample(KEY, num=4, num_steps=2, solver="heun", label=3)
    assert_type(images, Array)
    return images


def a_codec(path: Path, images: Array) -> Array:
    codec = pdistill.load_codec(path)
    assert_type(codec, Codec)
    posterior = codec.encode(images)
    assert_type(posterior, Posterior)
    latents = codec.latents(posterior, KEY)
    assert_type(latents, Array)
    assert_type(codec.encode_tiled(images).mean, Array)
    return codec.decode_tiled(latents)


def a_sampler(denoise: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    x = samplers.sample(denoise, KEY, (4, 8, 8, 1), schedule=SCHEDULE, num_steps=4)
    assert_type(x, Array)
    both = samplers.sample(
        denoise, KEY, (4, 8, 8, 1), schedule=SCHEDULE, num_steps=4, return_trajectory=True
    )
    assert_type(both, tuple[Array, Array])
    z = samplers.encode(denoise, x, schedule=SCHEDULE, num_steps=8, solver=samplers.Heun())
    assert_type(z, Array)
    there = samplers.encode(denoise, x, schedule=SCHEDULE, num_steps=8, return_trajectory=True)
    assert_type(there, tuple[Array, Array])
    nats = samplers.log_likelihood(denoise, x, schedule=SCHEDULE, key=KEY)
    assert_type(nats, Array)
    return z, nats


def a_network() -> Network:
    module = UNet(3, channels=32, num_labels=10)
    blank = Network(None, module=module, head="v", schedule=SCHEDULE, shape=(32, 32, 3))
    network = blank.init(KEY)
    assert_type(network, Network)
    told = Conditioning(label=jax.numpy.arange(4)).replace(guidance=None)
    assert_type(told, Conditioning)
    logsnr = jax.numpy.zeros(4)
    assert_type(network.denoise(jax.numpy.zeros((4, 32, 32, 3)), logsnr, told), Array)
    return network.replace(sampler="one_step")


def a_method(network: Network) -> Network:
    method = Progressive(optimizer=Optimizer(learning_rate=1e-3), start_steps=8)
    state = method.init(KEY, teacher=network, num_steps=4)
    assert_type(state.student, Learner)
    state, _ = method.step(state, {"image": jax.numpy.zeros((4, 32, 32, 3))}, KEY)
    assert_type(METHODS["dmd"], type[Method])
    matching: Method = Dmd(
        optimizer=Optimizer(learning_rate=1e-3), fake_optimizer=Optimizer(learning_rate=1e-3)
    )
    del matching
    return method.product(state)


def exported(model: Model) -> bytes:
    return bytes(export_sampler(model).serialize())
