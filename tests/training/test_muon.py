"""Muon against Newton-Schulz in NumPy; the other parameters against Adam alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from optax.contrib import MuonDimensionNumbers

from pdistill.networks import DiffusersUNet, DiT, Edm2UNet, Network, SiT, SongUNet, UNet
from pdistill.runtime.mesh import make_mesh
from pdistill.training import Checkpointer, Learner, Optimizer, init_state, start_of
from pdistill.training.muon import matrix_axes

pytestmark = pytest.mark.eight_devices

PARAMS = {
    "patches": {"kernel": (2, 2, 1, 12), "bias": (12,)},
    "conv1": {"kernel": (3, 3, 4, 6)},
    "qkv": {"kernel": (12, 3, 2, 6), "bias": (3, 2, 6)},
    "attention_out": {"kernel": (2, 6, 12)},
    "mlp_in": {"kernel": (12, 20)},
    "position": (5, 12),
}
# The hidden ones as matrices [batch, in, out], and back.
MATRICES = {
    "conv1": (lambda a: a.reshape(1, 36, 6), lambda a: a.reshape(3, 3, 4, 6)),
    "qkv": (
        lambda a: a.transpose(1, 0, 2, 3).reshape(3, 12, 12),
        lambda a: a.reshape(3, 12, 2, 6).transpose(1, 0, 2, 3),
    ),
    "attention_out": (lambda a: a.reshape(1, 12, 12), lambda a: a.reshape(2, 6, 12)),
    "mlp_in": (lambda a: a[None], lambda a: a[0]),
}


def orthogonalised(matrix):
    """Five steps of the quintic of Jordan et al. (2024), of the singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values @ right


def random_tree(rng, shapes):
    if isinstance(shapes, tuple):
        return rng.normal(size=shapes)
    return {name: random_tree(rng, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def trained():
    """Parameters by Muon and by Adam after three updates, their start, and the gradients."""
    rng = np.random.default_rng(0)
    start, *grads = (random_tree(rng, PARAMS) for _ in range(4))
    ends = []
    with jax.enable_x64():
        update = jax.jit(lambda learner, grad: learner.update(grad)[0])
        for rule in ("muon", "adam"):
            learner = Learner.of(start, Optimizer(0.1, rule=rule, clip_norm=0.0, weight_decay=0.01))
            for grad in grads:
                learner = update(learner, grad)
            ends.append(jax.device_get(learner.network))
    return *ends, start, grads


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_moves_by_orthogonalised_momentum(trained, name):
    """Relative 1e-6, for optax's learning rate is of single precision. NumPy iterates the singular
    values, so that only rounding differs between the two."""
    muon, _, start, grads = trained
    to_matrix, back = MATRICES[name]
    momentum, w = 0.0, start[name]["kernel"]
    for k, grad in enumerate(grads, start=1):
        grad = grad[name]["kernel"]
        momentum = 0.95 * momentum + 0.05 * grad
        looking_ahead = 0.95 * momentum / (1 - 0.95 ** (k + 1)) + 0.05 * grad / (1 - 0.95**k)
        update = np.stack([orthogonalised(m) for m in to_matrix(looking_ahead)])
        update = back(0.2 * np.sqrt(max(update.shape[1:])) * update)
        w = w - 0.1 * (update + 0.01 * w)
    moved = np.linalg.norm(w - start[name]["kernel"])
    assert np.linalg.norm(muon[name]["kernel"] - w) < 1e-6 * moved


@pytest.mark.parametrize(
    "read",
    [
        lambda tree: tree["patches"]["kernel"],
        lambda tree: tree["patches"]["bias"],
        lambda tree: tree["qkv"]["bias"],
        lambda tree: tree["position"],
    ],
    ids=["input", "bias", "biases of heads", "position"],
)
def test_the_rest_is_updated_by_adam_to_the_bit(trained, read):
    muon, adam, start, _ = trained
    np.testing.assert_array_equal(read(muon), read(adam))
    assert np.all(read(muon) != read(start))


def test_its_state_is_cut_among_devices_and_saved_whole(tmp_path):
    mesh = make_mesh(1, 8)
    optimizer = Optimizer(0.1, rule="muon", ema_widths=(0.05, 0.1))
    params = {"mlp_in": {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}}
    start = start_of(init_state(lambda: Learner.of(params, optimizer), mesh), mesh)
    grads = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size).reshape(a.shape)), params)
    update = jax.jit(lambda learner: learner.update(grads)[0])
    learner = update(start.method)
    momentum = learner.opt_state[1][0].inner_states["muon"].inner_state[0].mu["mlp_in"]["kernel"]
    for whole in (momentum, *(average["mlp_in"]["kernel"] for average in learner.average)):
        assert whole.addressable_shards[0].data.size == 64 * 256 / 8
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, start.replace(method=learner), {})
    expected = jax.device_get(update(learner))
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore(start)
    chex.assert_trees_all_equal(jax.device_get(update(state.method)), expected)


TOLD = {"num_labels": 3, "guidance": True, "target": True}
NCSNPP = {"waves": "fourier", "wave_multiplier": 2, "residual": True, "taps": (1, 3, 3, 1)}
ENDS = {
    DiT(1, features=16, depth=1, heads=2, **TOLD):
        {"patches", "pixels", "logsnr_in", "guidance_in/linear", "target_in/in"},
    UNet(1, channels=8, multipliers=(1,), embedding_channels=16, **TOLD):
        {"conv_in", "conv_out", "dense0", "class_emb", "guidance_in/linear", "target_in/in"},
    SongUNet(1, channels=32, multipliers=(1, 1), blocks=1, num_labels=3, **NCSNPP):
        {"enc.8x8_conv", "enc.4x4_aux_residual", "dec.8x8_aux_conv", "map_layer0", "map_label"},
    UNet(1, channels=8, multipliers=(1, 1), embedding_channels=16, resolutions=(4, 8)):
        {"conv_in", "conv_out", "conv_in_4", "conv_out_4", "dense0", "condition_in/in"},
    DiT(1, features=16, depth=1, heads=2, resolutions=(4, 8), guidance=True, guidance_levels=True):
        {"patches", "patches_4", "pixels", "logsnr_in", "condition_in/in", "guidance_in/linear",
         "guidance_levels_in/Dense_0"},
    SiT(1, features=16, depth=1, heads=2, patch=2):
        {"x_embedder.proj", "t_embedder.mlp.0", "final_layer.linear"},
    Edm2UNet(1, channels=64, multipliers=(1,), blocks=1, num_labels=3):
        {"enc.8x8_conv", "out_conv", "emb_noise", "emb_label"},
    DiffusersUNet(1, channels=(32,), blocks=1, attention=(), num_labels=3):
        {"conv_in", "conv_out", "time_embedding.linear_1"},
}  # fmt: skip


@pytest.mark.parametrize(("module", "ends"), ENDS.items(), ids=lambda v: type(v).__name__)
def test_ends_of_networks_are_left_to_adam(module, ends):
    """Of all kernels these are; nothing but kernels is Muon's."""
    network = Network(None, module=module, head="v", schedule=None, shape=(8, 8, 1))
    flat = traverse_util.flatten_dict(network.shapes.params, sep="/")
    by_adam = {path for path, a in flat.items() if matrix_axes(path, a.shape) is None}
    assert {path.removesuffix("/kernel") for path in by_adam if path.endswith("kernel")} == ends
    assert all(path.endswith("kernel") for path in set(flat) - by_adam)
    assert matrix_axes("params/out_conv/kernel", (3, 3, 64, 3)) is None  # of EDM's ADM
    assert matrix_axes("w/kernel", (64, 1)) is None  # of `LogVariance`
    assert matrix_axes("params/proj_out_2/kernel", (64, 12)) is None  # of diffusers' DiT


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("params/logsnr_out/kernel", (64, 64), ((0,), (-1,))),
        ("params/target_in/out/kernel", (64, 64), ((0,), (-1,))),
        ("params/down_0.block_0/conv1/kernel", (3, 3, 8, 16), ((0, 1, 2), (-1,))),
        ("params/mid.attn_1/q/kernel", (64, 1, 64), ((0,), (-2, -1))),
        ("params/block_0/text/k/kernel", (768, 6, 64), ((0,), (-2, -1))),
        ("params/block_0/text/q/kernel", (384, 6, 64), ((0,), (-2, -1))),
        ("params/block_0/text/out/kernel", (6, 64, 384), ((0, 1), (-1,))),
        ("params/t_embedder.mlp.2/kernel", (64, 64), ((0,), (-1,))),
        ("params/mid.attn_1/proj_out/kernel", (2, 32, 64), ((0, 1), (-1,))),
        ("params/enc.32x32_block0/conv0/kernel", (3, 3, 8, 16), ((0, 1, 2), (-1,))),
        ("params/down_blocks.0.downsamplers.0.conv/kernel", (3, 3, 8, 8), ((0, 1, 2), (-1,))),
    ],
)
def test_hidden_matrices_have_axes(path, shape, axes):
    assert matrix_axes(path, shape) == MuonDimensionNumbers(*axes)
