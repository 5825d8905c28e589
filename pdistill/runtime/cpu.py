"""Settings that make this package's programs faster on CPUs."""

import os
import signal
import sys

from pdistill.runtime.interruption import SIGNALS
from pdistill.runtime.platform import has_plugin

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
OPERATIONS = "reduce"  # XLA's default without products and convolutions
KNOWN_TO = ((0, 10), (0, 12))  # XLA ends a program over a flag that it does not know
TUNABLE = "glibc.malloc.hugetlb"


def set_xla_flags() -> None:
    """Makes XLA compute products and convolutions on CPUs itself; call before JAX computes.

    XLA hands them to YNNPACK, which is slower at them than XLA. Sums stay with YNNPACK, which is
    faster at those. If XLA_FLAGS has the flag already, it stays as it is. Figures are in
    benchmarks/README.md.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags and KNOWN_TO[0] <= jax.__version_info__[:2] <= KNOWN_TO[1]:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={OPERATIONS}".strip()


def use_huge_pages() -> None:
    """Starts this program again, once, with huge pages for its large arrays.

    XLA allocates intermediate arrays anew in every call, and page faults may then take half of the
    time. glibc can ask Linux for huge pages, but only from a program's start. Nothing is
    done where JAX has an accelerator's plugin, on other systems, or where GLIBC_TUNABLES decides.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by the start before this one
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or TUNABLE in tunables:
        return
    if has_plugin():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there are handlers again
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
