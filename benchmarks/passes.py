"""How often a block's programs for a TPU pass over its activations, forward and in a gradient.

    pip install libtpu  # the one of jax's extra "tpu"
    python -m benchmarks.passes

No TPU is needed: XLA compiles for a v5e that is not there. What a network of four blocks reads and
writes beyond one of two, divided by two, is that of a block: for a DiT-B/2 on latents, and for a
U-Net's block on the way down with one on the way up, of 128 channels and 32x32 pixels, both in
bfloat16 and batches of 32. The unit is an activation: a value for each token or pixel and channel,
in two bytes. Arrays of half of that and more count by their size, kernels of layers too; transfers
to the TPU's fast memory do not. `bytes` are by XLA's own count, in the same unit and with such
transfers; `temporary` are the MB that the larger network's program needs.
"""

import json
import math
import os
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.common import described
from pdistill.networks import DiT, UNet

BATCH, FEW, MANY = 32, 2, 4
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
MOVED = (  # not computed: names, and transfers between memories
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "custom-call",
    "copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done",
)  # fmt: skip
# A machine with one v5e, for libtpu, which would ask the cloud for it otherwise.
V5E = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def transformer(depth: int) -> tuple[nn.Module, tuple[int, int, int], int]:
    """A DiT-B/2 of this depth, the shape of its latents, and the values of an activation."""
    module = DiT(patch=2, features=768, depth=depth, heads=12, out_channels=4, dtype="bfloat16")
    return module, (32, 32, 4), BATCH * 256 * 768


def unet(blocks: int) -> tuple[nn.Module, tuple[int, int, int], int]:
    module = UNet(
        channels=128, multipliers=(1,), blocks=blocks, attention_sizes=(), out_channels=3,
        dtype="bfloat16",
    )  # fmt: skip
    return module, (32, 32, 3), BATCH * 32 * 32 * 128


def compiled(module: nn.Module, image: tuple[int, int, int], gradient: bool) -> jax.stages.Compiled:
    """Compiles the network, or the gradient of its mean square, for a TPU v5e."""
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]

    def placed(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=SingleDeviceSharding(device))

    key = jax.eval_shape(lambda: jax.random.key(0))
    z, logsnr = placed((BATCH, *image)), placed((BATCH,))
    shapes = jax.eval_shape(module.init, key, z, logsnr)
    parameters = jax.tree.map(lambda a: placed(a.shape), shapes)

    def loss(parameters, z, logsnr):
        return jnp.mean(module.apply(parameters, z, logsnr) ** 2)

    function = jax.grad(loss) if gradient else module.apply
    return jax.jit(function).lower(parameters, z, logsnr).compile()


def passes(program: str, activation: int) -> dict[str, float]:
    """Counts what a program's instructions read and write, in activations, by number format."""
    counted, known = dict.fromkeys(("f32", "bf16"), 0.0), {}
    for line in program[program.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        known[name] = arrays(shape)
        if operation in MOVED:
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        for number, size in [*known[name], *(a for one in operands for a in known.get(one, []))]:
            if size >= activation and number in counted:  # half of its bytes
                counted[number] += size / (2 * activation)
    return counted


def arrays(shape: str) -> list[tuple[str, int]]:
    """Number format and bytes of each array of an instruction's shape."""
    return [
        (number, SIZES[number] * math.prod(int(n) for n in sizes.split(",") if n))
        for number, sizes in re.findall(rf"({'|'.join(SIZES)})\[([\d,]*)\]", shape)
    ]


def of_a_block(make: Callable, gradient: bool) -> dict[str, float]:
    """What a block adds to a network's program."""
    rows = []
    for blocks in (FEW, MANY):
        module, image, activation = make(blocks)
        program = compiled(module, image, gradient)
        moved = program.cost_analysis()["bytes accessed"] / (2 * activation)
        rows.append({**passes(program.as_text(), activation), "bytes": moved})
    few, many = rows
    temporary = program.memory_analysis().temp_size_in_bytes / 2**20
    block = {name: (many[name] - few[name]) / (MANY - FEW) for name in many}
    return {**block, "temporary": temporary}


def main() -> None:
    described("passes", __doc__).parse_args()
    for name, value in V5E.items():
        os.environ.setdefault(name, value)
    for make in (transformer, unet):
        for gradient in (False, True):
            row = {"network": make.__name__, "gradient": gradient, **of_a_block(make, gradient)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
