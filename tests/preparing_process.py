"""One of several processes that make together what is made of a data set before training.

python tests/preparing_process.py WORKDIR COORDINATOR NUM_PROCESSES PROCESS_ID

WORKDIR has a codec in codec/ and a text encoder in bert/. Each process has data folders of its own,
as hosts do that share a run directory alone: WORKDIR/run.
"""

import dataclasses
import os
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from one_process import TwoLayers
from tiny_text import PROMPTS_WIDTH

from pdistill.data import load_dataset
from pdistill.diffusion import CosineSchedule
from pdistill.experiment.codecs import in_latents
from pdistill.experiment.text import TextPlan, prompt_centres, with_text
from pdistill.methods.columns import Latents
from pdistill.model.codecs import load_codec, standardised
from pdistill.model.text import load_text_encoder
from pdistill.networks import Network
from pdistill.runtime import processes
from pdistill.runtime.mesh import make_mesh

NETWORK = Network(
    None, module=TwoLayers("float32"), head="v", schedule=CosineSchedule(), shape=(8, 8, 1)
)
IMAGES = 30  # not a number that the processes divide evenly
TOLD = "made: "  # before what a process has made: checksums, which others must have too


def dataset():
    """A few digits, with captions."""
    data = load_dataset("digits").choose(np.arange(IMAGES))
    return dataclasses.replace(data, captions=[(f"a {label}",) for label in data.labels])


def prepare(workdir, own):
    """All that is made, by its names; `own` is another number in each process."""
    data, mesh, codec = dataset(), make_mesh(1, -1), workdir / "codec"
    latents = in_latents(
        data, codec, None, otherwise=workdir / "run/latents/8", flip=True, batch_size=8, mesh=mesh
    )
    settings = SimpleNamespace(
        text_encoder=str(workdir / "bert"), data=SimpleNamespace(resident=True)
    )
    encoder = load_text_encoder(settings.text_encoder)
    plan = TextPlan((encoder.widths[0], 0), encoder, None)
    scale = np.full(PROMPTS_WIDTH, own, np.float32), np.eye(PROMPTS_WIDTH, dtype=np.float32)
    with mock.patch("pdistill.experiment.text.whitening", return_value=scale):
        captioned, *_ = with_text(data, workdir / "run", settings, plan)
    apart = np.random.default_rng(own).normal(size=(IMAGES, 1, 3)).astype(np.float16)
    rows = {"count": np.ones((IMAGES, 1), np.int32), "pooled": apart}
    told = data.with_column("text", rows, aligned=True)
    scaled = standardised(load_codec(codec, mesh), data.images, 8, mesh)
    column, path = Latents(1, "ddim"), workdir / "run/column.npy"
    network = NETWORK.init(jax.random.key(0))
    if not processes.in_all(path.exists()):
        column.make(path, network, data, flip=True, seed=0, batch_size=8, mesh=mesh)
    return {
        "latents": latents.images,
        "column": column.read(path)["latent"],
        "text": captioned.columns["text"].rows["pooled"],
        "centres": prompt_centres(workdir / "run", told, 2, seed=0),
        "scale": np.array([scaled.mean, scaled.std]),
    }


if __name__ == "__main__":
    workdir, (coordinator, num, index) = Path(sys.argv[1]), sys.argv[2:]
    (workdir / f"host_{index}").mkdir(exist_ok=True)
    os.chdir(workdir / f"host_{index}")  # a path that is the same on every host
    os.environ["TFDS_DATA_DIR"] = "data"
    processes.join(coordinator, int(num), int(index))
    for _ in range(2):  # the second time all is there
        for name, a in prepare(workdir, int(index)).items():
            print(TOLD, name, a.shape, zlib.crc32(np.ascontiguousarray(a).tobytes()), flush=True)
    sync_global_devices("prepared")  # a process that ends waits for the others only briefly
