"""A learner: a network under training, with its averages, its optimizer and a count of its own."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from pdistill.networks import Network
from pdistill.training.freezing import count, merge, partition
from pdistill.training.optimizers import Optimizer
from pdistill.training.power_ema import step_size

Metrics = dict[str, Array]


class Learner(struct.PyTreeNode):
    """One network under training. Its own count of updates anneals it.

    Attributes:
      network: a `Network` or another pytree; with `fixed` it has `params`, a nested dictionary.
      average: moving average of what learns, or a tuple of those of `optimizer.ema_widths`; None
        for a network that nobody samples.
      opt_state: the optimizer's.
      count: updates so far, int32.
      carried: values that updates carry on, such as the vectors of spectral norm, or an average
        that targets are made of.
      optimizer: its optimizer.
      fixed: patterns of the parameters that stay as they are, as in `partition`.
    """

    network: Any
    average: Any
    opt_state: Any
    count: Array
    carried: Any = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = struct.field(pytree_node=False, default=None)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def of(
        cls,
        network: Any,
        optimizer: Optimizer,
        *,
        averaged: bool = True,
        whole_batches: bool = False,
        carried: Any = None,
        fixed: tuple[str, ...] = (),
    ) -> "Learner":
        """A learner at its start, of copies of the network's parameters.

        Args:
          averaged: whether it keeps a moving average.
          whole_batches: whether its losses are of a batch as a whole, not means over rows.

        Raises:
          ValueError: settings of the optimizer that would be ignored; a pattern without parameters;
            a network with a learnt variance.
        """
        if whole_batches and optimizer.microbatches > 1:
            raise ValueError("its losses are of a whole batch: leave optimizer.microbatches at 1")
        if getattr(network, "head", "") == "eps_variance":
            raise ValueError(
                "head 'eps_variance' has a learnt variance, which nothing here trains: take 'eps', "
                "or convert the network without --variance"
            )
        if not averaged and (optimizer.ema_decay or optimizer.ema_ramp or optimizer.ema_widths):
            raise ValueError(
                "a network without a moving average: leave its optimizer's ema_decay and ema_ramp "
                "at 0, and its ema_widths empty"
            )
        network = _copy(network)
        learning = _learning(network, fixed)
        average = _copy(learning) if averaged and not optimizer.ema_widths else None
        if optimizer.ema_widths:
            average = tuple(_copy(learning) for _ in optimizer.ema_widths)
        return cls(
            network=network,
            average=average,
            opt_state=_opt_state(dataclasses.replace(optimizer, num_updates=0), learning),
            count=jnp.zeros((), jnp.int32),
            carried=carried or {},
            optimizer=optimizer,
            fixed=fixed,
        )

    def update(self, grads: Any, num_updates: Array | None = None) -> tuple["Learner", Metrics]:
        """One optimizer update and one step of each moving average.

        average <- d average + (1 - d) parameters with d = `optimizer.ema_decay_at(count)`, or
        1 - d = `power_ema.step_size` of a width.

        Args:
          grads: like `network`.
          num_updates: length that the rate is annealed over, if it is traced.

        Returns:
          The learner and {"grad_norm", "param_norm"} of the parameters that learn.
        """
        chex.assert_trees_all_equal_shapes(grads, self.network)
        learning, grads = (_learning(tree, self.fixed) for tree in (self.network, grads))
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it; callers may be strict
            transform = self.optimizer.transform(num_updates)
            updates, opt_state = transform.update(grads, self.opt_state, learning)
        learning = optax.apply_updates(learning, updates)
        average = self.average
        if self.optimizer.ema_widths:
            average = tuple(
                _moved(old, learning, step_size(width, self.count + 1))
                for old, width in zip(average, self.optimizer.ema_widths, strict=True)
            )
        elif average is not None:
            decay = self.optimizer.ema_decay_at(self.count)
            average = optax.incremental_update(learning, average, 1 - decay)
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(learning)}
        learner = self.replace(
            network=self._with(learning),
            average=average,
            opt_state=opt_state,
            count=self.count + 1,
        )
        return learner, norms

    @property
    def averaged(self) -> Network:
        """The network with its averaged parameters, the first of several: what to sample with."""
        return self._with(self.average[0] if self.optimizer.ema_widths else self.average)

    @property
    def trainable_fraction(self) -> float:
        """Share of the parameters that learn."""
        return count(_learning(self.network, self.fixed)) / count(self.network)

    def _with(self, learning: Any) -> Any:
        """The network with other values for what learns."""
        if not self.fixed:
            return learning
        _, held = partition(self.network.params, self.fixed)
        return self.network.replace(params=merge(learning, held))


def learners(state: Any) -> list[Learner]:
    """The learners in a method's state, in order."""
    return [part for part in jax.tree.leaves(state, is_leaf=_is_learner) if _is_learner(part)]


def learner_with_widths(state: Any) -> Learner | None:
    """Finds the learner with `ema_widths` in a method's state, if there is one.

    Raises:
      ValueError: there are several, of which it is not clear whose averages the product is.
    """
    found = [learner for learner in learners(state) if _has_widths(learner)]
    if len(found) > 1:
        raise ValueError(f"ema_widths may be set for one optimizer of a method; got {len(found)}")
    return found[0] if found else None


def with_average(state: Any, i: int) -> Any:
    """A method's state in which average number i of the learner with `ema_widths` is the first."""
    return jax.tree.map(
        lambda part: part.replace(average=part.average[i:]) if _has_widths(part) else part,
        state,
        is_leaf=_is_learner,
    )


def _is_learner(part: Any) -> bool:
    return isinstance(part, Learner)


def _has_widths(part: Any) -> bool:
    return _is_learner(part) and bool(part.optimizer.ema_widths)


def _moved(old: Any, new: Any, step: Array) -> Any:
    """An average, a fraction `step` of the way to new parameters."""
    return jax.tree.map(lambda a, b: a + step.astype(a.dtype) * (b - a), old, new)


# Traced once for all stages of equal networks: planning a run of many rounds was mostly this.
@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@functools.partial(jax.jit, static_argnums=0)
def _opt_state(optimizer: Optimizer, learning: Any) -> Any:
    """The optimizer's state before the first update, whatever the number of updates."""
    return optimizer.transform().init(learning)


def _learning(network: Any, fixed: tuple[str, ...]) -> Any:
    """The part of a network, or of a gradient like it, that learns: all if nothing is fixed."""
    return partition(network.params, fixed)[0] if fixed else network
