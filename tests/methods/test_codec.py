"""Codecs that are trained, against closed forms and through a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from planning import TEACHER, plan_of, stage
from stepping import compiled
from tiny_training import noise_dataset

import pdistill
from pdistill import experiment
from pdistill import model as models
from pdistill.configs import digits_pd
from pdistill.data import load_dataset
from pdistill.diffusion import CosineSchedule
from pdistill.experiment.config import ConfigError
from pdistill.methods import Progressive
from pdistill.methods.codec import KlCodec, divergence, edges
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.networks import AutoencoderResidual, Codec, DiT, Network, Posterior
from pdistill.runtime.mesh import make_mesh
from pdistill.training import LoopConfig, Optimizer

SHAPE = (8, 8, 1)
SMALL = FrozenDict(channels=(4, 8), blocks=1, latent_channels=2)
MODEL = Network(None, DiT(1, features=8, depth=1, heads=2), "v", CosineSchedule(), SHAPE)
ADAM = Optimizer(3e-3, ema_decay=0.9)
JUDGE = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)


def test_divergence_is_that_of_two_normal_distributions():
    """KL(N(m, s^2) | N(0, 1)) by its integral."""
    mean, std = np.array([0.0, 0.7, -1.5]), np.array([1.0, 0.4, 2.0])
    z = np.linspace(-30, 30, 200_001)[:, None]
    density = np.exp(-(((z - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    ratio = (z**2 - ((z - mean) / std) ** 2) / 2 - np.log(std)
    desired = np.sum(density * ratio, axis=0) * (z[1, 0] - z[0, 0])
    found = divergence(Posterior(jnp.array(mean), jnp.array(2 * np.log(std))))
    np.testing.assert_allclose(found, desired.mean(), rtol=1e-5)


def test_edges():
    """Rows differ by 2, columns by 0.5."""
    error = 2 * jnp.arange(3.0)[:, None] + jnp.arange(4.0)[None] / 2
    np.testing.assert_allclose(edges(error[None, :, :, None]), 2.5)


def test_updates_lower_the_error():
    """Of two brightnesses, which a decoder that does not heed its latents misses by one half."""
    method = KlCodec(optimizer=Optimizer(1e-2, ema_decay=0.9), network=SMALL)
    state = method.init(jax.random.key(0), model=MODEL)
    x = jnp.where(jnp.arange(16) % 2, 0.5, -0.5)[:, None, None, None] * jnp.ones((16, *SHAPE))
    step = compiled(method)
    for i in range(60):
        state, metrics = step(state, {"image": x}, jax.random.key(i))
    assert metrics["reconstruction"] < 0.1
    total = metrics["reconstruction"] + 0.5 * metrics["edges"] + 0.5 * metrics["distance"]
    np.testing.assert_allclose(metrics["loss"], total + 1e-3 * metrics["kl"], rtol=1e-5)
    product = method.product(state)
    assert product.blank == method.blank(SHAPE)
    assert np.abs(product.decode(product.latents(product.encode(x))) - x).mean() < 0.2


def test_an_adversary_of_its_images():
    adversary = Adversary(judges=(JUDGE,), optimizer=Optimizer(1e-3), r1=1.0, r1_interval=2)
    method = KlCodec(optimizer=ADAM, network=SMALL, adversary=adversary)
    assert method.parts(1) == ("discriminator",)
    assert method.parts(2) == ("discriminator", "r1")
    state = method.init(jax.random.key(0), model=MODEL)
    x = jax.random.uniform(jax.random.key(1), (16, *SHAPE), minval=-1.0)
    after, metrics = compiled(method, method.parts(2))(state, {"image": x}, jax.random.key(2))
    assert {"adversarial", "discriminator_loss", "r1"} <= metrics.keys()
    assert metrics["adversarial_weight"] == method.adversarial
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), after.critic.network, state.critic.network
    )
    assert max(jax.tree.leaves(moved)) > 0


def test_standardised_latents_have_deviation_one():
    images = noise_dataset(70, (8, 8, 3)).images
    module = AutoencoderResidual(**SMALL)
    codec = Codec(None, module, (0.0, 0.0), (1.0, 1.0), 16).init(jax.random.key(0))
    codec = models.standardised(codec, images, 32, make_mesh(2, 2, jax.devices()[:4]))
    posterior = codec.encode(images.astype(np.float32) / 127.5 - 1)
    posterior = Posterior(*(np.repeat(a, 50, axis=0) for a in posterior))
    latents = np.asarray(codec.latents(posterior, jax.random.key(1)))
    assert latents.shape == (3500, 2, 2, 2)
    # 14,000 draws: standard errors 0.008 and 0.006.
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=0.03)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=0.03)


def test_plans():
    method = KlCodec(optimizer=ADAM, network=SMALL)
    planned = plan_of(MODEL.module, stage(method, given={}), TEACHER)["codec"]
    assert (planned.makes_codec, planned.image_shape, planned.measured_at) == (True, SHAPE, ())
    judges = (dataclasses.replace(JUDGE, features="teacher"),)
    seeing = Adversary(judges=judges, optimizer=ADAM)
    cases = [
        ((stage(method, given={}, measured_at=(4,)),), "measured_at is for models that sample"),
        (
            (stage(method, given={}, loop=LoopConfig(1000, snapshot_every=1000)),),
            "snapshot_every is for models that sample",
        ),
        ((stage(method, given={}), stage(method, "other", given={"teacher": "codec"})), "no 'teac"),
        (
            (stage(KlCodec(optimizer=ADAM, network=FrozenDict(channels=(4,) * 4)), given={}),),
            "must be multiples of 16 for this codec; got 8x8",
        ),
        (
            (stage(KlCodec(optimizer=ADAM, network=FrozenDict(name="vq")), given={}),),
            "codec must be one of autoencoder_kl, autoencoder_residual",
        ),
        (
            (stage(KlCodec(optimizer=ADAM, network=SMALL, adversary=seeing), given={}),),
            "there is no teacher to judge with",
        ),
    ]
    for stages, message in cases:
        with pytest.raises(ConfigError, match=message):
            plan_of(MODEL.module, *stages)


def test_a_codec_is_no_teacher():
    codec = stage(KlCodec(optimizer=ADAM, network=SMALL), given={})
    student = stage(Progressive(optimizer=ADAM, start_steps=4), given={"teacher": "codec"})
    with pytest.raises(ConfigError, match="teacher: 'codec' makes a codec, not a network"):
        plan_of(MODEL.module, codec, student)


def test_a_run(tmp_path, bars):
    """A codec of digits; again it changes nothing."""
    loop = {"num_updates": 4, "batch_size": 16, "substeps": 2, "log_every": 2, "save_every": 4}
    codec = {
        "name": "codec", "method": "codec", "network": dict(SMALL), "loop": loop,
        "optimizer": {"learning_rate": 2e-3},
    }  # fmt: skip
    config = digits_pd.get_config()
    config.stages = (codec,)
    experiment.run(config, tmp_path / "run")
    assert f"{'codec':<16} scale of latents" in bars
    codec = pdistill.load_codec(tmp_path / "run/codec")
    images = load_dataset("digits", "train").images
    found = models.standardised(codec, images, 500, make_mesh())
    np.testing.assert_allclose(found.mean, codec.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.std, codec.std, rtol=1e-4)
    path = tmp_path / "run/codec/model/model.json"
    before = path.stat().st_mtime_ns
    experiment.run(config, tmp_path / "run")
    assert path.stat().st_mtime_ns == before
