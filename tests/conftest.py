"""Eight virtual CPU devices, quick compilation, strict promotion, and what several tests share."""

import functools
import gc
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

# All of this is read when jax is first imported. Compilation is most of the run time: without
# fusion emitters and optimizations it takes half as long, and what is compiled runs once or twice.
for flag in (
    "--xla_force_host_platform_device_count=8",  # sharding is tested without accelerators
    "--xla_backend_optimization_level=1",  # where optimizations are asked for
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",  # a quarter less work; the cores have tests to do
):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # of workers, as in programs
# Compiled networks are the same from run to run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/pdistill-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["PDISTILL_CACHE_DIR"] = tempfile.mkdtemp(prefix="pdistill-")  # no statistics of others

# Traces are millions of small objects that live; looking for cycles among them takes a fifth of
# the time of tracing.
gc.set_threshold(200_000, 50, 50)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from pdistill.runtime.cpu import set_xla_flags  # noqa: E402
from pdistill.training import loop  # noqa: E402

set_xla_flags()  # as programs do
loop.SLOW_LOOPS = ()  # so that several updates in a dispatch, as on accelerators, are tested

MAPS = Path("/proc/self/maps")  # a line each, of which an executable has two or more

# An accidental [B] * [B, 1] or float32 * float64 is an error, not a slow or wrong answer.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def optimized():
    """Optimized code for one test: sums of other code differ between programs that hold them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64(optimized):
    """Double precision for one test, so that tolerances measure the method, not rounding."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@functools.cache  # one object, so that whatever is compiled for it is compiled once
def _golden():
    from pdistill.diffusion import GaussianMixture

    return SimpleNamespace(
        mixture=GaussianMixture(
            np.array([0.3, 0.7]), np.array([[-0.8], [0.5]]), np.array([0.15, 0.3])
        ),
        z=np.array([[-1.5], [-0.5], [0.2], [1.0]]),
        x=np.array([[-0.9144731], [-0.1752255], [0.4231722], [0.7249754]]),
    )


@pytest.fixture
def golden(x64):
    """A 1-D mixture, four starting points z at logsnr -20, and their exact images x at 20.

    The images come from a float64 solution of the probability-flow ODE, to seven places:
    docs/methods/progressive.md, T8.
    """
    return _golden()


@pytest.fixture
def bars(monkeypatch):
    """The descriptions of the bars that are made, which quick ones never show."""
    from pdistill.runtime.bars import Bar

    made, init = [], Bar.__init__

    def keep(bar, description, num=None):
        made.append(description)
        init(bar, description, num)

    monkeypatch.setattr(Bar, "__init__", keep)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """config -> the directory of a run of it."""
    from pdistill import experiment

    def run(config):
        path = tmp_path_factory.mktemp("runs") / "run"
        experiment.run(config, path)
        return path

    return run


@pytest.fixture(autouse=True, scope="module")
def _compiled_for_one_file():
    """Thousands of executables in one process exhaust the memory maps that Linux allows it.

    Those in cycles are looked for only when there are many, since that takes time.
    """
    yield
    jax.clear_caches()
    if not MAPS.exists() or len(MAPS.read_bytes().splitlines()) > 3000:
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _one_device(request):
    """Meshes are of one device but in files marked `eight_devices`: it takes a sixth less time."""
    from pdistill.runtime.mesh import make_mesh

    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("eight_devices"):
            patch.setattr(make_mesh, "__defaults__", (-1, 1, jax.devices()[:1]))
        yield


@pytest.fixture(autouse=True, scope="module")
def _figures(request):
    """Experiments make their figures, and only tests/report draws them: it takes a second each."""
    from PIL import Image

    from pdistill.runtime.files import replacing

    def blank(figure, path):
        with replacing(path) as temporary:
            Image.new("L", (1, 1)).save(temporary, format="png")

    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "report":
            patch.setattr("pdistill.report.figures.save", blank)
        yield


def pytest_collection_modifyitems(items):
    """The longest first: they take minutes, and no worker should be left alone with one."""
    first = (
        "test_notebooks", "test_processes", "test_kills", "test_configs", "test_own_teacher",
        "methods/test_pagoda", "training/test_loop", "test_prompts", "methods/test_dmd",
        "methods/test_gan", "test_latent", "test_selection", "interop/test_edm2",
    )  # fmt: skip
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(first))


@pytest.fixture
def hangups():
    """SIGHUP as a shell has it, for programs that a test starts, also where the tests ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
