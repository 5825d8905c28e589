"""A stage that is a model from elsewhere: what `pdistill.convert` made, or another run."""

import dataclasses
import math

from pdistill.methods import Round, Stage, Untrained
from pdistill.model import ModelError, build_diffuser, find, noise_shape, num_steps, read_card
from pdistill.samplers import Stochastic, parse_solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedStage(Stage):
    """Config of the stage: a model is copied and measured; later stages start from it.

    Attributes:
      path: of a model directory, or of a stage's that holds one.
      num_steps: step counts it is measured at; those it is made for by default.
    """

    path: str
    num_steps: tuple[int, ...] = ()

    def rounds(self, diffuser, image_shape, earlier):
        try:
            card = read_card(find(self.path))
            shape, imported = tuple(card["data"]["shape"]), build_diffuser(card)
        except (KeyError, TypeError) as error:
            raise ModelError(f"{self.path} has a damaged model.json: {error!r}") from error
        if shape != tuple(image_shape):
            raise ValueError(f"{self.path} makes images of {shape}, the data's are {image_shape}")
        solver = parse_solver(card["solver"])
        own = solver.model != "denoiser" or isinstance(solver, Stochastic)  # of no other solver
        guidance = card["guidance"]
        return [
            Round(
                name=self.name,
                method_name=card["method"],
                method=Untrained(imported),
                init=None,
                loop=None,
                num_steps=self.num_steps or (num_steps(card),),
                solver=card["solver"] if own else None,
                guidance=guidance and tuple(math.inf if w is None else w for w in guidance),
                imported=self.path,
                upsampled=card.get("upsampled", 1),
                noise_shape=noise_shape(card),
            )
        ]
