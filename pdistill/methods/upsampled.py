"""A baseline of higher resolution: the samples of a model, enlarged."""

import dataclasses

from pdistill.methods.stage import Round, Stage, Untrained, find_parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsampledStage(Stage):
    """Config of the stage: bicubic interpolation of an earlier model's samples to `resolution`.

    Attributes:
      teacher: name of the stage or round. num_steps: step counts it is measured at.
    """

    teacher: str
    num_steps: tuple[int, ...]

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher, guided=True, one_step=True)
        factor, rest = divmod(image_shape[0], parent.image_shape[0])
        if rest or factor < 2:
            raise ValueError(
                f"{parent.name!r} makes images of {parent.image_shape[0]} pixels, which cannot be "
                f"enlarged to {image_shape[0]} by a whole number"
            )
        return [
            Round(
                name=self.name,
                method_name="upsampled",
                method=Untrained(parent.method.diffuser),
                init=None,
                loop=None,
                num_steps=self.num_steps,
                solver=parent.solver,
                guidance=parent.guidance,
                parent=parent.name,
                upsampled=factor,
                noise_shape=parent.noise_shape,
            )
        ]
