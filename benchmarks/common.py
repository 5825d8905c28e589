"""Parts that the benchmarks share: taking turns, the machine and its peak, writing results."""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pdistill.runtime.cpu import set_xla_flags, use_huge_pages

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "flax", "torch", "diffusers")


def config_named(name: str) -> ConfigDict:
    """Loads a config by its name, such as "cifar10_pd:cpu"."""
    file, _, variant = name.partition(":")
    return importlib.import_module(f"pdistill.configs.{file}").get_config(
        *[variant] * bool(variant)
    )


def described(name: str, doc: str) -> argparse.ArgumentParser:
    """Makes a parser for `python -m benchmarks.<name>`, whose help shows `doc` as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Makes a parser for a benchmark of time, which writes a file of results."""
    found = described(name, doc)
    out = ROOT / "benchmarks" / "results" / f"{name}.json"
    found.add_argument("--out", type=Path, default=out, help="file to write")
    found.add_argument(
        "--xla_defaults", action="store_true", help="without what `pdistill.runtime.cpu` does"
    )
    return found


def options_of(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the options, and sets XLA's flags and huge pages; rivals have the latter too."""
    options = arguments.parse_args()
    if not options.xla_defaults:
        use_huge_pages()
        set_xla_flags()
    return options


def take_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times `rounds` calls of each contender in seconds.

    They take turns, so that a busy moment of the machine falls on all. Before each call that is
    counted there is one that is not, which finds the memory, the caches and the threads that the
    contender before has left. A call is over when what it returns has been computed.
    """
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            jax.block_until_ready(call())
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Takes the median time of each contender."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak_flops(dtype: str = "float32", rounds: int = 5) -> float:
    """Measures FLOP/s of a product of large matrices of random numbers, the best of some calls.

    On a GPU, float32 is rounded to TF32, as in XLA's other products and convolutions.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    [times] = take_turns({"product": lambda: product(a, a)}, rounds).values()
    return 2 * size**3 / min(times)


def machine() -> dict[str, Any]:
    """Describes the machine, the versions and the commit that a result comes from."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # rivals are an extra
            continue
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "environment": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "GLIBC_TUNABLES")},
        "commit": commit or None,
    }


def tell(result: Mapping[str, Any], out: Path) -> None:
    """Prints a result and the machine as one line of JSON, and writes it."""
    line = json.dumps({**result, **machine()})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(line + "\n")
    print(line)
