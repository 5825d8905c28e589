"""What is set is in force, and leaves what the user has said alone."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import pytest

from pdistill.runtime.cpu import FLAG, OPERATIONS, set_xla_flags, use_huge_pages

LIBRARY = """
import jax, jax.numpy as jnp, pdistill
from pdistill.runtime.cpu import set_xla_flags
if {quick}: set_xla_flags()
def convolve(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
x, w = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
for f in (lambda x, w: x @ w[0, 0], lambda x, w: x.sum(-1), convolve):
    print("ynn" in jax.jit(f).lower(x, w).compile().as_text())
"""


@pytest.mark.parametrize("before", ["", "--xla_force_host_platform_device_count=2"])
def test_it_is_added(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    set_xla_flags()
    set_xla_flags()
    assert os.environ["XLA_FLAGS"].split() == [*before.split(), f"{FLAG}={OPERATIONS}"]


def test_what_the_user_says_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=individual_dot")
    set_xla_flags()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=individual_dot"


def test_versions_that_may_not_know_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    set_xla_flags()
    assert os.environ["XLA_FLAGS"] == ""


def test_it_is_in_force_after_jax_is_imported():
    """What XLA hands to the library: what it would, but for products and convolutions."""

    def handed_over(quick):
        environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}
        program = [sys.executable, "-c", LIBRARY.format(quick=quick)]
        found = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        return [line == "True" for line in found.stdout.split()]

    _, sums, convolutions = handed_over(False)
    if not convolutions:
        pytest.skip("this XLA does not hand convolutions to YNNPACK here")
    assert handed_over(True) == [False, sums, False]


PROGRAM = """
import os, sys
from pdistill.runtime.cpu import use_huge_pages
print("started", flush=True)
use_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.flags.dont_write_bytecode, *sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize(
    ("before", "starts", "after"),
    [
        ("", 2, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", 2, "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", 1, "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_program_starts_once_more(tmp_path, before, starts, after):
    """With its interpreter's options and its arguments, in the same process."""
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [sys.executable, "-B", str(tmp_path / "program.py"), "--flag=a b", "--other"]
    environment = os.environ | {"GLIBC_TUNABLES": before}
    found = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert lines == ["started"] * starts + [f"{after} 1 --flag=a b --other"]


def test_no_new_start_beside_an_accelerator(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ["cuda"])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it started again"))
    use_huge_pages()
