"""Multi-student distillation (MSD, Song et al. 2024): a generator for each part."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.methods.method import Method, Run, required_roles, roles
from pdistill.methods.parts.given import jumps
from pdistill.methods.parts.partition import by_blocks, by_lists, routes
from pdistill.networks import Network, Routed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiStudent(Method):
    """A student for each part of the labels, or of the prompts, and the model that they make.

    Its runs are <name>/<student.name>_0 and so on, each after <name>/<score_matching.name>_0 if
    there is one, and <name>, the model of all students.

    Attributes:
      student: a stage that makes a generator, such as dmd or gan; its name and labels are changed.
      score_matching: a stage that makes what each student starts from, if its network is not the
        teacher's.
      parts: number of parts of consecutive labels, or 0 for those in `lists`; of a model that takes
        prompts and no labels, number of parts of these, by k-means on their pooled embeddings.
      lists: labels of each part, such as `python -m pdistill.partition` finds.
    """

    student: Run
    score_matching: Run | None = None
    parts: int = 0  # hides `Method.parts`, which only methods with updates have a use for
    lists: tuple[tuple[int, ...], ...] = ()
    name: ClassVar[str] = "multi_student"

    def __post_init__(self):
        method = self.student.method
        if "start" not in roles(method) or "teacher" not in required_roles(method):
            raise ValueError("student must be a stage that makes a generator, such as dmd or gan")
        if "teacher" not in self.student.given:
            raise ValueError("student: it needs 'teacher', the name of an earlier stage")
        if self.student.select:
            raise ValueError("student: leave select out; a part is not measured by itself")
        if bool(self.parts) == bool(self.lists):
            raise ValueError("give parts or lists")

    def unfold(self, stage: Run, model: Network) -> list[Run]:
        runs, students = [], {}
        parts, joined = self.divide(model)
        for k, part in enumerate(parts):
            part_of = functools.partial(
                dataclasses.replace, resolution=stage.resolution, measured=False, **part
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
            **joined,
            parent=self.student.given["teacher"],
            train_steps=sum(run.loop.num_updates for run in runs),
            images_seen=images,
            images_seen_a_student=images // len(parts),
        )
        steps = stage.measured_at or self.student.measured_at or self.student.method.measured_at
        return [*runs, dataclasses.replace(stage, method=joined, given=students, measured_at=steps)]

    def divide(self, model: Network) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Says of each part what its run does, and what `Joined` does of all of them.

        Raises:
          ValueError: the model is told nothing by which there are parts, or they are not such.
        """
        count = model.num_labels
        if count:
            parts = by_lists(self.lists, count) if self.lists else by_blocks(count, self.parts)
            return [{"labels": part} for part in parts], {"routes": routes(parts)}
        if model.text_widths[0] and self.parts:
            parts = [{"prompt_part": (k, self.parts)} for k in range(self.parts)]
            return parts, {"by_prompts": self.parts}
        raise ValueError(
            "students need a model with labels, or `parts` and pooled embeddings of prompts; set "
            "the network's num_labels or text_pooled, or import a teacher that has them"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined(Method):
    """The model of several students, in zero updates: each label or prompt has its student.

    Attributes:
      routes: the student of each label. by_prompts: number of students, that of a prompt being the
        one with the nearest centre. parent: the students' teacher, for the card.
      train_steps, images_seen, images_seen_a_student: sums over all its runs, for the card.
    """

    routes: tuple[int, ...] = ()
    by_prompts: int = 0
    parent: str
    train_steps: int
    images_seen: int
    images_seen_a_student: int
    name: ClassVar[str] = "multi_student"

    def init(self, key: Array, centres: Array | None = None, **students: Network) -> Network:
        """Students of one form, in the order in which `routes` counts them.

        Args:
          centres: means of the parts of the prompts, [K, P].
        """
        del key
        first = next(iter(students.values()))
        if jumps(first):
            raise ValueError("student must be a stage that makes a generator, not one that jumps")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *students.values())
        module = Routed(first.module, self.routes, by_prompts=self.by_prompts)
        params = {"networks": stacked.params}
        if centres is not None:
            params["centres"] = jnp.asarray(centres)
        return first.replace(params=params, module=module)

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
