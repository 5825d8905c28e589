"""Several networks as one: each example meets its own, in any order and mixture of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pdistill.diffusion import CosineSchedule
from pdistill.networks import (
    Conditioning,
    DiT,
    Network,
    Routed,
    build_network,
    describe_network,
)
from pdistill.networks.routed import block_places

NETWORK = DiT(out_channels=1, features=16, depth=1, heads=2, num_labels=5)
ROUTES = (2, 0, 1, 0, 2)
IMAGE = (4, 4, 1)


@pytest.fixture(scope="module")
def params():
    """Of three networks, none of them alike and without zeros."""
    network = Network(
        None, module=Routed(NETWORK, ROUTES), head="v", schedule=CosineSchedule(), shape=IMAGE
    )
    flat, unravel = ravel_pytree(jax.jit(network.init)(jax.random.key(0)).params)
    return unravel(flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape))


@pytest.mark.parametrize(("batch", "block"), [(1, 16), (7, 1), (23, 4), (64, 16)])
def test_each_example_has_its_own_network(params, batch, block):
    z = jax.random.normal(jax.random.key(2), (batch, *IMAGE))
    logsnr = jnp.linspace(-3.0, 3.0, batch)
    label = jax.random.randint(jax.random.key(3), (batch,), 0, 5)
    told = Conditioning(label)
    routed = jax.jit(Routed(NETWORK, ROUTES, block).apply)({"params": params}, z, logsnr, told)
    apply = jax.jit(NETWORK.apply)
    each = [
        apply({"params": jax.tree.map(lambda a, k=k: a[k], params["networks"])}, z, logsnr, told)
        for k in range(3)
    ]
    expected = jnp.stack(each)[jnp.array(ROUTES)[label], jnp.arange(batch)]
    # The same sums in other batches.
    np.testing.assert_allclose(routed, expected, rtol=1e-4, atol=1e-5)


def test_other_networks_do_not_matter(params):
    """Not even if their parameters are no numbers."""
    spoilt = jax.tree.map(lambda a: a.at[1].set(jnp.nan), params)
    z, logsnr = jnp.ones((6, *IMAGE)), jnp.zeros(6)
    told = Conditioning(jnp.array([0, 1, 3, 4, 1, 0]))
    apply = jax.jit(Routed(NETWORK, ROUTES).apply)
    np.testing.assert_array_equal(
        apply({"params": spoilt}, z, logsnr, told), apply({"params": params}, z, logsnr, told)
    )


@pytest.mark.parametrize("seed", range(5))
def test_places(seed):
    """All different; each in a block of its network; and no more blocks than are said."""
    rng = np.random.RandomState(seed)
    num, block = rng.randint(1, 6), rng.randint(1, 9)
    routes = rng.randint(0, rng.randint(1, num + 1), rng.randint(1, 50))
    places, networks = block_places(jnp.array(routes), num, block)
    assert len(set(np.asarray(places))) == len(routes)
    assert len(networks) == -(-len(routes) // block) + num - 1
    np.testing.assert_array_equal(np.asarray(networks)[np.asarray(places) // block], routes)


def test_as_plain_data():
    network = Routed(NETWORK, ROUTES)
    plain = describe_network(network)
    assert plain["arguments"]["network"]["arguments"]["features"] == 16
    assert build_network(**plain) == network


def test_it_needs_labels(params):
    with pytest.raises(ValueError, match="needs labels"):
        Routed(NETWORK, ROUTES).apply({"params": params}, jnp.ones((1, *IMAGE)), jnp.zeros(1))
