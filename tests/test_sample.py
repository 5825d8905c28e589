import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pdistill import model as models
from pdistill import sample
from pdistill.data import to_uint8
from pdistill.diffusion import CosineSchedule
from pdistill.networks import DiT, Network

SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    rng = np.random.default_rng(0)
    module = DiT(1, features=8, depth=1, heads=2, num_labels=3)
    blank = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=SHAPE)
    network = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=0.3, size=a.shape), a.dtype), blank.shapes
    )
    directory = tmp_path_factory.mktemp("models") / "model"
    models.save(
        directory, network, kind="denoiser", solver="ddim", num_steps=2,
        clip=(-1.0, 1.0), data={"shape": SHAPE}, guidance=None, stage="teacher",
        method="teacher", train_steps=1, images_seen=1,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize(
    ("flags", "key", "options", "scale"),
    [
        ([], 0, {}, 8),  # 32 pixels an image
        (
            ["--seed=3", "--label=1", "--num_steps=1", "--scale=2"],
            3,
            {"label": 1, "num_steps": 1},
            2,
        ),
    ],
    ids=["defaults", "options"],
)
def test_picture_holds_the_models_samples(directory, tmp_path, capsys, flags, key, options, scale):
    out = tmp_path / "new/grid.png"
    sample.main([f"--model={directory}", "--num=5", f"--out={out}", *flags])
    assert str(out) in capsys.readouterr().out
    picture = Image.open(out)
    # Two rows of three images, 4 pixels each, with lines of one pixel between and around them.
    assert picture.size == (scale * 16, scale * 11)
    pixels = np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale]
    desired = to_uint8(models.load(directory).sample(jax.random.key(key), 5, **options))
    for i in range(5):
        top, left = 1 + 5 * (i // 3), 1 + 5 * (i % 3)
        np.testing.assert_array_equal(
            pixels[top : top + 4, left : left + 4], np.repeat(desired[i], 3, axis=-1)
        )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nowhere", "error: no model in nowhere"),
        ("--num=0", "error: num must be at least 1; got 0"),
        ("--num_steps=0", "error: num_steps must be at least 1; got 0"),
        ("--label=3", r"error: labels must be in 0 \.\. 2"),
        ("--scale=0", "error: scale must be at least 1; got 0"),
        ("--out=grid.xyz", r"error: .*\.xyz"),
    ],
)
def test_errors_are_one_message(directory, tmp_path, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        sample.main([f"--model={directory}", "--num=5", flag])
    assert list(tmp_path.iterdir()) == []
