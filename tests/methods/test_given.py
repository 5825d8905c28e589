"""Which networks a method can be given."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
from planning import TEACHER, plan_of, stage

from pdistill.experiment.cards import product_card
from pdistill.experiment.given import last_state
from pdistill.methods import (
    Ctm,
    Direct,
    Dmd,
    FlowMap,
    Gan,
    Guided,
    MultiStudent,
    Progressive,
    ScoreMatching,
    Teacher,
)
from pdistill.methods.flow_map import PRESETS
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.methods.parts.jumps import Cut, JumpLaw
from pdistill.networks import DiT
from pdistill.training import CheckpointError, Optimizer

PLAIN = Optimizer(1e-3)
MODULE = DiT(out_channels=1, features=16, depth=1, heads=2)
PIXELS = Judge(features="pixels", halvings=(1,), width=8, mixing=0)
JUDGED = Adversary(judges=(PIXELS,), optimizer=PLAIN)
MATCHING = Dmd(optimizer=PLAIN, fake_optimizer=PLAIN)
SCORES = ScoreMatching(optimizer=PLAIN)


@pytest.mark.parametrize(
    ("step", "card", "refused"),
    [(8, {}, False), (4, {}, True), (4, {"diverged": {"num_updates": 8}}, False)],
)
def test_a_state_is_that_after_the_last_update(tmp_path, monkeypatch, step, card, refused):
    """Not that of a save before, whose newer one was damaged; of a run that diverged, its last."""
    state = SimpleNamespace(step=step, method="learnt")
    checkpointer = SimpleNamespace(restore=lambda shapes: (state, {}))
    room = "pdistill.experiment.given"
    monkeypatch.setattr(f"{room}.shapes_in_training", lambda *_: (None, None))
    monkeypatch.setattr(f"{room}.Checkpointer", lambda _: contextlib.nullcontext(checkpointer))
    monkeypatch.setattr(f"{room}.models.read_card", lambda *_, **__: card)
    planned = SimpleNamespace(
        name="dm", state=None, makes_codec=False,
        run=SimpleNamespace(loop=SimpleNamespace(num_updates=8)),
    )  # fmt: skip
    ends = pytest.raises(CheckpointError, match=r"in 8 updates, .* is of 4; remove that folder")
    with ends if refused else contextlib.nullcontext():
        assert last_state(planned, tmp_path, None) == "learnt"


def halving(start_steps, end_steps=1):
    return Progressive(optimizer=PLAIN, start_steps=start_steps, end_steps=end_steps)


def flow_map(**law):
    between = {"identity": "semigroup"} if law.get("to") == "dyadic" else {}
    return stage(FlowMap(optimizer=PLAIN, jumps=JumpLaw(**law), **between), "first")


def ctm(**changes):
    return stage(Ctm(optimizer=PLAIN, grid_points=4, solver_steps=2, **changes), "first")


def gan(num_steps):
    return Gan(optimizer=PLAIN, adversary=JUDGED, num_steps=num_steps)


def stochastic(start_steps, end_steps=1):
    return dataclasses.replace(halving(start_steps, end_steps), stochastic=True)


def direct(teacher_steps):
    return Direct(optimizer=PLAIN, teacher_steps=teacher_steps)


ROUNDS = stage(halving(8, 4), "first")
STOCHASTIC = stage(stochastic(8, 4), "first")
CONSISTENCY = flow_map(to="data", level=(-1.1, 2.0))
MAP = flow_map(to="dyadic", instantaneous=0.75)
COUNTED = r"teacher: 'first.*num_steps=4 and knows a few noise levels only, but "
EVERY = COUNTED + ".* needs a denoiser at every noise level; name another"
JUMPS = "teacher: 'first', by .*, is a map, which has learnt to jump and may not know how to deno"


@pytest.mark.parametrize(
    ("first", "method", "message"),
    [
        (ROUNDS, halving(64), COUNTED + "progressive learns from it with start_steps=4 only"),
        (ROUNDS, stochastic(4, 2), COUNTED + "progressive learns from it with start_steps=8 only"),
        (ROUNDS, direct(8), COUNTED + "direct samples it in teacher_steps=8; set its own"),
        (STOCHASTIC, direct(4), EVERY),
        (STOCHASTIC, stochastic(8), COUNTED + "progressive .* with start_steps=4 only"),
        (ROUNDS, MATCHING, EVERY),
        (ROUNDS, SCORES, EVERY),
        (stage(gan(4), "first"), MATCHING, EVERY),
        (stage(gan(4), "first"), halving(8), COUNTED + "progressive .* with start_steps=4 only"),
        (stage(gan(1), "first"), halving(2), "progressive needs a denoiser at every"),
        (stage(halving(2), "first"), MATCHING, "num_steps=1 and knows a few"),
        (CONSISTENCY, halving(8), JUMPS),
        (CONSISTENCY, MATCHING, JUMPS),
        (CONSISTENCY, gan(1), JUMPS + ".* would begin as its denoiser; give a start, set scra"),
        (ctm(denoising=0.0, to_data=True), SCORES, JUMPS),
    ],
)
def test_a_teacher_must_know_every_noise_level(first, method, message):
    with pytest.raises(ValueError, match=message):
        plan_of(MODULE, TEACHER, first, stage(method, "later", given={"teacher": "first"}))


@pytest.mark.parametrize(
    ("first", "method"),
    [
        (ROUNDS, halving(4, 2)),
        (ROUNDS, stochastic(8, 2)),
        (STOCHASTIC, stochastic(4, 2)),
        (ROUNDS, direct(4)),
        (stage(gan(4), "first"), direct(4)),
        (ROUNDS, gan(4)),
        (CONSISTENCY, dataclasses.replace(gan(1), scratch=True)),
        (MAP, MATCHING),
        (ctm(to_data=True), MATCHING),
        (flow_map(to="ordered", instantaneous=0.0), MATCHING),
        (flow_map(**PRESETS["ayf"]["jumps"]), MATCHING),
    ],
)
def test_teachers_that_do(first, method):
    """A student at its own count, generators that go on, and maps that have learnt to denoise."""
    plan_of(MODULE, TEACHER, first, stage(method, "later", given={"teacher": "first"}))


def test_a_truncated_map_is_measured_where_it_has_learnt():
    """Steps from lower levels are those of the map below, which it does not hold."""
    tcm = PRESETS["tcm"]
    method = FlowMap(
        optimizer=PLAIN,
        identity="semigroup",
        jumps=JumpLaw(**tcm["jumps"]),
        between=Cut(**tcm["between"]),
    )
    run = stage(method, "tcm", given={"below": "first"})
    plan = plan_of(MODULE, TEACHER, CONSISTENCY, run)
    assert plan["tcm"].measured_at == plan["tcm"].made_for == (1, 2)
    with pytest.raises(ValueError, match=r"its model is made for \(1, 2\) steps; got \(1, 4\)"):
        plan_of(MODULE, TEACHER, CONSISTENCY, dataclasses.replace(run, measured_at=(1, 4)))
    higher = dataclasses.replace(method, jumps=JumpLaw(**tcm["jumps"] | {"least": (0.5,)}))
    plan = plan_of(MODULE, TEACHER, CONSISTENCY, dataclasses.replace(run, method=higher))
    assert plan["tcm"].measured_at == plan["tcm"].made_for == (1,)  # of two that it mostly is
    assert not plan_of(MODULE, TEACHER, stage(FlowMap(optimizer=PLAIN)))["flow_map"].made_for


@pytest.mark.parametrize("method", [MATCHING, gan(1)])
def test_a_generator_does_not_start_from_a_map(method):
    """It would begin at F(z, T, T), the posterior mean, and not at the map's jump to the data."""
    for first in (CONSISTENCY, ctm()):
        given = {"teacher": "teacher", "start": "first"}
        with pytest.raises(ValueError, match="start jumps, and a generator would begin as"):
            plan_of(MODULE, TEACHER, first, stage(method, "later", given=given))
        fresh = stage(dataclasses.replace(method, scratch=True), "later", given=given)
        plan_of(MODULE, TEACHER, first, fresh)


def test_what_learns_from_a_map_is_a_start():
    """A generator or a denoiser keeps the map's input for a target, but it does not jump."""
    for method in (gan(1), SCORES):
        first = stage(method, "second", given={"teacher": "first"})
        given = {"teacher": "teacher", "start": "second"}
        plan = plan_of(MODULE, TEACHER, MAP, first, stage(MATCHING, "later", given=given))
        assert plan["second"].network.takes_target
        assert plan["later"].network.sampler == "one_step"


def test_students_of_a_map_are_joined():
    student = stage(gan(1), "student", given={"teacher": "first"})
    several = stage(MultiStudent(student=student, parts=2), "several", loop=None, given={})
    plan = plan_of(MODULE.clone(num_labels=2), TEACHER, MAP, several)
    assert plan["several"].network.sampler == "one_step"


def test_what_learns_a_maps_scores_is_sampled_as_a_denoiser():
    later = stage(SCORES, "later", given={"teacher": "first"})
    plan = plan_of(MODULE, TEACHER, MAP, later)
    assert (plan["first"].network.sampler, plan["later"].network.sampler) == ("gamma", "")


def test_rounds_of_stochastic_steps_are_followed_by_such():
    again = stage(halving(4, 2), "later", given={"teacher": "first"})
    with pytest.raises(ValueError, match="stochastic steps, twice as long; set stochastic"):
        plan_of(MODULE, TEACHER, STOCHASTIC, again)


def test_a_judge_may_see_with_a_map():
    later = stage(gan(1), "later", given={"teacher": "first", "start": "teacher"})
    plan_of(MODULE, TEACHER, CONSISTENCY, later)


@pytest.mark.parametrize(("first", "denoises"), [(CONSISTENCY, False), (MAP, True)])
def test_a_card_says_whether_its_model_denoises(first, denoises):
    """For experiments that import it."""
    planned = plan_of(MODULE, TEACHER, first)["first"]
    data = SimpleNamespace(name="digits", label_names=())
    assert product_card(planned, planned.network, data=data, clip=None)["denoises"] == denoises


def test_a_card_says_whether_its_model_knows_images_without_label():
    """A guided student takes weights and has its label always, as all after it have."""
    told = [
        stage(Guided(optimizer=PLAIN), "guided", measured_at=(4,)),
        stage(halving(2), "halved", given={"teacher": "guided"}),
        stage(FlowMap(optimizer=PLAIN, guidance=(0.0, 2.0), label_dropout=0.1), "map", given={}),
    ]
    teacher = dataclasses.replace(TEACHER, method=Teacher(optimizer=PLAIN, label_dropout=0.1))
    plan = plan_of(MODULE.clone(num_labels=2), teacher, *told)
    data = SimpleNamespace(name="digits", label_names=())
    cards = {n: product_card(r, r.network, data=data, clip=None) for n, r in plan.items()}
    found = {name: card["knows_without"] for name, card in cards.items()}
    assert found == {"teacher": True, "guided": False, "halved/1": False, "map": True}


def test_what_starts_from_a_map_need_not_learn_from_it():
    later = stage(FlowMap(optimizer=PLAIN), "later", given={"start": "first"})
    plan_of(MODULE, TEACHER, CONSISTENCY, later)
