import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType

from pdistill import samplers
from pdistill.data import to_uint8
from pdistill.diffusion import CosineSchedule
from pdistill.model.sampling import Sampling, _generate, generate, generate_batches
from pdistill.networks import Conditioning, DiT, Network
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.eight_devices

SHAPE = (4, 4, 1)
KEY = jax.random.key(0)
SAMPLING = Sampling(num_steps=3)
BLANK = Network(
    None, module=DiT(1, features=8, depth=1, heads=2, num_labels=3), head="v",
    schedule=CosineSchedule(), shape=SHAPE,
)  # fmt: skip


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), BLANK.shapes)


run = functools.partial(generate, sampling=SAMPLING)
run_batches = functools.partial(generate_batches, sampling=SAMPLING)


# --- Samples ------------------------------------------------------------------------------------


def test_generate_is_the_sampler_with_a_key_an_index(network):
    indices, label = jnp.array([5, 1, 8]), jnp.array([0, 2, 1])
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(indices)
    desired = jax.jit(
        lambda network, keys, label: samplers.sample(
            network.denoiser(Conditioning(label)), keys, (3, *SHAPE), schedule=network.schedule,
            num_steps=3, clip=(-1.0, 1.0),
        )
    )(network, keys, label)  # fmt: skip
    np.testing.assert_allclose(
        run(network, KEY, indices, Conditioning(label)), desired, rtol=0, atol=1e-5
    )


def test_stochastic_samples_do_not_depend_on_the_batch(network):
    """Once the step noise was drawn for a whole batch: other batches gave other images."""
    sampling = Sampling(num_steps=4, solver=samplers.Ancestral())
    draw = functools.partial(generate, network, KEY, sampling=sampling)
    whole = draw(jnp.arange(8))
    np.testing.assert_allclose(draw(jnp.arange(4, 8)), whole[4:], rtol=0, atol=1e-5)


def test_counts_share_a_program_which_a_fixed_one_equals(network):
    """Measuring a teacher at 64 .. 2 steps compiles once, and students of its shape do not."""
    indices = jnp.arange(3)
    before = _generate._cache_size()
    ways = [Sampling(num_steps) for num_steps in (2, 3, 7)]
    found = [generate(network, KEY, indices, sampling=way) for way in ways]
    assert _generate._cache_size() == before + 1
    for way, images in zip(ways, found, strict=True):
        draw = functools.partial(generate, network, sampling=way)
        fixed = jax.jit(draw)(KEY, indices)
        np.testing.assert_allclose(images, fixed, rtol=0, atol=1e-4)


def test_samples_have_gradients(network):
    """In another program the count is fixed: a loop of any count has no reverse-mode gradient."""

    def mean(scale):
        scaled = network.replace(params=jax.tree.map(lambda a: scale * a, network.params))
        return run(scaled, KEY, jnp.arange(2)).mean()

    assert jnp.abs(jax.grad(mean)(1.0)) > 0


def test_changed_sampling():
    """Both at once, so that neither is checked against the other's old value."""
    one_step = Sampling(1, samplers.OneStep(), clip=None)
    assert one_step.changed(4, samplers.Heun()) == Sampling(4, samplers.Heun(), clip=None)
    assert one_step.changed() == one_step
    with pytest.raises(ValueError, match="one_step takes 1 step"):
        one_step.changed(4)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        one_step.changed(0)


def test_a_batch_of_none(network):
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        next(run_batches(network, KEY, 4, batch_size=0, mesh=make_mesh()))


def test_number_of_evaluations():
    assert Sampling(8).nfe == 8
    assert Sampling(8, samplers.Heun()).nfe == 15


@pytest.mark.parametrize(("batch_size", "devices"), [(13, 1), (16, 8), (40, 8)])
def test_batches_and_meshes_do_not_change_the_samples(network, batch_size, devices):
    mesh = jax.make_mesh(
        (devices, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    samples = np.concatenate(
        [*run_batches(network, KEY, 40, batch_size=batch_size, mesh=mesh)], dtype=np.int32
    )
    desired = to_uint8(run(network, KEY, jnp.arange(40))).astype(int)
    # Another shape is compiled to other roundings, so that a level may tip over; rarely.
    assert np.max(np.abs(samples - desired)) <= 1
    assert np.mean(samples == desired) > 0.99
    assert np.std(desired) > 20


def test_labels_stay_with_their_samples(network):
    labels = np.random.default_rng(0).integers(0, 3, 20, np.int32)
    batches = run_batches(
        network, KEY, 20, told=Conditioning(labels), batch_size=16, mesh=make_mesh()
    )
    desired = to_uint8(run(network, KEY, jnp.arange(20), Conditioning(labels))).astype(int)
    np.testing.assert_allclose(np.concatenate([*batches]).astype(int), desired, atol=1)


def test_batches_are_of_one_compiled_shape_and_exactly_as_many_as_asked(network, monkeypatch):
    traced, original = [], Sampling.run

    def counted(*args, **kwargs):
        traced.append(kwargs["shape"])
        return original(*args, **kwargs)

    monkeypatch.setattr(Sampling, "run", counted)
    batches = [*run_batches(network, KEY, 53, batch_size=21, mesh=make_mesh())]
    assert traced == [(24, *SHAPE)]
    # 24 is the next multiple of 8 devices.
    assert [batch.shape for batch in batches] == [(24, *SHAPE), (24, *SHAPE), (5, *SHAPE)]
    assert {batch.dtype for batch in batches} == {np.dtype(np.uint8)}


def test_few_samples_do_not_fill_a_batch(network):
    (batch,) = run_batches(network, KEY, 3, batch_size=512, mesh=make_mesh())
    assert batch.shape == (3, *SHAPE)
    np.testing.assert_allclose(
        batch.astype(int), to_uint8(run(network, KEY, jnp.arange(8)))[:3].astype(int), atol=1
    )


class Counting(nn.Module):
    """Lists the rows of each evaluation."""

    num_labels: int = 3

    @nn.compact
    def __call__(self, z, logsnr, told, *, train=False):
        jax.debug.callback(lambda _: ROWS.append(len(z)), z[0, 0, 0, 0])
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * z * (1 + told.label.astype(z.dtype))[:, None, None, None]


ROWS = []


@pytest.mark.parametrize("levels", [None, (-1.0, 4.0)])
def test_where_guidance_acts_not_it_is_one_evaluation(levels):
    """And the same as by a pair, whose gap counts for nothing there."""
    network = Network(None, Counting(), "v", CosineSchedule(), SHAPE, guidance=(0.0, 4.0))
    network = network.init(KEY).replace(guidance_levels=levels)
    told = Conditioning(np.array([0, 1], np.int32), guidance=np.full(2, 2.0, np.float32))
    sampling, start = Sampling(5), {"key": None, "z_init": jax.random.normal(KEY, (2, *SHAPE))}
    ROWS.clear()
    found = jax.block_until_ready(jax.jit(lambda: sampling.run(network, told, **start))())
    jax.effects_barrier()
    times = np.linspace(1, 0, 6)[:-1]
    low, high = levels or (-np.inf, np.inf)
    acts = [bool(low <= network.schedule(t) <= high) for t in times]
    assert sum(acts) == (5 if levels is None else 3)
    assert sorted(ROWS) == sorted(4 if each else 2 for each in acts)
    pairs = functools.partial(network.denoise, told=told)
    desired = samplers.sample(
        pairs, **start, schedule=network.schedule, num_steps=5, solver=sampling.solver,
        clip=sampling.clip,
    )  # fmt: skip
    np.testing.assert_allclose(found, desired, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("ahead", "begun_before"), [(0, [1, 2, 3]), (1, [2, 3, 3])])
def test_batches_begin_before_one_comes(ahead, begun_before):
    """And come in their order, the last one cut."""
    mesh, begun = make_mesh(), []

    def double(indices):
        begun.append(indices)
        return jax.device_put(2 * indices, batch_sharding(mesh))

    batches = gather_batches(double, 20, 8, mesh, ahead=ahead)
    counts, found = zip(*[(len(begun), batch) for batch in batches], strict=True)
    assert list(counts) == begun_before
    np.testing.assert_array_equal(np.concatenate(found), 2 * np.arange(20))
