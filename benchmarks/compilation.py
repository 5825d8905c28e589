"""Compile time and memory of a sampler and a training update, as one thing grows at a time.

    python -m benchmarks.compilation

A small U-Net on 32x32 images, and DiT-XL/2 of some of its blocks on 32 latents of as many, without
and with `loop.scan_blocks` and `remat`. Seconds are those of tracing and of compiling; bytes what
the compiler sets aside for intermediate results. `slopes` are the slopes of bytes and of compile
time over the growing number, both in logarithms: 0 is flat, 1 linear.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import options_of, parser, tell
from pdistill.diffusion import CosineSchedule
from pdistill.methods import Progressive
from pdistill.model.sampling import Sampling
from pdistill.networks import DiT, Network, UNet
from pdistill.training import Optimizer
from pdistill.training.stacking import stacked

IMAGE = (32, 32, 3)
LATENT = (32, 32, 4)
GROWTH = {"num_steps": (1, 4, 16, 64, 256), "batch_size": (4, 8, 16, 32), "channels": (16, 32, 64)}
DEPTH = {"depth": (7, 14, 28)}


def cost(function: Callable, *shapes: Any, donated: tuple[int, ...] = ()) -> dict[str, float]:
    """Measures seconds and bytes of compiling a function for arguments of these shapes."""
    clock = time.perf_counter()
    traced = jax.jit(function, donate_argnums=donated).trace(*shapes)
    traced_at = time.perf_counter()
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    return {
        "trace_seconds": traced_at - clock,
        "compile_seconds": time.perf_counter() - traced_at,
        "bytes": memory.temp_size_in_bytes,
    }


def shapes_of(channels: int) -> Network:
    """A network with the shapes of its parameters."""
    module = UNet(
        channels=channels, multipliers=(1, 2), blocks=1, attention_sizes=(), out_channels=3
    )
    return Network(None, module=module, head="v", schedule=CosineSchedule(), shape=IMAGE).shapes


def sampler_cost(num_steps: int = 4, batch_size: int = 8, channels: int = 32) -> dict[str, float]:
    sampling = Sampling(num_steps)
    noise = jax.ShapeDtypeStruct((batch_size, *IMAGE), jnp.float32)

    def sample(network, noise):
        return sampling.run(network, key=None, z_init=noise)

    return cost(sample, shapes_of(channels), noise)


def update_cost(num_steps: int = 4, batch_size: int = 8, channels: int = 32) -> dict[str, float]:
    """Measures an update of progressive distillation; `num_steps` are the student's steps."""
    return round_cost(shapes_of(channels), num_steps, batch_size)


def blocks_cost(scan_blocks: bool, remat: bool | str, depth: int) -> dict[str, float]:
    """Measures a round of DiT-XL/2 of so many blocks, of 32 images."""
    module = DiT(out_channels=4, features=1152, depth=depth, heads=16, num_labels=1000, remat=remat)
    teacher = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=LATENT)
    return round_cost(teacher.shapes, 4, 32, scan_blocks)


def round_cost(
    teacher: Network, num_steps: int, batch_size: int, scan_blocks: bool = False
) -> dict[str, float]:
    method = Progressive(optimizer=Optimizer(1e-3), start_steps=2 * num_steps, end_steps=num_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def init(key, teacher):
        state = method.init(key, teacher=teacher, num_steps=num_steps)
        return stacked(state) if scan_blocks else state

    state = jax.eval_shape(init, key, teacher)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *teacher.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    return cost(method.step, state, batch, key, donated=(0,))


def slope(rows: list[dict[str, float]], grown: str, figure: str) -> float:
    """Computes the slope between the first and the last row, in logarithms."""
    first, last = rows[0], rows[-1]
    return math.log(last[figure] / first[figure]) / math.log(last[grown] / first[grown])


def main() -> None:
    options = options_of(parser("compilation", __doc__))
    jax.config.update("jax_enable_compilation_cache", False)
    sampler_cost()  # whatever is slow the first time only
    rows, slopes = {}, {}
    measured = {
        "sampler": (sampler_cost, GROWTH),
        "update": (update_cost, GROWTH),
    }
    for scan, remat in itertools.product((False, True), (False, "products", True)):
        name = f"{'scan_blocks' if scan else 'blocks'} / remat={remat}"
        measured[name] = (functools.partial(blocks_cost, scan, remat), DEPTH)
    for name, (of, growth) in measured.items():
        for grown, values in growth.items():
            found = rows[f"{name} / {grown}"] = [{grown: n, **of(**{grown: n})} for n in values]
            for row in found:
                print(
                    f"{name:<28} {grown:<10} {row[grown]:>4}  trace {row['trace_seconds']:6.2f} s  "
                    f"compile {row['compile_seconds']:6.2f} s  {row['bytes'] / 1e6:9.2f} MB",
                    flush=True,
                )
            slopes[f"{name} / {grown}"] = {
                figure: slope(found, grown, figure) for figure in ("bytes", "compile_seconds")
            }
    tell({"slopes": slopes, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
