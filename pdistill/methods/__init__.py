"""Training methods: pure functions over one state, one file a method."""

from pdistill.methods.progressive import (
    Progressive,
    ProgressiveStage,
    halvings,
    two_step_target,
)
from pdistill.methods.stage import Method, Round, Stage
from pdistill.methods.teacher import Teacher, TeacherStage

STAGES: dict[str, type[Stage]] = {"teacher": TeacherStage, "progressive": ProgressiveStage}

__all__ = [
    "STAGES",
    "Method",
    "Progressive",
    "ProgressiveStage",
    "Round",
    "Stage",
    "Teacher",
    "TeacherStage",
    "halvings",
    "two_step_target",
]
