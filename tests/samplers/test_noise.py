import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pdistill import samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.samplers import noise

KEYS = jax.random.split(jax.random.key(0), 5000)


def test_noise_of_many_keys_is_standard_normal_and_independent():
    draws = noise.normal(KEYS, (5000, 2, 2), jnp.float32)
    # Chances of one in a thousand, with fixed keys.
    assert scipy.stats.kstest(np.ravel(draws), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.reshape(draws, (5000, 4)).T) - np.eye(4)
    assert np.max(np.abs(correlation)) < 4 / np.sqrt(5000)


def test_a_row_depends_on_its_key_alone():
    draws = noise.normal(KEYS[:10], (10, 3), jnp.float32)
    np.testing.assert_array_equal(
        noise.normal(KEYS[jnp.array([7, 3])], (2, 3), jnp.float32), draws[np.array([7, 3])]
    )


@pytest.mark.parametrize("make", [noise.split, lambda k: [noise.fold_in(k, i) for i in (0, 7)]])
def test_keys_made_of_keys_all_differ(make):
    keys = [KEYS[:3], *make(KEYS[:3])]
    assert all(key.shape == (3,) for key in keys)
    words = np.concatenate([jax.random.key_data(key) for key in keys])
    assert len(np.unique(words, axis=0)) == 9


@pytest.mark.parametrize("solver", [samplers.Ddim(), samplers.Ancestral()], ids=str)
def test_a_sample_depends_on_its_own_key_alone(solver):
    def draw(keys):
        return samplers.sample(
            Gaussian(0.3, 0.7).denoise, keys, (len(keys), 2),
            schedule=CosineSchedule(), num_steps=4, solver=solver,
        )  # fmt: skip

    np.testing.assert_array_equal(draw(KEYS[:6])[2:4], draw(KEYS[2:4]))


def test_raw_keys_are_keys():
    arguments = {"schedule": CosineSchedule(), "num_steps": 2, "solver": samplers.Ancestral()}
    draw = [
        samplers.sample(Gaussian().denoise, key, (3, 2), **arguments)
        for key in (jax.random.key(5), jax.random.PRNGKey(5))
    ]
    np.testing.assert_array_equal(*draw)


def test_keys_of_another_generator_are_those_of_the_same_seed():
    """Typed or raw: the first two words of four."""
    key = jax.random.key(5, impl="rbg")
    for given in (key, jax.random.key_data(key)):
        found = jax.random.key_data(noise.as_threefry(given))
        np.testing.assert_array_equal(found, [0, 5])
    assert jax.random.key_impl(noise.as_threefry(key)) == noise.GENERATOR


def test_raw_keys_one_an_image():
    words = jax.random.key_data(jax.random.split(jax.random.key(5), 3))
    np.testing.assert_array_equal(jax.random.key_data(noise.as_threefry(words)), words)


@pytest.mark.parametrize(
    "words", [np.zeros(3, np.uint32), np.zeros(2, np.int32), np.zeros((), np.uint32), 7]
)
def test_what_is_no_key(words):
    with pytest.raises(ValueError, match="key must be a PRNG key"):
        noise.as_threefry(words)
