"""Distribution matching on a ring of eight Gaussians in the plane: modes and energy distance.

    python -m benchmarks.ring --out=benchmarks/results/ring.json

Radius 1, standard deviation 0.08. The teacher is an MLP of 6,000 updates; a generator is its copy,
called once at the largest noise, after 1,500 updates of batch 256. A sample is "within" if it is
at most four standard deviations from a mode, a mode is found if a hundredth of the samples is.
The energy distance is 2 E|x - y| - E|x - x'| - E|y - y'| over all pairs of 5,000 samples of each
(Szekely & Rizzo 2013), so that two sets of data have about 0.0005.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy.spatial.distance import cdist

from pdistill import samplers
from pdistill.diffusion import KarrasSchedule, LinearLogsnrSchedule
from pdistill.methods.columns import Pairs
from pdistill.methods.dmd import Dmd
from pdistill.methods.teacher import Teacher
from pdistill.networks import Network
from pdistill.training import Optimizer

STD, MODES, SAMPLES = 0.08, 8, 5000
CENTRES = np.array([[np.cos(a), np.sin(a)] for a in 2 * np.pi * np.arange(MODES) / MODES])
ADAM = Optimizer(5e-4, b1=0.0, clip_norm=0.0, ema_decay=0.99)
UPDATES = 1500
VARIANTS = {
    "K = 1": {"fake_updates": 1},
    "K = 2": {"fake_updates": 2},
    "K = 5": {"fake_updates": 5},
    "K = 10": {"fake_updates": 10},
    "K = 1, regression 0.25": {"fake_updates": 1, "regression": 0.25},
    "K = 5, no normaliser": {"fake_updates": 5, "normaliser": "none"},
    "K = 5, annealed": {"fake_updates": 5, "anneal": "linear"},
}


class Mlp(nn.Module):
    """A network that predicts v of points z [B, 2]."""

    @nn.compact
    def __call__(self, z, logsnr, told=None, *, train=False):
        waves = logsnr[:, None] / 9 * 2.0 ** jnp.arange(4)
        h = jnp.concatenate([z, jnp.sin(waves), jnp.cos(waves)], axis=1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(2)(h)


BLANK = Network(None, module=Mlp(), head="v", schedule=LinearLogsnrSchedule(-9.0, 9.0), shape=(2,))
PAIRS = 20_000


def method_of(fake_updates: int, anneal: str = "constant", **settings: Any) -> Dmd:
    """The method of one of VARIANTS."""
    optimizer = dataclasses.replace(ADAM, anneal=anneal, num_updates=UPDATES)
    return Dmd(
        generated_at=(-9.0,),
        noise=KarrasSchedule(data_std=0.7),  # that of the ring, a coordinate
        optimizer=optimizer,
        fake_optimizer=dataclasses.replace(
            optimizer, num_updates=fake_updates * UPDATES, ema_decay=0.0
        ),
        fake_updates=fake_updates,
        pairs=Pairs(PAIRS) if settings.get("regression") else None,
        **settings,
    )


def ring(key: jax.Array, num: int) -> jax.Array:
    mode_key, noise_key = jax.random.split(key)
    modes = jnp.asarray(CENTRES, jnp.float32)[jax.random.randint(mode_key, (num,), 0, MODES)]
    return modes + STD * jax.random.normal(noise_key, (num, 2))


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(method, state, key, updates, pairs=None):
    """The state after so many updates; each draws its own of all pairs."""
    period = getattr(method, "fake_updates", 1)

    def update(state, step):
        data_key, pair_key, step_key = jax.random.split(jax.random.fold_in(key, step), 3)
        batch = {"image": ring(data_key, 256)}
        if pairs:
            rows = jax.random.randint(pair_key, (256,), 0, PAIRS)
            batch["pairs"] = {name: a[rows] for name, a in pairs.items()} | {"label": None}

        def with_parts(parts):
            more = {"parts": parts} if parts else {}
            return lambda state: method.step(state, batch, step_key, **more)[0]

        first, other = method.parts(0), method.parts(1)
        if first == other or period == 1:
            return with_parts(first)(state), None
        return jax.lax.cond(step % period == 0, with_parts(first), with_parts(other), state), None

    return jax.lax.scan(update, state, jnp.arange(updates))[0]


def pairs_of(teacher: Network, key: jax.Array) -> dict[str, jax.Array]:
    """Noise, and what 18 of Heun's steps make of it."""
    noise = jax.random.normal(key, (PAIRS, 2))
    images = samplers.sample(
        teacher.denoiser(), None, z_init=noise, schedule=teacher.schedule, num_steps=18,
        solver=samplers.Heun(),
    )  # fmt: skip
    return {"noise": noise, "image": images}


def measure(samples: np.ndarray) -> dict[str, float]:
    data = np.asarray(ring(jax.random.key(99), SAMPLES))
    distances = cdist(samples, CENTRES)
    within = distances.min(1) < 4 * STD
    shares = np.bincount(distances.argmin(1)[within], minlength=MODES) / len(samples)
    energy = 2 * cdist(samples, data).mean() - cdist(samples, samples).mean()
    return {
        "within": float(within.mean()),
        "modes": int((shares > 0.01).sum()),
        "energy_distance": float(energy - cdist(data, data).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    teacher_key, train_key, method_key, sample_key = jax.random.split(
        jax.random.key(options.seed), 4
    )
    annealed = Optimizer(1e-3, anneal="cosine", num_updates=6000, ema_decay=0.99)
    method = Teacher(optimizer=annealed, stratified=True)
    state = train(method, method.init(teacher_key, model=BLANK), train_key, 6000)
    teacher = method.product(state)

    def generate(network, num_steps=1):
        sample = functools.partial(samplers.sample, schedule=BLANK.schedule, num_steps=num_steps)
        return np.asarray(sample(network.denoiser(), sample_key, (SAMPLES, 2)))

    sets = {
        "data": np.asarray(ring(jax.random.key(98), SAMPLES)),
        "teacher, 32 steps": generate(teacher, 32),
        "teacher, 1 step": generate(teacher),
    }
    rows = [{"variant": name} | measure(samples) for name, samples in sets.items()]
    pairs = pairs_of(teacher, jax.random.key(options.seed + 1))
    for name, settings in VARIANTS.items():
        clock = time.monotonic()
        method = method_of(**settings)
        state = jax.block_until_ready(
            train(
                method,
                method.init(method_key, teacher=teacher),
                method_key,
                method.fake_updates * UPDATES,
                pairs if method.regression else None,
            )
        )
        seconds = time.monotonic() - clock
        found = measure(generate(method.product(state)))
        rows.append({"variant": name} | found | {"seconds": seconds})
    for row in rows:
        print(
            f"{row['variant']:<24} within {row['within']:.3f}  modes {row['modes']}  "
            f"energy distance {row['energy_distance']:.4f}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
