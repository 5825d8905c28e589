"""Networks that jump: a teacher's weights behave as before, and at s = t nothing moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pdistill import samplers
from pdistill.diffusion import CosineSchedule, KarrasSchedule, output_channels, x_from_v
from pdistill.networks import (
    Conditioning,
    DhariwalUNet,
    DiffusersUNet,
    DiT,
    Network,
    SiT,
    SongUNet,
    UNet,
)

SHAPE = (8, 8, 1)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
LOGSNR_T = np.array([-8.0, -2.0, 0.5, 3.0], np.float32)
LOGSNR_S = np.array([-7.0, 4.0, 12.0, 3.5], np.float32)
UNET = UNet(1, channels=8, embedding_channels=16, multipliers=(1, 2), blocks=1, attention_sizes=())
SMALL = {"multipliers": (1,), "blocks": 1, "attention_sizes": ()}
NETWORKS = {
    "dit": DiT(1, features=8, depth=1, heads=2),
    "sit": SiT(1, features=8, depth=1, heads=2, num_labels=1),
    "unet": UNET,
    "unet_in_blocks": UNET.clone(target_in_blocks=True),
    "song_unet": SongUNet(1, channels=8, **SMALL),
    "dhariwal_unet": DhariwalUNet(1, channels=8, **SMALL),
    "diffusers_unet": DiffusersUNet(
        1, channels=(8,), blocks=1, attention=(), middle_attention=False, middle_groups=4, groups=4
    ),
}


def blank(module, head="v"):
    return Network(None, module=module, head=head, schedule=CosineSchedule(), shape=SHAPE)


def random(network, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), network.shapes
    )


def jumping(module, head="v"):
    """A network that takes the target of a jump."""
    return random(blank(module, head).with_target(KarrasSchedule()))


def teacher_and_student(module):
    teacher = random(blank(module))
    student = teacher.with_target(KarrasSchedule())
    fresh = random(student, seed=2)
    # What its own initialisation does is looked at alone: the rest need not be compiled.
    own = jax.jit(lambda: of_target(student.init(jax.random.key(0)).params))()
    params = traverse_util.flatten_dict(fresh.params, sep="/") | own
    fresh = fresh.replace(params=traverse_util.unflatten_dict(params, sep="/"))
    return teacher, *fresh.taking(teacher)


def of_target(params):
    """Parameters that take the target, by path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: array for path, array in flat.items() if "target_" in path}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_teachers_weights_behave_as_before_until_the_target_is_heard(name):
    """For every target, to the last bit; only what takes the target is new. Once that is not zero,
    v depends on the target, and is the denoiser's where the two levels meet.

    Rounding turns into phases of the sinusoids, whose angles reach 1,000.
    """
    teacher, student, report = teacher_and_student(NETWORKS[name])
    assert not report.unused
    assert all("target_in/" in path or "/target_proj/" in path for path in report.new)
    assert any("/target_proj/" in path for path in report.new) == ("blocks" in name)

    @jax.jit
    def both(student, s):
        """Without a target, and with one: one program for both students."""
        return student.v(Z, LOGSNR_T), student.v(Z, LOGSNR_T, Conditioning(target=s))

    desired = jax.jit(Network.v)(teacher, Z, LOGSNR_T)
    for v in both(student, LOGSNR_S):
        np.testing.assert_array_equal(v, desired)
    heard = jumping(NETWORKS[name])
    diagonal, v = both(heard, LOGSNR_T)
    np.testing.assert_allclose(v, diagonal, rtol=0, atol=2e-3)
    assert np.std(both(heard, LOGSNR_S)[1] - v) > 0.01


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_before_training_its_jumps_are_the_teachers_ddim(name):
    teacher, student, _ = teacher_and_student(NETWORKS[name])
    run = functools.partial(
        samplers.sample, key=None, z_init=jnp.asarray(Z), schedule=student.schedule, num_steps=4
    )
    ours = jax.jit(lambda: run(student.jump, solver=samplers.Gamma(0.0)))()
    theirs = jax.jit(lambda: run(teacher.denoise, last_step_is_x_hat=False))()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_layers_in_blocks_learn_from_the_first_update():
    """Zeros in the blocks need a target's embedding that is not zero itself."""
    _, student, _ = teacher_and_student(NETWORKS["unet_in_blocks"])

    @jax.jit
    @jax.grad
    def slope(params):
        told = Conditioning(target=jnp.asarray(LOGSNR_S))
        return jnp.sum(student.replace(params=params).v(Z, LOGSNR_T, told) ** 2)

    slopes = of_target(slope(student.params))
    kernels = [a for path, a in slopes.items() if path.endswith("target_proj/kernel")]
    assert len(kernels) == 10  # 2 down, 2 in the middle, 4 up, and what halves and doubles
    assert all(np.abs(kernel).max() > 0 for kernel in kernels)


@pytest.mark.parametrize("head", ["v", "x", "both"])
def test_nothing_moves_to_where_it_is(head):
    module = DiT(output_channels(head, 1), features=8, depth=1, heads=2)
    jump = jax.jit(jumping(module, head).jump)
    np.testing.assert_array_equal(jump(Z, LOGSNR_T, LOGSNR_T), Z)


def test_the_jump_is_ddims_step():
    """With g, what v says of the image when it is told the target, for x_hat."""
    student = jumping(NETWORKS["dit"])

    @jax.jit
    def step(z):
        told = Conditioning(target=LOGSNR_S)
        v = student.module.apply({"params": student.params}, z, LOGSNR_T, told)
        g = x_from_v(z, v, LOGSNR_T)
        return samplers.ddim_step(z, g, *(a[:, None, None, None] for a in (LOGSNR_T, LOGSNR_S)))

    actual = jax.jit(student.jump)(Z, LOGSNR_T, LOGSNR_S)
    np.testing.assert_allclose(actual, step(jnp.asarray(Z)), rtol=0, atol=5e-4)


def test_a_guided_pair_jumps():
    """Both of the pair are told the target."""
    student = jumping(DiT(1, features=8, depth=1, heads=2, num_labels=3))
    label, end = np.array([0, 1, 2, 0], np.int32), np.full(4, 40, np.float32)  # there z is x
    x_hat = jax.jit(lambda told: student.jump(jnp.asarray(Z), LOGSNR_T, end, told))
    guided = x_hat(Conditioning(label, np.full(4, 2, np.float32)))
    desired = 3 * x_hat(Conditioning(label)) - 2 * x_hat(Conditioning(np.full(4, 3, np.int32)))
    np.testing.assert_allclose(guided, desired, rtol=0, atol=1e-4)
