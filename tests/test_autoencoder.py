"""Encoding by a teacher and decoding by its generator, where both are known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill import diffusion
from pdistill.data.images import average, repeat
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.methods.columns import Latents
from pdistill.model import Model
from pdistill.model.editing import Autoencoder, slerp
from pdistill.networks import NOTHING, Network

SMALL, LARGE, STD = (4, 4, 1), (8, 8, 1), 0.5


def mean_of(label):
    """Of all pixels."""
    return 0.0 if label is None else jnp.array([-0.3, 0.3, 0.0])[label][:, None, None, None]


class Teacher(nn.Module):
    """v of independent pixels N(mean of the label, STD^2)."""

    num_labels: int = 2

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        self.param("none", nn.initializers.zeros, ())
        return diffusion.v_from_x(z, Gaussian(mean_of(told.label), STD).denoise(z, logsnr), logsnr)


class Decoder(nn.Module):
    """Exactly what the teacher's flow makes of a latent, each pixel four times."""

    num_labels: int = 2

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        self.param("none", nn.initializers.zeros, ())
        return repeat(mean_of(told.label) + STD * z, 2)


def model(module, head, noise, shape, solver, steps):
    card = {
        "num_steps": steps, "solver": solver, "clip": None, "guidance": None,
        "data": {"shape": shape, "noise_shape": noise},
    }  # fmt: skip
    params = {"none": jnp.zeros(())}
    return Model(
        Network(params, module=module, head=head, schedule=CosineSchedule(), shape=noise), card
    )


@pytest.fixture(scope="module")
def coder():
    teacher = model(Teacher(), "v", SMALL, SMALL, "ddim", 8)
    generator = model(Decoder(), "x", SMALL, LARGE, "one_step", 1)
    return Autoencoder(teacher, generator, Latents(80))


@pytest.fixture(scope="module")
def small():
    return jax.random.uniform(jax.random.key(0), (3, *SMALL), minval=-0.9, maxval=0.9)


def test_small_images_become_large(coder, small):
    """Reduced again they are what they were, up to the solver's error."""
    label = jnp.array([0, 1, 1])
    large = coder.super_resolve(small, label)
    assert large.shape == (3, *LARGE)
    np.testing.assert_allclose(average(large, 2), small, atol=5e-3)
    np.testing.assert_allclose(coder.reconstruct(repeat(small, 2), label), large, atol=1e-5)
    assert abs(coder.encode(small, label).std() - small.std() / STD) < 0.35


def test_another_class_moves_the_mean(coder, small):
    label, new = jnp.zeros(3, jnp.int32), jnp.ones(3, jnp.int32)
    moved = coder.change_class(small, label, new)
    np.testing.assert_allclose(average(moved, 2), small + 0.6, atol=5e-3)


def test_between_two_latents(coder):
    first, last = (jax.random.normal(jax.random.key(i), SMALL) for i in (1, 2))
    images = coder.interpolate(first, last, 5)
    ends = coder.decode(jnp.stack([first, last]))
    np.testing.assert_allclose(images[jnp.array([0, 4])], ends, atol=1e-5)
    way = slerp(first, 2 * first, jnp.array([0.0, 0.5, 1.0]))  # of one direction: straight
    np.testing.assert_allclose(way[1], 1.5 * first, rtol=1e-5)
    along = slerp(jnp.array([2.0, 0.0]), jnp.array([4.0, 0.0]), jnp.array([0.25]))  # cosine 1
    np.testing.assert_allclose(along[0], [2.5, 0])
    half = slerp(jnp.array([2.0, 0.0]), jnp.array([2.0, 2.0]), jnp.array([0.5]))  # 45 degrees
    share = np.sin(np.pi / 8) / np.sin(np.pi / 4)
    np.testing.assert_allclose(half[0], [4 * share, 2 * share], rtol=1e-6)
    right = slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([0.25]))
    np.testing.assert_allclose(right[0], [np.cos(np.pi / 8), np.sin(np.pi / 8)], rtol=1e-6)


def test_known_pixels_are_kept(coder, small):
    """A hole of a whole small pixel is filled with what its mean leads to."""
    images = repeat(small, 2)
    known = jnp.ones((3, 8, 8, 1), bool).at[:, 2:4, 2:4].set(False)
    filled = coder.inpaint(images, known)
    np.testing.assert_array_equal(jnp.where(known, filled, 0), jnp.where(known, images, 0))
    mean = jnp.where(known, images, 0).sum((1, 2, 3)) / np.float32(60)
    np.testing.assert_allclose(filled[:, 2, 2, 0], mean, atol=2e-2)


def test_latents_as_the_generator_was_trained(coder):
    with pytest.raises(ValueError, match="does not say how to encode"):
        Autoencoder(coder.teacher, coder.generator)
    card = coder.generator.card | {"latents": {"num_steps": 80, "solver": "heun"}}
    generator = dataclasses.replace(coder.generator, card=card)
    assert Autoencoder(coder.teacher, generator).latents == coder.latents


def test_models_that_do_not_belong_together(coder):
    with pytest.raises(ValueError, match=r"the generator from noise of \(4, 4, 1\)"):
        Autoencoder(model(Teacher(), "v", LARGE, LARGE, "ddim", 8), coder.generator)
