"""Cards of the models that a run exports."""

from pathlib import Path
from typing import Any

import jax

from pdistill import model as models
from pdistill.data import Dataset
from pdistill.experiment.plan import Planned
from pdistill.networks import Network, Routed
from pdistill.samplers import parse_solver
from pdistill.training.learner import learners


def product_card(
    planned: Planned, network: Network, *, data: Dataset, clip: tuple[float, float] | None
) -> dict[str, Any]:
    """Says how a run's network is sampled, and on what it was made.

    Args:
      data: the training images. clip: range of x_hat in sampling.
    """
    names = {"label_names": data.label_names} if network.num_labels and data.label_names else {}
    if planned.trains and network.guidance:  # also of a student that always has its label
        names["knows_without"] = bool(getattr(planned.run.method, "label_dropout", 0))
    sampling = models.describe_sampling(network)
    routed = isinstance(network.module, Routed)
    return {
        "kind": "routed" if routed else parse_solver(sampling["solver"]).model,
        **sampling,
        "num_steps": planned.measured_at[0],
        "made_for": planned.made_for,
        "denoises": planned.run.method.denoises,
        "clip": clip,
        "num_labels": network.num_labels,
        **names,
        "data": {"name": data.name, **shapes(planned, network), "scale": "image / 127.5 - 1"},
        "method": planned.run.method.name,
        "parent": planned.parent,
        "trainable_fraction": trainable_fraction(planned),
    }


def trainable_fraction(planned: Planned) -> float:
    """Share of the parameters that learn, of the first learner whose network is like the product.

    1 for a model without such.
    """
    wanted = [leaf.shape for leaf in jax.tree.leaves(planned.network.params)]
    for learner in learners(planned.state):
        if [leaf.shape for leaf in jax.tree.leaves(learner.network)] == wanted:
            return learner.trainable_fraction
    return 1.0


def shapes(planned: Planned, network: Network) -> dict[str, Any]:
    """Shapes of an image and of the noise that it is made from."""
    return {"shape": planned.image_shape, "noise_shape": network.shape}


def inherited(planned: Planned, workdir: Path) -> dict[str, Any]:
    """Finds what a model that is not trained itself has from its parent's card."""
    if planned.trains:
        return {}
    if planned.parent is None:
        return {"train_steps": 0, "images_seen": 0}
    card = models.read_card(workdir / planned.parent / "model")
    names = ("train_steps", "images_seen", "selected_step", "guide", "knows_without")
    return {name: card[name] for name in names if name in card}


def length(planned: Planned, updates: int | None = None) -> dict[str, int]:
    """Updates and images of a run, all or so many; {} for one that does not train."""
    if not planned.trains:
        return {}
    loop = planned.run.loop
    updates = loop.num_updates if updates is None else updates
    return {"train_steps": updates, "images_seen": updates * loop.batch_size}


def of_diverged(planned: Planned, updates: int) -> dict[str, Any]:
    """Entries for the best model of a run that diverged after so many updates."""
    loop = planned.run.loop
    settings = {"num_updates": loop.num_updates, "max_skipped": loop.max_skipped}
    return length(planned, updates) | {"diverged": settings}


def updates_of(planned: Planned, directory: Path, used: bool) -> int | None:
    """Updates of the model in `directory` if its run has nothing left to train; else None.

    A run that diverged goes on with more updates or a larger `max_skipped`, but where its best
    model is `used`: others have started from it.
    """
    if not directory.exists():
        return None
    card, loop = models.read_card(directory, codec=planned.makes_codec), planned.run.loop
    found, before = card["train_steps"], card.get("diverged")
    same = before and before["num_updates"] == loop.num_updates
    ended = used or (same and loop.max_skipped <= before["max_skipped"])
    return found if (ended if before else found == loop.num_updates) else None
