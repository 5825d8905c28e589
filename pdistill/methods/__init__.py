"""Training methods: hyperparameters and pure functions over one state, one file a method."""

from pdistill.methods.codec import KlCodec
from pdistill.methods.ctm import Ctm
from pdistill.methods.direct import Direct
from pdistill.methods.dmd import Dmd
from pdistill.methods.flow_map import FlowMap
from pdistill.methods.gan import Gan
from pdistill.methods.guided import Guided
from pdistill.methods.lowdiff import LowDiff
from pdistill.methods.method import Method, Run
from pdistill.methods.multi_student import MultiStudent
from pdistill.methods.pagoda import Pagoda
from pdistill.methods.progressive import Progressive
from pdistill.methods.score_matching import ScoreMatching
from pdistill.methods.teacher import Teacher
from pdistill.methods.upsampled import Upsampled

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Teacher, Progressive, Guided, Gan, Direct, Dmd, ScoreMatching, MultiStudent),
        *(Ctm, FlowMap, Pagoda, Upsampled, LowDiff, KlCodec),
    )
}

__all__ = ["METHODS", "Method", "Run"]
