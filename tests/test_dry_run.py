"""What a dry run says, against JAX's own figures and against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from tiny_experiment import tiny

from pdistill.experiment.config import ConfigError
from pdistill.experiment.dry_run import Cost, dry_run, table
from pdistill.runtime.costs import collective_bytes, flops
from pdistill.runtime.mesh import batch_sharding, make_mesh

SHAPE = (1437, 8, 8, 1)
WIDTH = 64


def config(fsdp):
    """Large enough that what is cut over the fsdp axis outweighs what is not."""
    config = tiny()
    config.stages = config.stages[:1]
    config.model.network.arguments.update(patch=2, features=WIDTH, depth=2, heads=4)
    config.mesh = ConfigDict({"data": -1, "fsdp": fsdp})
    return config


@pytest.fixture(scope="module")
def plans():
    """By (devices, fsdp), with the bytes of each one's arguments as XLA counts them."""
    analyse, arguments = jax.stages.Compiled.memory_analysis, []

    def analyse_and_keep(compiled):
        memory = analyse(compiled)
        arguments.append(memory.argument_size_in_bytes)
        return memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Compiled, "memory_analysis", analyse_and_keep)
        found = {(n, 1): plans[0] for n, plans in dry_run(config(1), (1, 8), SHAPE).items()}
        found[8, 8] = dry_run(config(8), (8,), SHAPE)[8][0]
    return {key: (plan, size) for (key, plan), size in zip(found.items(), arguments, strict=True)}


def block_parameters(width):
    """Of a DiT's block: modulation, attention and the two layers behind it."""

    def dense(inputs, outputs):
        return inputs * outputs + outputs

    attention = dense(width, 3 * width) + dense(width, width)
    return dense(width, 6 * width) + attention + dense(width, 4 * width) + dense(4 * width, width)


def test_parameters_and_state(plans):
    """Parameters, average and two moments in float32, and a few counters."""
    blocks = 2 * block_parameters(WIDTH)
    images, labels = 1437 * 64, 1437 * 4
    for (devices, _), (plan, arguments) in plans.items():
        assert blocks < plan.parameters < 1.2 * blocks  # most of such a network
        assert plan.frozen == 0
        assert plan.data == images + labels + 16 * 4 // devices
        # This network takes no labels, so that XLA drops them; it has the key and two counters.
        assert arguments == plan.state + plan.data - labels + 8 + 2 * 4
    assert 0 <= plans[1, 1][0].state - 4 * 4 * plan.parameters < 100


def test_a_device_needs_less_the_more_there_are(plans):
    """Replicated, only activations shrink, about as the batch does; over fsdp also the state."""
    one, eight, fsdp = (plans[key][0] for key in ((1, 1), (8, 1), (8, 8)))
    assert one.state == eight.state
    assert one.activations > eight.activations
    assert one.state / 8 <= fsdp.state < 1.2 * one.state / 8  # small leaves are whole everywhere
    assert one.flops == eight.flops == fsdp.flops


def test_the_table_says_which_memory_is_enough():
    sizes = {"small": 10**9, "large": 10**13}
    rest = dict.fromkeys(("frozen", "data", "activations", "flops", "communicated"), 0)
    costs = [Cost(name, parameters=1, state=size, **rest) for name, size in sizes.items()]
    *_, small, large = table(make_mesh(1, 1, jax.devices()[:1]), costs).splitlines()
    assert "in 16 GB" in small
    assert "nowhere" in large


def test_communication(plans):
    """Data parallel: gradients are summed, once. Over fsdp parameters are gathered besides."""
    one, eight, fsdp = (plans[key][0] for key in ((1, 1), (8, 1), (8, 8)))
    gradients = 4 * one.parameters
    assert one.communicated == 0
    assert gradients <= eight.communicated < 1.1 * gradients
    assert fsdp.communicated > 1.5 * gradients


def test_an_offloaded_teacher():
    """Is not among what stays on the device."""
    frozen = {}
    for offload in (False, True):
        plain = config(1)
        plain.stages = tiny().stages[:2]
        plain.stages[1]["loop"]["offload"] = offload
        _, plan = dry_run(plain, (1,), SHAPE)[1]
        frozen[offload] = plan.frozen
    assert frozen[False] == pytest.approx(4 * plan.parameters, rel=1e-3)
    assert frozen[True] == 0


def test_flops_are_those_of_the_compiler():
    """Of a product, a convolution and their gradients, in a scan; XLA also counts additions, and
    leaves out what falls on padding: a few percent."""
    images, kernel = jnp.ones((8, 16, 16, 8)), jnp.ones((3, 3, 8, 32))
    matrix = jnp.ones((32, 64))

    def loss(kernel, matrix):
        maps = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum((maps @ matrix) ** 2)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    ours = flops(gradient.trace(kernel, matrix).jaxpr.jaxpr)
    forward = 2 * 8 * 16 * 16 * (9 * 8 * 32 + 32 * 64)
    assert ours == 2 * forward + 2 * 8 * 16 * 16 * 32 * 64  # no gradient of the images
    theirs = gradient.lower(kernel, matrix).cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.1)

    scanned = jax.jit(
        lambda m: jax.lax.scan(lambda c, _: (c @ m, None), jnp.ones((4, 64)), length=7)[0]
    )
    assert flops(scanned.trace(jnp.ones((64, 64))).jaxpr.jaxpr) == 7 * 2 * 4 * 64 * 64


@pytest.mark.parametrize(("taken", "products"), [(True, 2), (False, 1), (None, 2)])
def test_flops_of_branches(taken, products):
    """Of the one that is known to be taken, else of the dearest."""

    def choose(m, unknown):
        due = unknown if taken is None else taken
        return jax.lax.cond(due, lambda: m @ m @ m, lambda: m @ m)

    jaxpr = jax.make_jaxpr(choose)(jnp.ones((8, 8)), True).jaxpr
    assert flops(jaxpr) == products * 2 * 8**3


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = make_mesh(devices=jax.devices())
    placed = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=batch_sharding(mesh))

    def step(x):
        def body(total, _):
            return total + jnp.sum(x * total[None], axis=0), None

        return jax.lax.scan(body, jnp.ones(32), length=5)[0]

    hlo = jax.jit(step).lower(placed).compile().as_text()
    assert hlo.count(" all-reduce(") == 1
    assert collective_bytes(hlo) == 5 * 32 * 4


def test_what_a_dry_run_cannot_plan(capsys):
    with pytest.raises(ConfigError, match="16 devices, of which JAX has made 8"):
        dry_run(config(1), (16,), SHAPE)
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        dry_run(config(3), (8,), SHAPE)
    other = config(1)
    other.seed = -1
    with pytest.raises(ConfigError, match="seed must be from 0 to 4294967295; got -1"):
        dry_run(other, (8,), SHAPE)
    unknown = config(1)
    unknown.data.name = "digit"
    with pytest.raises(ConfigError, match="--data_shape=N,H,W,C does without the data"):
        dry_run(unknown, (8,))
