"""Multi-student distillation (MSD, Song et al. 2024): one generator for each part of the labels."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.methods.method import Method, Run, roles
from pdistill.methods.parts.partition import by_blocks, by_lists, routes
from pdistill.networks import Network, Routed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiStudent(Method):
    """A student for each part of the labels, and the model that they make.

    Its runs are <name>/<student.name>_0 and so on, each after <name>/<score_matching.name>_0 if
    there is one, and <name>, the model of all students.

    Attributes:
      student: a stage that makes a generator, such as dmd or gan; its name and labels are changed.
      score_matching: a stage that makes what each student starts from, if its network is not the
        teacher's.
      parts: number of parts of consecutive labels, or 0 for those in `lists`.
      lists: labels of each part, such as `python -m pdistill.partition` finds.
    """

    student: Run
    score_matching: Run | None = None
    parts: int = 0
    lists: tuple[tuple[int, ...], ...] = ()
    name: ClassVar[str] = "multi_student"

    def __post_init__(self):
        if "start" not in roles(self.student.method):
            raise ValueError("student must be a stage that makes a generator, such as dmd or gan")
        if self.student.select:
            raise ValueError("student: leave select out; a part is not measured by itself")
        if bool(self.parts) == bool(self.lists):
            raise ValueError("give parts or lists")

    def unfold(self, stage: Run, model: Network) -> list[Run]:
        count = model.num_labels
        if not count:
            raise ValueError(
                "students need a model with labels; set the network's num_labels, or import a "
                "teacher that has them"
            )
        parts = by_lists(self.lists, count) if self.lists else by_blocks(count, self.parts)
        runs, students = [], {}
        for k, part in enumerate(parts):
            part_of = functools.partial(
                dataclasses.replace, labels=part, resolution=stage.resolution, measured=False
            )
            student = part_of(self.student, name=f"{stage.name}/{self.student.name}_{k}")
            if self.score_matching:
                first = part_of(
                    self.score_matching, name=f"{stage.name}/{self.score_matching.name}_{k}"
                )
                runs.append(first)
                student = dataclasses.replace(student, given={**student.given, "start": first.name})
            runs.append(student)
            students[f"student_{k}"] = student.name
        images = sum(run.loop.images_seen for run in runs)
        joined = Joined(
            routes=routes(parts),
            parent=self.student.given["teacher"],
            train_steps=sum(run.loop.num_updates for run in runs),
            images_seen=images,
            images_seen_a_student=images // len(parts),
        )
        steps = stage.measured_at or self.student.measured_at or self.student.method.measured_at
        return [*runs, dataclasses.replace(stage, method=joined, given=students, measured_at=steps)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined(Method):
    """The model of several students, in zero updates: each label has its student.

    Attributes:
      routes: the student of each label. parent: the students' teacher, for the card.
      train_steps, images_seen, images_seen_a_student: sums over all its runs, for the card.
    """

    routes: tuple[int, ...]
    parent: str
    train_steps: int
    images_seen: int
    images_seen_a_student: int
    name: ClassVar[str] = "multi_student"

    def init(self, key: Array, **students: Network) -> Network:
        """Students of one form, in the order in which `routes` counts them."""
        del key
        first = next(iter(students.values()))
        if first.takes_target:
            raise ValueError("student must be a stage that makes a generator, not one that jumps")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *students.values())
        module = Routed(first.module, self.routes)
        return first.replace(params={"networks": stacked.params}, module=module)

    def product(self, state: Network) -> Network:
        return state

    def card(self, state: Network) -> dict[str, Any]:
        return {
            "parent": self.parent,
            "selected_step": self.train_steps,
            "train_steps": self.train_steps,
            "images_seen": self.images_seen,
            "images_seen_a_student": self.images_seen_a_student,
        }
