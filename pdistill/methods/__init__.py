"""Training methods: pure functions over one state, one file a method."""

from pdistill.methods.ctm import Ctm, CtmStage
from pdistill.methods.direct import Direct, DirectStage
from pdistill.methods.dmd import Dmd, DmdStage, matching_gradient
from pdistill.methods.gan import Gan, GanStage
from pdistill.methods.guided import Guided, GuidedStage
from pdistill.methods.levels import Levels
from pdistill.methods.lowdiff import LowDiffStage
from pdistill.methods.multi_student import MultiStudentStage
from pdistill.methods.pagoda import Pagoda, PagodaStage
from pdistill.methods.progressive import (
    Progressive,
    ProgressiveStage,
    halvings,
    round_levels,
    two_step_target,
)
from pdistill.methods.score_matching import ScoreMatching, ScoreMatchingStage
from pdistill.methods.stage import Method, Round, Stage, Untrained, rounds_of
from pdistill.methods.teacher import Teacher, TeacherStage
from pdistill.methods.upsampled import UpsampledStage

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
    "pagoda": PagodaStage,
    "upsampled": UpsampledStage,
    "lowdiff": LowDiffStage,
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
    "Levels",
    "LowDiffStage",
    "Method",
    "MultiStudentStage",
    "Pagoda",
    "PagodaStage",
    "Progressive",
    "ProgressiveStage",
    "Round",
    "ScoreMatching",
    "ScoreMatchingStage",
    "Stage",
    "Teacher",
    "TeacherStage",
    "Untrained",
    "UpsampledStage",
    "halvings",
    "matching_gradient",
    "round_levels",
    "rounds_of",
    "two_step_target",
]
