import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill.diffusion import HEADS, CosineSchedule, LinearLogsnrSchedule, output_channels
from pdistill.networks import Conditioning, DiT, Network, UNet

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
LOGSNR = np.array([-4.0, -1.0, 0.5, 3.0], np.float32)
LABEL = np.array([0, 1, 2, 2], np.int32)
ALPHA, SIGMA = (np.sqrt(1 / (1 + np.exp(s * LOGSNR)))[:, None, None, None] for s in (-1, 1))


def blank(head="v", schedule=CosineSchedule(), **options):  # noqa: B008
    module = DiT(output_channels(head, 1), features=8, depth=1, heads=2, **options)
    return Network(None, module=module, head=head, schedule=schedule, shape=SHAPE)


def random(network):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), network.shapes
    )


@pytest.mark.parametrize("head", HEADS)
def test_v_and_denoiser_read_the_output(head):
    network = random(blank(head, num_labels=3))

    @jax.jit
    def run(network, z, logsnr, told):
        output = network.module.apply({"params": network.params}, z, logsnr, told)
        v = network.v(z, logsnr, told)
        return output, v, network.denoiser(told)(z, logsnr)

    output, v, x = run(network, Z, LOGSNR, Conditioning(LABEL))
    assert v.dtype == x.dtype == jnp.float32
    assert v.shape == x.shape == Z.shape
    # x and v are one statement: x = alpha z - sigma v. Roundings of 6e-8 times 1 / alpha = 7.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    close(x, ALPHA * Z - SIGMA * v)
    close(ALPHA * x, Z * ALPHA**2 - SIGMA * ALPHA * v)
    desired_v = {
        "v": lambda: output,
        "x": lambda: (ALPHA * Z - output) / SIGMA,
        "eps": lambda: (output - SIGMA * Z) / ALPHA,
        "eps_variance": lambda: (output[..., :1] - SIGMA * Z) / ALPHA,
        "both": lambda: ALPHA * output[..., 1:] - SIGMA * output[..., :1],
        "velocity": lambda: ((ALPHA - SIGMA) * Z + output) / (ALPHA + SIGMA),
    }
    close(v, desired_v[head]())


@pytest.mark.parametrize("channels", [None, 1])
def test_variances_are_those_without_guidance(channels):
    """By a pair of evaluations, and by another network, whatever that predicts."""
    network = random(blank("eps_variance", num_labels=3)).replace(guidance_channels=channels)
    run = jax.jit(Network.denoise_with_variance)
    output = jax.jit(lambda n: n.module.apply({"params": n.params}, Z, LOGSNR, Conditioning(LABEL)))
    alone = (output(network)[..., 1:] + 1) / 2
    told = Conditioning(LABEL, guidance=np.full(4, 2.0, np.float32))
    for guide in (None, random(blank("v")), random(blank("eps_variance"))):
        guided = network.guided_by(guide) if guide else network
        x_hat, fraction = run(guided, Z, LOGSNR, told)
        np.testing.assert_allclose(fraction, alone, atol=1e-5)
        np.testing.assert_allclose(
            x_hat, jax.jit(Network.denoise)(guided, Z, LOGSNR, told), rtol=1e-4
        )
        assert np.std(x_hat - network.denoise(Z, LOGSNR, Conditioning(LABEL))) > 0.01
    with pytest.raises(ValueError, match="is for networks that have learnt a variance"):
        random(blank("eps")).denoise_with_variance(Z, LOGSNR)


def test_the_shape_of_an_image():
    """Height and width in their order: what a codec or growth makes is larger by a factor."""
    assert blank().replace(shape=(4, 6, 1)).image_shape == (4, 6, 1)
    assert blank().replace(shape=(4, 6, 1), enlarged=2).image_shape == (8, 12, 1)


def test_it_is_told_the_label():
    network = random(blank(num_labels=3))
    run = jax.jit(lambda label: network.denoiser(Conditioning(label))(Z, LOGSNR))
    assert network.num_labels == 3
    assert np.std(run(LABEL) - run(LABEL[::-1])) > 0.01
    np.testing.assert_allclose(run(None), run(np.full(4, 3, np.int32)), rtol=0, atol=1e-6)


def test_labels_are_dropped_for_a_network_without():
    network = random(blank())
    assert network.num_labels == 0
    run = jax.jit(lambda told: network.v(Z, LOGSNR, told))
    np.testing.assert_array_equal(run(Conditioning(LABEL)), run(Conditioning()))


def test_dropout_needs_its_key():
    plain = random(blank())
    network = plain.replace(module=blank(dropout=0.5).module)
    assert network.without_dropout().blank == plain.blank
    run = jax.jit(lambda network, key: network.v(Z, LOGSNR, dropout_key=key))
    np.testing.assert_allclose(run(network, None), run(plain, None), rtol=0, atol=1e-6)
    one, again, other = (run(network, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.std(one - other) > 0.01


def test_a_second_head_is_a_velocity_of_its_own():
    """Not told where to; without one it is v of a jump of no length. Guided as v is."""
    plain, network = (
        random(blank(num_labels=3, target=True, time_scale=16.0, **more))
        for more in ({}, {"velocity": True})
    )
    told = Conditioning(LABEL, np.full(4, 2, np.float32), target=LOGSNR + 1)
    run = jax.jit(lambda network, told: (network.velocity(Z, LOGSNR, told), network.v(Z, LOGSNR)))
    alone, label = told.replace(guidance=None), Conditioning(LABEL)
    both = jax.jit(
        lambda network: (network.velocity(Z, LOGSNR, alone), network.v(Z, LOGSNR, label))
    )
    np.testing.assert_allclose(*both(plain), rtol=0, atol=1e-6)
    swapped = network.params | {"pixels": network.params["velocity_pixels"]}
    _, first = run(network.replace(params=swapped), told)
    second, before = run(network, Conditioning(target=LOGSNR + 1))
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-6)
    assert np.std(second - before) > 0.1
    guided, _ = run(network, told)
    pair = [run(network, Conditioning(label))[0] for label in (LABEL, np.full(4, 3, np.int32))]
    np.testing.assert_allclose(guided, 3 * pair[0] - 2 * pair[1], rtol=0, atol=1e-5)


def test_shapes_are_those_of_init():
    network = blank(num_labels=3)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.jit(network.init)(jax.random.key(0)), network.shapes
    )


def test_equal_blank_networks_are_one_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def f(network, x):
        traces.append(network)
        return x

    for _ in range(2):
        f(blank("x", num_labels=3, dtype=jnp.bfloat16), 0.0)
    assert len(traces) == 1
    assert blank(schedule=LinearLogsnrSchedule()) != blank()


def test_a_network_is_its_parameters_to_jax():
    """Mapped, differentiated and stacked as they are; what is static stays."""
    network = random(blank())
    assert jax.tree.leaves(network) == jax.tree.leaves(network.params)
    assert jax.tree.map(lambda a: None, network).blank == network.blank == blank()
    gradient = jax.eval_shape(jax.grad(lambda n: n.v(Z, LOGSNR).sum()), network)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, network.shapes)
    both = jax.tree.map(lambda *a: jnp.stack(a), network, jax.tree.map(lambda a: 2 * a, network))
    v = jax.jit(jax.vmap(lambda network: network.v(Z, LOGSNR)))(both)
    # Other batches round otherwise, which turns the sinusoids: their angles reach 1,000.
    np.testing.assert_allclose(v[0], jax.jit(network.v)(Z, LOGSNR), rtol=0, atol=1e-3)
    assert np.std(v[1] - v[0]) > 0.01


def test_networks_that_differ_in_dropout_are_traced_once(monkeypatch):
    """Of large ones a trace takes seconds, and plans have one with dropout and one without."""
    init, traced = nn.Module.init, []
    monkeypatch.setattr(
        nn.Module, "init", lambda self, *a, **k: traced.append(self) or init(self, *a, **k)
    )
    module = UNet(1, channels=8, embedding_channels=8, multipliers=(1,), blocks=1, dropout=0.2)
    network = blank().replace(module=module)
    same = [jax.eval_shape(n.init, jax.random.key(0)) for n in (network, network.without_dropout())]
    assert [n.module.dropout for n in same] == [0.2, 0.0]
    chex.assert_trees_all_equal(same[0].params, same[1].params)
    assert len(traced) == 1
