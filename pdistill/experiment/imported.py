"""A model from elsewhere as a run: what `pdistill.convert` made, or another experiment."""

import dataclasses
from typing import Any, ClassVar, Literal

from jax import Array
from jax.sharding import Mesh

from pdistill.methods.method import Method, Run
from pdistill.model.card import find, made_for, num_steps, read_card
from pdistill.model.store import load_network, network_shapes, read_guided_card
from pdistill.networks import Network
from pdistill.networks.registry import change_network, describe_network
from pdistill.samplers import parse_solver

OWN = ("stage", "checksum", "versions", "format")  # entries of a card that are not taken over


def own_sampling(method: Method) -> tuple[str, tuple[float, float] | None]:
    """The solver and the clipping of a product's own: an imported model's are on its card."""
    if not isinstance(method, Imported):
        return "ddim", (-1.0, 1.0)
    card = read_card(find(method.path))
    return card["solver"], card["clip"] and tuple(card["clip"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported(Method):
    """A model that is copied and measured, in zero updates; later stages start from it.

    Attributes:
      path: a model directory, or a stage's that holds one; "" for the config's `teacher`.
      guide: the directory of another model that guides it, see `Network.guided_by`; "" for the one
        that its card says, if any, or the config's `guide`.
      remat, dtype: rematerialisation and number format of its network, and of students that begin
        as copies of it; None for those of its card. A network that has no such argument, such as a
        U-Net of EDM's, stays as it is.
    """

    path: str = ""
    guide: str = ""
    remat: bool | Literal["products"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    name: ClassVar[str] = "imported"

    def unfold(self, stage: Run, model: Network) -> list[Run]:
        if not self.path:
            raise ValueError(
                "which model? Give --config.teacher=DIR, with a directory that python -m "
                "pdistill.convert has written, or that of a stage, such as runs/digits/teacher"
            )
        steps = stage.measured_at or (num_steps(read_card(find(self.path))),)
        return [dataclasses.replace(stage, measured_at=steps)]

    def made_for(self):
        return made_for(read_card(find(self.path)))

    @property
    def denoises(self):
        card = read_card(find(self.path))
        solver = parse_solver(card["solver"])
        to_data = solver.jumps and solver.gamma == 1  # then it may have learnt only such jumps
        return card.get("denoises", not to_data)

    @property
    def shapes(self) -> Network:
        """The model's network, of `jax.ShapeDtypeStruct`; raises as `network_shapes`."""
        return self._with_arguments(network_shapes(self.path, guide=self.guide))

    def load(self, mesh: Mesh) -> Network:
        """Loads the model's network onto a run's devices; raises as `load_network`."""
        return self._with_arguments(load_network(self.path, mesh, guide=self.guide))

    def _with_arguments(self, network: Network) -> Network:
        """The network with `remat` and `dtype`, as far as it has them."""
        given = {"remat": self.remat, "dtype": self.dtype}
        arguments = {
            name: value
            for name, value in given.items()
            if value is not None and hasattr(network.module, name)
        }
        return network.replace(module=change_network(network.module, arguments))

    def init(self, key: Array, loaded: Any) -> Network:
        """The network that `load` has loaded; not annotated as one that an earlier stage makes."""
        del key
        return loaded

    def product(self, state: Network) -> Network:
        return state

    def card(self, state: Network) -> dict[str, Any]:
        card = read_guided_card(self.path, self.guide)
        if guide := card.get("guide"):  # whose path may be from there, and is not copied
            path = (find(self.path) / guide["path"]).resolve()
            card["guide"] = guide | {"path": str(path)}
        card = {key: value for key, value in card.items() if key not in OWN}
        return card | {"source": self.path, "network": describe_network(state.module)}
