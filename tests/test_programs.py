import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from pdistill.runtime import compilations, programs
programs.SETTINGS["jax_persistent_cache_min_compile_time_secs"] = 0.0
programs.keep_programs()
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
with compilations.compiling("teacher"):
    print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))[0, 0])
print(hits.count("/jax/compilation_cache/cache_hits"))
from jax._src.compiler import get_compile_options
options = get_compile_options(1, 1)
debugging = options.executable_build_options.debug_options
print(debugging.xla_gpu_per_fusion_autotune_cache_dir or None)
"""


def run(home, **environment):
    """What the program says, and what programs are kept in the home.

    Returns:
      Its value, the programs taken from the cache, what it says took how long, the folder of what
      XLA tunes, and the files of programs.
    """
    outside = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    outside |= {"PDISTILL_CACHE_DIR": str(home), **environment}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=True)
    value, hits, tuned = done.stdout.split()
    kept = [*Path(home).glob("programs/*/jit__lambda*-cache")]
    return float(value), int(hits), done.stderr.splitlines()[-1], tuned, kept


def test_the_second_run_takes_the_first_ones_programs(tmp_path):
    value, hits, told, _, kept = run(tmp_path)
    assert (hits, len(kept)) == (0, 1)
    assert re.fullmatch(r"teacher          compiled in \d+\.\d s", told)
    again, hits, told, tuned, _ = run(tmp_path)
    assert again == value
    assert hits >= 1
    assert re.fullmatch(r"teacher          taken from the cache in \d+\.\d s", told)
    assert Path(tuned).parent == kept[0].parent  # what XLA tunes for a GPU is kept as well


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    """Without the file of its last use JAX could keep no other program any more."""
    value, *_, [program] = run(tmp_path)
    program.with_name(program.name.replace("-cache", "-atime")).unlink()
    program.write_bytes(b"")
    os.utime(program, (0, 0))
    again, *_, [program] = run(tmp_path)
    assert again == value
    assert program.stat().st_size
    assert run(tmp_path)[1] >= 1


@pytest.mark.parametrize("says", ["", "elsewhere"])
def test_what_the_user_says_about_the_cache_stays(tmp_path, says):
    elsewhere = tmp_path / says if says else ""
    *_, tuned, kept = run(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    assert not kept
    assert (tuned == "None") == (not says)


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path):
    value, *_ = run(tmp_path / "home")
    (tmp_path / "file").write_text("")
    again, hits, *_, kept = run(tmp_path / "file")
    assert (again, hits, kept) == (value, 0, [])
