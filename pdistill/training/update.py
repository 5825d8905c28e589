"""The update of a method, compiled: one, or several in one dispatch."""

import functools
import operator
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.data import make_batch
from pdistill.runtime.mesh import batches_over, param_sharding, replicated, to_device
from pdistill.training.learner import Metrics
from pdistill.training.metrics import RESERVED
from pdistill.training.offload import into_device_memory
from pdistill.training.state import TrainState, take_frozen

# Names of the losses that an update has, see `Steppable.parts`.
Parts = tuple[str, ...]


class Steppable(Protocol):
    """The loop's view of a method: a frozen, hashable description, a static argument of jit."""

    def step(self, state: Any, batch: dict[str, Array], key: Array) -> tuple[Any, Metrics]:
        """One update: a state of the same form and shapes, and metrics.

        Fields that are `frozen` are returned as they are, which a step that is itself within
        `jax.jit` does not do: the loop compiles it. Metrics are scalars, with other names
        than `metrics.RESERVED`; at least one is called "...grad_norm", and "grad_norm" is the one
        that `LoopConfig.max_grad_norm` bounds. A method whose updates are not all alike also takes
        `parts`.
        """
        ...

    def parts(self, step: int) -> Parts:
        """Names of the losses that update number `step` has; () if all updates are alike."""
        ...

    def advice(self, means: dict[str, float]) -> str | None:
        """A warning about the metrics' means over an interval of updates, and what may help."""
        ...


def init_state(init: Callable[..., Any], mesh: Mesh, *args: Any) -> Any:
    """Shapes, then shardings, then `jit(init)`: no array is ever in the wrong place.

    A field of `init(*args)` that is not `frozen` must not be an argument as it is, or donation
    would delete it.
    """
    shardings = param_sharding(jax.eval_shape(init, *args), mesh)
    return jax.jit(init, out_shardings=shardings)(*args)


def start_of(state: Any, mesh: Mesh) -> TrainState:
    """The loop's state before the first update of a method's state without its frozen fields."""
    step, skipped = (to_device(np.zeros((), np.int32), replicated(mesh)) for _ in range(2))
    return TrainState(step, skipped, state)


@functools.lru_cache(maxsize=8)
def compile_update(
    method: Steppable,
    mesh: Mesh,
    flip: bool,
    factor: int = 1,
    max_grad_norm: float = 0.0,
    offload: bool = False,
    codec: Any = None,
) -> Callable:
    """update(state, frozen, resident, raw, key, which, kinds) -> (state, metrics), jitted.

    It does as many updates as `raw` has rows, in a scan if they are several. The state, a
    `TrainState`, is donated. `kinds` (static) are the parts that updates may have; `which`
    [substeps] says which of them each has. Metrics are {"values": {name: [substeps]}, "had":
    whether the update had it, "kept": whether it was kept, "skipped": updates left out so far}.
    Equal methods share it, so runs that differ only in their states compile once.
    """

    def substep(state: TrainState, frozen, resident, raw, key, which, kinds):
        augment_key, method_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = make_batch(
            resident, raw, augment_key, flip=flip, factor=factor, columns=method.columns,
            codec=codec,
        )  # fmt: skip
        branches = [functools.partial(_step, method, parts, max_grad_norm) for parts in kinds]
        inputs = state.method.replace(**frozen), batch, method_key
        new, values, had, kept = _switch(branches, which, *inputs)
        skipped = state.skipped + jnp.where(kept, 0, 1)
        state = TrainState(state.step + 1, skipped, new.replace(**dict.fromkeys(frozen)))
        return state, {"values": values, "had": had, "kept": kept, "skipped": skipped}

    def update(state, frozen, resident, raw, key, which, kinds):
        if offload:
            frozen = into_device_memory(frozen)

        def body(state, inputs):
            raw, which = inputs
            with batches_over(mesh):
                return substep(state, frozen, resident, raw, key, which, kinds)

        if which.shape[0] == 1:
            # On a CPU a convolution's gradient is ten times slower in a loop or a condition.
            state, metrics = body(state, jax.tree.map(lambda a: a[0], (raw, which)))
            metrics = jax.tree.map(lambda a: a[None], metrics)
        else:
            state, metrics = jax.lax.scan(body, state, (raw, which))
        return jax.lax.with_sharding_constraint(state, param_sharding(state, mesh)), metrics

    return jax.jit(update, donate_argnums=0, static_argnames="kinds")


def _step(method: Steppable, parts: Parts, max_grad_norm: float, state, batch, key):
    """One update with these parts: the state (the old one if it is left out), metrics, if kept."""
    told = {"parts": parts} if parts else {}
    result = method.step(state, batch, key, **told)
    if wrong := _wrong(result, state, max_grad_norm if not parts else 0.0):
        raise TypeError(f"{type(method).__name__}.step must return {wrong}")
    new, values = result
    # Not by the new parameters' norm, for which all of them would have to be there first: they are
    # finite if the gradient is.
    judged = [value for name, value in values.items() if not name.endswith("param_norm")]
    kept = jnp.stack([jnp.isfinite(value) for value in judged]).all()
    if max_grad_norm and "grad_norm" in values:
        kept &= values["grad_norm"] <= max_grad_norm

    def keep(new: Array, old: Array) -> Array:  # in its number format, whatever that of the step
        return jnp.where(kept, new.astype(old.dtype), old)

    return jax.tree.map(keep, new, state), values, kept


def _wrong(result: Any, state: Any, max_grad_norm: float) -> str:
    """Finds what a step's result has wrong, by `Steppable.step`, at trace time; "" for nothing.

    Args:
      max_grad_norm: the bound on "grad_norm", which must then be there; 0 for none.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return f"the state and a dictionary of metrics; it returns {type(result).__name__}"
    new, values = result
    before, after = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (state, new))
    )
    for path in before | after:
        was, found = before.get(path, "not there"), after.get(path, "not there")
        if was != found:
            return f"a state like the one it is given; state{path} was {was} and is {found}"
    if jax.tree.structure(new) != jax.tree.structure(state):
        return "a state like the one it is given; fields that are not arrays differ"
    for name, held in take_frozen(state)[1].items():
        if any(map(operator.is_not, jax.tree.leaves(getattr(new, name)), jax.tree.leaves(held))):
            return (
                f"frozen fields as they are, and it changes {name}: leave frozen() out there; or, "
                "if it does not, return state.replace(...) of the state that it is given, outside "
                "of any jax.jit"
            )
    norms = [name for name in values if name.endswith("grad_norm")]
    names = ", ".join(values) or "none"
    for name, value in values.items():
        if name in RESERVED:
            return f"metrics of other names than {', '.join(RESERVED)}, which the log has itself"
        if jnp.shape(value) != ():
            return f"metrics that are scalars; {name} is {jnp.shape(value)}"
    if not norms:
        return f'a gradient\'s norm, "grad_norm" or "..._grad_norm"; its metrics are {names}'
    if max_grad_norm and "grad_norm" not in norms:
        return f'"grad_norm", which loop.max_grad_norm is a bound on; its metrics are {names}'
    return ""


def _switch(branches: list[Callable], which: Array, *inputs: Any):
    """The branch number `which`, of updates with different metrics: zeros for those it has not.

    Returns:
      The state, the metrics, whether the branch has each of them, and whether the update is kept.
    """
    if len(branches) == 1:
        new, values, kept = branches[0](*inputs)
        return new, values, {name: jnp.array(True) for name in values}, kept
    shapes = [jax.eval_shape(branch, *inputs)[1] for branch in branches]
    dtypes = {name: shape.dtype for found in shapes for name, shape in found.items()}

    def padded(branch: Callable) -> Callable:
        def run(*inputs: Any):
            new, values, kept = branch(*inputs)
            had = {name: jnp.array(name in values) for name in dtypes}
            whole = {name: values.get(name, jnp.zeros((), dtype)) for name, dtype in dtypes.items()}
            return new, whole, had, kept

        return run

    return jax.lax.switch(which, [padded(branch) for branch in branches], *inputs)


def kinds_of(method: Steppable, steps: range, substeps: int) -> Callable[[int], dict[str, Any]]:
    """step -> {"which", "kinds"} of the dispatch that begins with update number `step`.

    A dispatch of one update is compiled for its own parts; one of several for all parts that any
    update of `steps` has.
    """
    known = tuple(dict.fromkeys(method.parts(step) for step in steps)) if substeps > 1 else ()

    def of(step: int) -> dict[str, Any]:
        parts = [method.parts(step + i) for i in range(substeps)]
        kinds = known or (parts[0],)
        return {"which": np.array([kinds.index(p) for p in parts], np.int32), "kinds": kinds}

    return of
