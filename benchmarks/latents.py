"""An update of every method from a transformer of latents of ImageNet 256x256: seconds and bytes.

    python -m benchmarks.latents --size=B --batch_size=4

SiT of a published size and the layout of its files, with random weights, is the teacher of
`imagenet256_progressive`, `_guided`, `_dmd2` and `_mean_flow`, whose networks and losses stay as
they are; batches are smaller. Each is compiled and run twice in a process of its own: `compile` and
`update` are seconds, `gigabytes` is the most that the process has had, compiler and all.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import options_of, parser, tell
from pdistill import model as models
from pdistill.cli.config_file import load_config
from pdistill.diffusion import RectifiedFlow
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.interop.conversion import teacher_card
from pdistill.model.card import reference
from pdistill.networks import AutoencoderTiny, Codec, Network, SiT
from pdistill.runtime.mesh import make_mesh

METHODS = ("progressive", "guided", "dmd2", "mean_flow")
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
DATA = (64, 256, 256, 3)


def main() -> None:
    arguments = parser("latents", __doc__)
    arguments.add_argument("--size", choices=SIZES, default="B", help="default: %(default)s")
    arguments.add_argument("--batch_size", type=int, default=4, help="default: %(default)s")
    arguments.add_argument("--method", choices=METHODS, help="one of them, within this process")
    options = options_of(arguments)
    if options.method:
        print(json.dumps(measure(options.method, options.size, options.batch_size)))
        return
    same = [f"--size={options.size}", f"--batch_size={options.batch_size}"]
    found = {}
    for method in METHODS:
        command = [sys.executable, "-m", "benchmarks.latents", *same, f"--method={method}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[method] = json.loads(done.stdout.splitlines()[-1])
        print(method, found[method], flush=True)
    tell({"size": options.size, "batch_size": options.batch_size, **found}, options.out)


def measure(method: str, size: str, batch_size: int) -> dict[str, Any]:
    """Costs of the first round of a config's student."""
    config = as_plain(load_config(f"imagenet256_{method}:imported"))
    config["mesh"] = {"data": -1}
    config["stages"][0]["remat"] = False
    for stage in config["stages"]:
        if "loop" in stage:
            stage["loop"] |= {"batch_size": batch_size, "substeps": 1}
    with tempfile.TemporaryDirectory() as folder:
        settings = parse(config | {"teacher": str(write_teacher(Path(folder), size))})
        runs = plan(settings, DATA[1:])
        student = next(run for run in runs.values() if run.trains)
        mesh, clock = make_mesh(-1), time.perf_counter()
        update = trace_update(student, runs, settings, mesh, DATA)
        compiled = update.traced.lower().compile()
    seconds = {"compile": time.perf_counter() - clock}
    state, *given = jax.tree.map_with_path(some, (update.state, update.frozen, *update.data))
    which = np.zeros(1, np.int32)  # all updates are of one kind
    for _ in range(2):
        clock = time.perf_counter()
        state, metrics = jax.block_until_ready(
            compiled(state, *given, jax.random.key(0), which=which)
        )
        seconds["update"] = time.perf_counter() - clock
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(metrics))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {name: round(s, 1) for name, s in seconds.items()} | {"gigabytes": round(most / 1e9, 1)}


def write_teacher(folder: Path, size: str) -> Path:
    """Writes a SiT with random weights and a tiny codec of latents of its shape."""
    module = AutoencoderTiny(
        channels=4, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4
    )
    codec = Codec(None, module, (0.0,) * 4, (1.0,) * 4, tile=512).init(jax.random.key(1))
    models.save_codec(folder / "codec", codec, stage="codec", method="diffusers")
    features, depth, heads = SIZES[size]
    sit = SiT(4, features=features, depth=depth, heads=heads)
    blank = Network(
        None, module=sit, head="velocity", schedule=RectifiedFlow(), shape=(32, 32, 4),
        guidance_channels=3,
    )  # fmt: skip
    card = teacher_card(blank, method="sit", source="SiT.pt", num_steps=250, guided=True)
    card |= {
        "codec": reference(folder / "codec", codec=True),
        "data": {"shape": DATA[1:], "noise_shape": blank.shape, "scale": card["data"]["scale"]},
    }
    models.save(folder / "sit", jax.jit(blank.init)(jax.random.key(0)), **card)
    return folder / "sit"


def some(path: Any, a: jax.ShapeDtypeStruct) -> jax.Array:
    """Small numbers of both signs; not negative ones for averages of squares, 1 for integers."""
    if np.issubdtype(a.dtype, np.integer):
        return jax.device_put(np.ones(a.shape, a.dtype), a.sharding)
    drawn = np.random.default_rng(0).random(a.shape, np.float32) * np.float32(0.04)
    if "nu" not in jax.tree_util.keystr(path, simple=True, separator="/").split("/"):
        drawn -= np.float32(0.02)
    return jax.device_put(drawn.astype(a.dtype), a.sharding)


if __name__ == "__main__":
    main()
