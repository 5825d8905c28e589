"""The compiled programs of earlier runs, on disk."""

import contextlib
import os
import platform
import time
import zlib
from pathlib import Path

import jax

from pdistill.runtime.files import cache_dir, can_write

SETTINGS = {
    "jax_compilation_cache_max_size": 4 * 2**30,  # bytes; those that were not used for longest go
    "jax_persistent_cache_min_compile_time_secs": 0.1,  # of what is kept
}
UNFINISHED = 60  # seconds after which nobody writes at a program any more


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
    _forget_unfinished(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _forget_unfinished(folder: Path) -> None:
    """Deletes programs that a killed process has half written, over which JAX would stumble."""
    for program in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may delete it, too
            about = program.stat()
            used = program.with_name(program.name.removesuffix("-cache") + "-atime").exists()
            if (not used or not about.st_size) and time.time() - about.st_mtime > UNFINISHED:
                program.unlink()


def _processor() -> str:
    """A name of this kind of processor, on which programs of another may not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    words = "".join(sorted(set(about))) or platform.processor()
    return f"{platform.machine()}-{zlib.crc32(words.encode()):08x}"
