"""Multi-student distillation (MSD, Song et al. 2024): one generator for each part of the labels."""

import dataclasses

from pdistill.methods.partition import by_blocks, by_lists, routes
from pdistill.methods.score_matching import ScoreMatchingStage
from pdistill.methods.stage import GeneratorStage, Round, Stage, Untrained
from pdistill.networks import Routed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiStudentStage(Stage):
    """Config of the stage: for each part of the labels a student, and the model that they make.

    Its rounds are <name>/<student.name>_0 and so on, each after <name>/<score_matching.name>_0 if
    there is one, and <name>, the model of all students.

    Attributes:
      parts: of consecutive labels, or 0 for those in `lists`.
      lists: labels of each part, such as `python -m pdistill.partition` finds.
      student: a stage that makes a generator; its name and labels are changed.
      score_matching: what each student starts from, if its network is not the teacher's.
    """

    student: Stage
    score_matching: ScoreMatchingStage | None = None
    parts: int = 0
    lists: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        if not isinstance(self.student, GeneratorStage):
            raise ValueError("student must be a stage that makes a generator, such as dmd or gan")
        if self.student.select:
            raise ValueError("student: leave select out; a part is not measured by itself")
        if bool(self.parts) == bool(self.lists):
            raise ValueError("give parts or lists")

    def rounds(self, diffuser, image_shape, earlier):
        count = diffuser.num_labels
        if not count:
            raise ValueError("students need a model with labels; set the network's num_labels")
        parts = by_lists(self.lists, count) if self.lists else by_blocks(count, self.parts)
        rounds, students = [], []
        for k, part in enumerate(parts):
            student = dataclasses.replace(
                self.student, name=f"{self.name}/{self.student.name}_{k}", labels=part
            )
            if self.score_matching:
                start = dataclasses.replace(
                    self.score_matching,
                    name=f"{self.name}/{self.score_matching.name}_{k}",
                    labels=part,
                )
                rounds += start.rounds(diffuser, image_shape, earlier)
                student = dataclasses.replace(student, start=start.name)
            known = {**earlier, **{r.name: r for r in rounds}}
            [last] = student.rounds(diffuser, image_shape, known)
            students.append(last)
            rounds.append(last)
        network = Routed(last.method.diffuser.network, routes(parts))
        return [
            *(dataclasses.replace(r, measured=False) for r in rounds),
            Round(
                name=self.name,
                method_name="multi_student",
                method=Untrained(dataclasses.replace(last.method.diffuser, network=network)),
                init=None,
                loop=None,
                num_steps=last.num_steps,
                solver=last.solver,
                parent=self.student.teacher,
                students=tuple(r.name for r in students),
                card=seen(rounds, len(parts)),
            ),
        ]


def seen(rounds: list[Round], num_students: int) -> dict[str, int]:
    """For the card: updates and images of all rounds together, and the images a student."""
    images = sum(r.loop.images_seen for r in rounds)
    return {
        "train_steps": sum(r.loop.num_updates for r in rounds),
        "images_seen": images,
        "images_seen_a_student": images // num_students,
    }
