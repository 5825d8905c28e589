"""Exported samplers against `Model.sample`, here and in a process with nothing but jax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import SHAPE, save_random
from jax import export as jax_export

import pdistill
from pdistill.cli import export
from pdistill.diffusion import CosineSchedule
from pdistill.interop import export_sampler, stablehlo, write_sampler
from pdistill.networks import Conditioning, DiffusersDiT, DiT, Network, Routed, SiT

KEY = jax.random.key(5)

# Runs a sampler where flax, pdistill and the like cannot be imported.
ALONE = """
import sys
for name in ("flax", "pdistill", "optax", "orbax", "safetensors", "scipy.stats"):
    sys.modules[name] = None
import jax, jax.export, numpy as np
sampler = jax.export.deserialize(open(sys.argv[1], "rb").read())
weights = dict(np.load(sys.argv[2]))
images = [sampler.call(weights, jax.random.key(5), jax.numpy.arange(n)) for n in (2, 3)]
np.savez(sys.argv[3], *images)
"""


def reserialized(exported):
    return jax_export.deserialize(exported.serialize())


def test_runs_without_pdistill_as_the_model_samples(plain, tmp_path):
    model = pdistill.load(plain)
    path = tmp_path / "new/sampler.stablehlo"
    files = write_sampler(path, model, num_steps=3, start="key", inside=False)
    assert files == [path, path.with_suffix(".npz")]
    with pytest.raises(ValueError, match="is for the weights beside the program"):
        write_sampler(files[1], model, num_steps=3, start="key", inside=False)
    assert sorted(p.name for p in path.parent.iterdir()) == ["sampler.npz", "sampler.stablehlo"]
    out = tmp_path / "images.npz"
    subprocess.run([sys.executable, "-c", ALONE, *files, out], check=True)
    with np.load(out) as archive:
        two, three = archive.values()
    np.testing.assert_array_equal(three, model.sample(KEY, 3, num_steps=3))
    np.testing.assert_allclose(two, three[:2], atol=1e-5)
    for content in (None, b"a file"):  # beside which it would be written
        with pytest.raises(ValueError, match=r"images\.npz is there, and holds no weights of such"):
            write_sampler(
                tmp_path / "images.stablehlo", model, num_steps=3, start="key", inside=False
            )
        if content is None:
            assert len(np.load(out).files) == 2
        out.write_bytes(b"a file")
    again = write_sampler(path, model, num_steps=3, start="noise", inside=False)  # its own file
    assert again == files


def test_weights_that_no_file_has_inside(plain, tmp_path, monkeypatch):
    """Those of the published XL networks: flatbuffers end at 2 GiB, with a traceback."""
    size = sum(a.nbytes for a in stablehlo.weights(pdistill.load(plain)).values())
    assert 675e6 * 4 > stablehlo.LARGEST > 2**30
    monkeypatch.setattr(stablehlo, "LARGEST", size - 1)
    out = tmp_path / "sampler.stablehlo"
    with pytest.raises(SystemExit, match=r"error: the weights have .* GiB.*--weights=beside"):
        export.main([f"--model={plain}", f"--out={out}"])
    assert not list(tmp_path.iterdir())
    export.main([f"--model={plain}", f"--out={out}", "--weights=beside"])
    monkeypatch.setattr(stablehlo, "LARGEST", size)
    export.main([f"--model={plain}", f"--out={out}"])


def test_platforms_and_symbolic_batch(plain):
    exported = export_sampler(pdistill.load(plain))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval.shape) for aval in exported.in_avals] == ["()", "(b,)"]
    assert str(exported.out_avals[0].shape) == "(b, 4, 4, 1)"
    assert exported.out_avals[0].dtype == jnp.float32


def test_weights_inside_with_labels_and_guidance(guided):
    model = pdistill.load(guided)
    sampler = reserialized(export_sampler(model, num_steps=2))
    label, weight = jnp.array([2, 0, 1]), jnp.array([0.0, 1.5, 3.0])
    images = sampler.call(KEY, jnp.arange(3), label, weight)
    desired = model.sample(KEY, 3, label=label, guidance=weight, num_steps=2)
    np.testing.assert_array_equal(images, desired)


def test_starts_from_noise(plain):
    """The noise that a key draws gives the key's images."""
    model = pdistill.load(plain)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[1], SHAPE))(keys)
    images = reserialized(export_sampler(model, num_steps=3, start="noise")).call(noise)
    np.testing.assert_allclose(images, model.sample(KEY, 3, num_steps=3), atol=1e-5)


def test_a_model_that_jumps(tmp_path):
    """Its sampler is given jumps, not a denoiser; here MeanFlow's."""
    jumping = {"kind": "jump", "solver": "gamma:0.5", "head": "velocity"}
    directory = save_random(tmp_path / "model", target=True, **jumping)
    model = pdistill.load(directory)
    images = reserialized(export_sampler(model, num_steps=2)).call(KEY, jnp.arange(3))
    np.testing.assert_array_equal(images, model.sample(KEY, 3, num_steps=2))


TINY = {"depth": 1, "heads": 2}
OF_ANY_BATCH = {
    "1,024 tokens": (DiT(1, patch=1, features=8, **TINY), 32, ()),
    "several students": (Routed(DiT(1, features=8, num_labels=3, **TINY), (1, 0, 1)), 4, "label"),
    "guidance": (DiffusersDiT(1, guidance=True, head_channels=4, **TINY), 4, "guidance"),
    "no label": (SiT(1, features=8, **TINY), 4, ()),
}


@pytest.mark.parametrize(("module", "side", "told"), OF_ANY_BATCH.values(), ids=OF_ANY_BATCH)
def test_networks_take_a_symbolic_batch(module, side, told):
    """Tracing tells: a batch has no length in Python where its size is a symbol."""
    shape, (b,) = (side, side, 1), jax_export.symbolic_shape("b")
    network = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=shape).shapes
    types = {"label": jnp.int32, "guidance": jnp.float32}
    told = Conditioning(**{told: jax.ShapeDtypeStruct((b,), types[told])} if told else {})
    z, logsnr = (jax.ShapeDtypeStruct((b, *rest), jnp.float32) for rest in (shape, ()))
    assert jax.eval_shape(Network.denoise, network, z, logsnr, told).shape == (b, *shape)


def test_noise_and_a_solver_that_draws_more(tmp_path):
    model = pdistill.load(save_random(tmp_path / "model", solver="ancestral"))
    with pytest.raises(ValueError, match="ancestral draws noise at each step: use a key"):
        export_sampler(model, start="noise")
    with pytest.raises(ValueError, match="start must be 'key' or 'noise'; got 'latents'"):
        export_sampler(model, start="latents")
