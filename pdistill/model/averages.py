"""Averages of other lengths, made of a finished run's snapshots (Karras et al. 2024, section 3)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pdistill.model.card import ModelError, read_card
from pdistill.model.model import Model
from pdistill.model.store import load
from pdistill.runtime.temporary import TEMPORARY

AVERAGES = "averages"  # folder of snapshots, <updates>/<width>/, in a run's directory
LARGEST_ERROR = 0.1  # of a profile


def posthoc_average(run: str | Path, width: float) -> Model:
    """Makes the average of another width, at the last update, of a run's snapshots.

    Its parameters are the snapshots' with the weights of `power_ema.fit`, added in double
    precision. The card has "average": {"width", "updates", "snapshots": how many were added,
    "error": of the fit}.

    Args:
      run: a run's directory, trained with `optimizer.ema_widths` and `loop.snapshot_every`.
      width: relative standard deviation, above 0 and at most 0.2886.

    Raises:
      ModelError: there are no snapshots, too few for this width, or they cannot be read.
      ValueError: there is no such width.
    """
    # A model comes without what trains.
    from pdistill.training.power_ema import Profile, check_width, fit

    check_width(width)
    folder = Path(run) / AVERAGES
    found = sorted(path.parent for path in folder.glob("*/*/model.json"))
    cards = {path: read_card(path) for path in found if not path.match(f"*{TEMPORARY}")}
    if not cards:
        raise ModelError(
            f"there are no snapshots in {folder}; train with optimizer.ema_widths and "
            "loop.snapshot_every"
        )
    try:
        # From the first update to the last, whose card the average has.
        in_order = sorted(cards, key=lambda path: int(cards[path]["average"]["updates"]))
        averages = [cards[path]["average"] for path in in_order]
        profiles = [Profile(float(a["width"]), int(a["updates"])) for a in averages]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"a model in {folder} is no snapshot of an average: {error!r}") from error
    last = max(profile.updates for profile in profiles)
    weights, error = fit(profiles, Profile(width, last))
    if error > LARGEST_ERROR:
        stored = ", ".join(f"{w:g}" for w in sorted({profile.width for profile in profiles}))
        raise ModelError(
            f"no sum of the {len(profiles)} snapshots in {folder} is near an average of width "
            f"{width:g}: the nearest is {error:.0%} off; give a width nearer to {stored}, or train "
            "with a smaller loop.snapshot_every"
        )
    total: list[np.ndarray] = []
    for directory, weight in zip(in_order, weights, strict=True):
        model = load(directory)
        parts = [weight * np.asarray(a, np.float64) for a in jax.tree.leaves(model.network.params)]
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
    leaves, tree = jax.tree.flatten(model.network.params)
    params = tree.unflatten(jnp.asarray(a, b.dtype) for a, b in zip(total, leaves, strict=True))
    average = {"width": width, "updates": last, "snapshots": len(profiles), "error": error}
    card = model.card | {"average": average}
    for name in ("codec", "text"):  # the average may be saved anywhere
        if part := card.get(name):
            card[name] = part | {"path": str((directory / part["path"]).resolve())}
    return Model(model.network.replace(params=params), card, model.prompts)
