"""Several processes of this machine train as one does; they stop together and fail together."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import importing_process
import jax
import numpy as np
import one_process
import preparing_process
import pytest
from test_imported import write
from tiny_experiment import leaves
from tiny_text import save_encoder

import pdistill
from pdistill.data import to_float
from pdistill.interop.hub import write_folder
from pdistill.methods.columns import Latents
from pdistill.model.codecs import save_codec
from pdistill.networks import Codec
from pdistill.networks.codecs import AutoencoderResidual
from pdistill.runtime.files import read_jsonl
from pdistill.training import EXIT_CODE

ROOT = Path(__file__).parent.parent
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # losses differ by the order of sums only


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(workdir, num_processes, fsdp=1, updates=20, signalled=-1):
    """Processes that train, see `start_all`."""
    return start_all("one_process", workdir, num_processes, fsdp, updates, signalled)


def start_all(program, workdir, num_processes, *arguments):
    """Processes of one device each; their output is in <workdir>/process_<i>."""
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
    }
    command = [sys.executable, ROOT / f"tests/{program}.py", workdir, *arguments]
    workdir.mkdir(exist_ok=True)
    started = []
    for i in range(num_processes):
        place = (f"127.0.0.1:{port}", num_processes, i) if num_processes > 1 else ()
        with (workdir / f"process_{i}").open("w") as output:
            started.append(
                subprocess.Popen(
                    list(map(str, (*command, *place))),
                    env=environment, stdout=output, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    return started


def output(workdir, process=0):
    return (workdir / f"process_{process}").read_text()


def losses(workdir, dtype):
    return [row["loss"] for row in read_jsonl(workdir / dtype / "log.jsonl")]


def wait_for(happened, processes, limit=120):
    """Until `happened()`; fails if a process ends before, or after a time that means a hang."""
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("processes") / "alone"
    [process] = start(workdir, 1)
    assert process.wait(300) == 0, output(workdir)
    return workdir


def check_losses(workdir, alone, num_updates):
    for dtype, tolerance in TOLERANCES.items():
        assert len(losses(workdir, dtype)) == num_updates
        desired = losses(alone, dtype)[:num_updates]
        np.testing.assert_allclose(losses(workdir, dtype), desired, rtol=tolerance)


def test_four_processes_train_as_one(tmp_path, alone, x64):
    """The same losses, one log, one checkpoint of all parts; one process goes on from it."""
    workdir = tmp_path / "several"
    for process in start(workdir, 4, fsdp=2):
        assert process.wait(300) == 0, output(workdir)
    check_losses(workdir, alone, 20)
    for dtype in TOLERANCES:
        parts = (workdir / dtype / "checkpoints/20/state").glob("ocdbt.process_*")
        assert len(list(parts)) == 2  # small arrays are cut over the fsdp axis only
    assert output(workdir).count("step 20/20") == len(TOLERANCES)
    assert "step 20/20" not in output(workdir, 1)
    for path in (workdir, alone):
        for dtype in TOLERANCES:
            one_process.run(path, 24, 1, dtype)
    check_losses(workdir, alone, 24)


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """The directory of two processes of which one was sent SIGTERM; their exit codes."""
    workdir = tmp_path_factory.mktemp("processes") / "signalled"
    return workdir, [process.wait(300) for process in start(workdir, 2, fsdp=2, signalled=1)]


def test_a_signal_to_one_stops_all_at_the_same_update(signalled):
    """Saved together; the exit code says that the same command goes on."""
    workdir, codes = signalled
    assert codes == [EXIT_CODE] * 2, output(workdir)
    messages = [output(workdir, i).splitlines()[-1] for i in range(2)]
    step = messages[0].removeprefix("stopped by another process: float32 is saved at step ")
    assert messages[1] == f"stopped by SIGTERM: float32 is saved at step {step}"
    assert 10 < int(step) < 20
    assert len(losses(workdir, "float32")) == int(step)
    assert (workdir / "float32/checkpoints" / step).is_dir()


def test_two_processes_go_on_without_a_damaged_part(tmp_path, alone, signalled):
    """Which only one of them reads; both take the checkpoint before, and end like one process."""
    workdir = shutil.copytree(signalled[0], tmp_path / "several")
    step = len(losses(workdir, "float32"))
    parts = (workdir / f"float32/checkpoints/{step}/state/ocdbt.process_1").rglob("*")
    largest = max((p for p in parts if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    for process in start(workdir, 2, fsdp=2):
        assert process.wait(300) == 0, output(workdir)
    message = f"float32/checkpoints/{step} is damaged; the one of step 10 is used"
    assert message in output(workdir)
    check_losses(workdir, alone, 20)


def test_two_processes_import_models(tmp_path):
    """Of both forms, onto their common mesh: what they save is whole. Each loads others alone."""
    model = write(tmp_path / "directory", features=32)  # cut over the fsdp axis
    write_folder(tmp_path / "hub", pdistill.load(model))
    for process in start_all("importing_process", tmp_path, 2):
        assert process.wait(120) == 0, output(tmp_path, 1)
    for name in importing_process.MODELS:
        chex.assert_trees_all_equal(leaves(tmp_path / "run" / name), leaves(model))
        parts = (tmp_path / "run" / name / "model/params").glob("ocdbt.process_*")
        assert len(list(parts)) == 2
    sums = {line for i in range(2) for line in output(tmp_path, i).splitlines() if "sum " in line}
    assert len(sums) == 1


def test_two_processes_make_what_is_trained_on(tmp_path):
    """Latents, a column, embeddings, a codec's scale and parts of prompts: alike in both, twice.

    Each has data folders of its own, so that they go to the run directory, which both see.
    """
    module = AutoencoderResidual(channels=(8, 32), blocks=1, latent_channels=2, image_channels=1)
    codec = Codec(None, module, (0.0,) * 2, (1.0,) * 2).init(jax.random.key(0))
    assert max(leaf.size for leaf in jax.tree.leaves(codec.params)) > 4096  # cut over the fsdp axis
    save_codec(tmp_path / "codec", codec, stage="codec", method="codec", data={"shape": (8, 8, 1)})
    save_encoder(tmp_path / "bert", "bert")
    for process in start_all("preparing_process", tmp_path, 2):
        assert process.wait(120) == 0, output(tmp_path, 1)
    lines = [output(tmp_path, i).splitlines() for i in range(2)]
    made = [[line for line in each if line.startswith(preparing_process.TOLD)] for each in lines]
    assert made[0] == made[1] == 2 * made[0][:5]
    assert len(set(made[0])) == 5
    latents = np.load(tmp_path / "run/latents/8/00000.npy")
    x = to_float(preparing_process.dataset().images)
    np.testing.assert_allclose(latents[..., :2], codec.encode(x).mean, atol=2e-3)
    network = preparing_process.NETWORK.init(jax.random.key(0))
    column = Latents(1, "ddim").encode(network, x)
    found = np.load(tmp_path / "run/column.npy")
    np.testing.assert_allclose(found[:, 0], column, atol=2e-3)
    assert len(list((tmp_path / "run/captions").rglob("00000-pooled.npy"))) == 1
    told = [line for line in lines[0] if line.endswith("not one folder for all processes")]
    assert [line.split()[0] for line in told] == ["latents", "text"]  # the first time alone
    assert not list((tmp_path / "host_0").rglob("*pooled*"))


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_others_stop_when_one_is_lost(tmp_path, lost):
    """With an error, within a minute. What was saved before stays good."""

    def saved():
        return [int(path.name) for path in (tmp_path / "float32/checkpoints").glob("[0-9]*0")]

    processes = start(tmp_path, 2, updates=100_000)
    wait_for(saved, processes)  # a save ends some updates after it has begun
    processes.pop(lost).kill()
    assert processes[0].wait(60) not in (0, EXIT_CODE)
    last = max(saved())
    assert len(one_process.run(tmp_path, last + 2, 1, "float32")) == last + 2


def test_one_that_waits_for_another_to_start_stops():
    """With an error that says so, not after the minutes that JAX waits by default."""
    waiting = []
    for present in range(2):
        place = (f"127.0.0.1:{free_port()}", 2, present)
        code = f"from pdistill.runtime.processes import join; join(*{place}, 2)"
        waiting.append(
            subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
            )
        )
    for process in waiting:
        _, error = process.communicate(timeout=60)
        assert process.returncode not in (0, EXIT_CODE)
        assert "DEADLINE_EXCEEDED" in error
