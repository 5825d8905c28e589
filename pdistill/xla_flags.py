"""Flags of XLA with which this package's programs run faster than with its defaults."""

import os

import jax

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
KNOWN_TO = ((0, 10), (0, 12))  # XLA ends a program over a flag that it does not know


def set_xla_flags() -> None:
    """To be called before JAX first computes; XLA_FLAGS that has the flag stays as it is.

    On CPUs, XLA hands convolutions to YNNPACK, whose are slower than its own: without, a U-Net
    trains 1.5 times as fast (benchmarks/README.md). Matrix products stay there.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags and KNOWN_TO[0] <= jax.__version_info__[:2] <= KNOWN_TO[1]:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=individual_dot".strip()
