"""Training methods: pure functions over one state, one file a method."""

from pdistill.methods.ctm import Ctm, CtmStage
from pdistill.methods.direct import Direct, DirectStage
from pdistill.methods.dmd import Dmd, DmdStage, matching_gradient
from pdistill.methods.gan import Gan, GanStage
from pdistill.methods.guided import Guided, GuidedStage
from pdistill.methods.multi_student import MultiStudent, MultiStudentStage
from pdistill.methods.progressive import (
    Progressive,
    ProgressiveStage,
    halvings,
    round_levels,
    two_step_target,
)
from pdistill.methods.score_matching import ScoreMatching, ScoreMatchingStage
from pdistill.methods.stage import Method, Round, Stage, rounds_of
from pdistill.methods.teacher import Teacher, TeacherStage

STAGES: dict[str, type[Stage]] = {
    "teacher": TeacherStage,
    "progressive": ProgressiveStage,
    "guided": GuidedStage,
    "gan": GanStage,
    "direct": DirectStage,
    "dmd": DmdStage,
    "score_matching": ScoreMatchingStage,
    "multi_student": MultiStudentStage,
    "ctm": CtmStage,
}

__all__ = [
    "STAGES",
    "Ctm",
    "CtmStage",
    "Direct",
    "DirectStage",
    "Dmd",
    "DmdStage",
    "Gan",
    "GanStage",
    "Guided",
    "GuidedStage",
    "Method",
    "MultiStudent",
    "MultiStudentStage",
    "Progressive",
    "ProgressiveStage",
    "Round",
    "ScoreMatching",
    "ScoreMatchingStage",
    "Stage",
    "Teacher",
    "TeacherStage",
    "halvings",
    "matching_gradient",
    "round_levels",
    "rounds_of",
    "two_step_target",
]
