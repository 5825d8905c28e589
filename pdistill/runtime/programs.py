"""The compiled programs of earlier runs, on disk."""

import os
import platform
import zlib
from pathlib import Path

import jax

from pdistill.runtime.files import cache_dir, can_write

LARGEST = 4 * 2**30  # bytes on disk; those that were not used for longest go
SHORTEST = 0.1  # seconds that a program's compilation takes, if it is kept


def keep_programs() -> None:
    """Makes JAX keep compiled programs on disk, and what it tuned; call it before JAX compiles.

    They lie in the cache, `files.cache_dir`, for this kind of processor. Nothing is done where
    JAX_COMPILATION_CACHE_DIR says where they go, "" for nowhere, or where nothing can be written.
    """
    place = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if place == "":
        # JAX takes "" for the working directory, where XLA would write what it tunes for a GPU.
        jax.config.update("jax_compilation_cache_dir", None)
    if place is not None or jax.config.jax_compilation_cache_dir:
        return
    folder = cache_dir() / "programs" / _processor()
    if not can_write(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)


def _processor() -> str:
    """A name of this kind of processor, on which programs of another may not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    words = "".join(sorted(set(about))) or platform.processor()
    return f"{platform.machine()}-{zlib.crc32(words.encode()):08x}"
