"""Plans of a teacher and other stages, as shapes."""

from pdistill.experiment.config import DataConfig, ExperimentConfig, ModelConfig, Named
from pdistill.experiment.plan import plan
from pdistill.methods import Run, Teacher
from pdistill.networks import describe_network
from pdistill.training import LoopConfig, Optimizer

LOOP = LoopConfig(10, 16, log_every=10, save_every=10)
TEACHER = Run(
    name="teacher", method=Teacher(optimizer=Optimizer(1e-3)), loop=LOOP, measured_at=(4,)
)


def stage(method, name="", **changes):
    """A stage of this method, which learns from the teacher unless `given` says otherwise."""
    settings = {"name": name or method.name, "method": method, "given": {"teacher": "teacher"}}
    return Run(**settings | {"loop": LOOP} | changes)


def plan_of(module, *stages, image_shape=(8, 8, 1)):
    """name -> Planned of stages of a model of this module, on the cosine schedule."""
    described = describe_network(module)
    arguments = {k: v for k, v in described["arguments"].items() if k != "out_channels"}
    model = ModelConfig(Named(described["name"], arguments), Named("cosine", {}))
    return plan(ExperimentConfig(DataConfig("digits"), stages, model), image_shape)
