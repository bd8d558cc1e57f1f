"""Process measures of hand-made trajectories whose right answers are known."""

import dataclasses

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.evaluate.process.measures import check_shapes_untouched, judge_trajectory
from pdgen.evaluate.process.tables import (
    MEASURES,
    estimate_measure,
    make_cost_table,
    make_length_table,
    make_lost_table,
    make_process_table,
    make_tables,
)
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, format_inspection, format_plan
from pdgen.shapes.painter import paint
from pdgen.shapes.world import Scene, SceneObject
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.verifier import ExactVerifier

PROMPT = "a photo of a red circle left of a blue square"
FIRST = format_plan("Start with a red circle.", "The picture shows a red circle.")
SECOND = format_plan(
    "Add a blue square right of the red circle.", "The picture shows a red circle left of a blue square."
)
RED = SceneObject(0, 0, "circle", "red", 10, 3, 12)
BLUE = SceneObject(1, 1, "square", "blue", 10, 19, 12)
GREEN = SceneObject(1, 1, "square", "green", 10, 19, 12)
ODD = format_plan("Frobnicate.", "Nonsense stands here.")
MOVED = SceneObject(0, 0, "circle", "red", 10, 3, 1)

ONE, BOTH, WRONG = (RED,), (RED, BLUE), (RED, GREEN)
AGREES = format_inspection("The red circle is there. A blue square is still to come.")
DONE = format_inspection("The blue square is there. Nothing is missing.")
FAULT = format_inspection("The square is green.", "Make the green square blue.")
EARLY = format_inspection("There is no blue square.", "Add a blue square.")


def trajectory(*stages, reason="finished", prompt=PROMPT, **costs):
    """Texts are plans or inspections, tuples of objects are images; "refine" before one names its stage."""
    made, images = [], []
    refine = False
    for stage in stages:
        if stage == "refine":
            refine = True
        elif isinstance(stage, str):
            made.append(TextStage("plan" if stage.startswith("<ins>") else "inspect", stage))
        else:
            images.append(PIL.Image.fromarray(paint(Scene(stage), 64)))
            name = "refine" if refine else "sketch"
            made.append(ImageStage(name, f"{len(images):02d}_{name}.png", 64, 64))
            refine = False
    return Trajectory(prompt=prompt, stages=made, images=images, stop_reason=reason, seed=0, checkpoint="", costs=costs)


def facts(*stages, **more):
    return judge_trajectory(trajectory(*stages, **more), ExactJudge(), ExactVerifier(), check_shapes_untouched)


def values(found, *names):
    return [list(map(float, MEASURES[name](found))) for name in names]


def test_a_faultless_trajectory():
    found = facts(FIRST, ONE, AGREES, SECOND, BOTH, DONE, network_evaluations=98.0)
    assert [step.kept for step in found.steps] == [True, True]
    assert [step.untouched for step in found.steps] == [None, True]
    assert found.final == 1 and found.first < 1 and found.lost_at is None
    told = [(i.alarm, i.fault, i.unfinished) for i in found.inspections]
    assert told == [(False, False, True), (False, False, False)]
    assert found.refinements == []
    assert found.costs == {"network_evaluations": 98.0}


def test_a_fault_that_is_found_and_mended():
    found = facts(FIRST, ONE, AGREES, SECOND, WRONG, FAULT, "refine", BOTH, DONE)
    assert [step.images for step in found.steps] == [[1], [4, 6]]
    assert [step.kept for step in found.steps] == [True, True]
    assert [(i.alarm, i.fault) for i in found.inspections] == [(False, False), (True, True), (False, False)]
    assert [r.effect for r in found.refinements] == ["mends"]


@pytest.mark.parametrize(
    ("draft", "words", "refined", "effect"),
    [
        (WRONG, FAULT, WRONG, "nothing"),
        (BOTH, FAULT, WRONG, "harms"),
        (WRONG, FAULT, (GREEN,), "harms"),
        ((GREEN,), FAULT, WRONG, "mends"),
    ],
)
def test_outcomes_of_a_refinement(draft, words, refined, effect):
    found = facts(FIRST, ONE, AGREES, SECOND, draft, words, "refine", refined)
    assert [r.effect for r in found.refinements] == [effect]


def test_the_step_that_loses_a_requirement():
    assert facts(FIRST, ONE, AGREES, SECOND, WRONG, DONE).lost_at == (1, "picture")
    green = format_plan("Add a green square right of the red circle.", "There is a red circle left of a green square.")
    assert facts(FIRST, ONE, AGREES, green, WRONG, DONE).lost_at == (1, "plan")
    assert facts(FIRST, ONE, AGREES).lost_at == (0, "unfinished")
    made = make_lost_table([facts(FIRST, ONE), facts(FIRST, ONE), facts(FIRST, ONE, AGREES, SECOND, WRONG)])
    assert made.rows == [("step 1: unfinished", 2, 3), ("step 2: picture", 1, 3)]


def test_changes_of_what_a_step_does_not_concern():
    found = facts(FIRST, ONE, AGREES, SECOND, (MOVED, BLUE), DONE)
    assert found.steps[1].untouched is False and not found.steps[1].kept


def test_pixels_changed_by_a_step_are_not_those_of_a_decoder_s_noise():
    drawn = trajectory(FIRST, ONE, AGREES, SECOND, BOTH, DONE)
    first, second = drawn.images
    noise = np.random.default_rng(0).integers(-15, 16, (64, 64, 3))
    noisy = PIL.Image.fromarray(np.clip(np.asarray(second) + noise, 0, 255).astype(np.uint8))
    found = judge_trajectory(dataclasses.replace(drawn, images=[first, noisy]), ExactJudge(), ExactVerifier())
    # The blue square alone: 10 x 10 of 32 x 32 units.
    assert [step.changed for step in found.steps] == [None, 100 / 1024]


def test_precision_recall_and_false_alarms():
    missed = facts(FIRST, ONE, AGREES, SECOND, WRONG, DONE)
    early = facts(FIRST, ONE, EARLY, "refine", BOTH, DONE)
    right = facts(FIRST, ONE, AGREES, SECOND, WRONG, FAULT, "refine", BOTH, DONE)
    early_alarms = "false alarms on what is not drawn yet"
    names = ("inspection precision", "inspection recall", early_alarms, "false alarms", "images")
    # The early alarm concerns what is not drawn yet. The plan does not mention what is drawn next: an unseen fault.
    assert values(missed, *names) == [[], [0.0], [0.0], [0.0], [2.0]]
    assert values(early, *names) == [[0.0], [0.0], [1.0], [1.0], [2.0]]
    assert values(right, *names) == [[1.0], [1.0], [0.0], [0.0, 0.0], [3.0]]


def test_a_rewritten_plan_is_the_same_step():
    green = format_plan("Add a green square right of the red circle.", "There is a red circle left of a green square.")
    said = format_inspection("The prompt asks for a blue square.", "Plan a blue square.")
    found = facts(FIRST, ONE, AGREES, green, WRONG, said, SECOND, "refine", BOTH, DONE)
    assert [step.images for step in found.steps] == [[1], [4, 7]]
    assert [(i.alarm, i.fault) for i in found.inspections] == [(False, False), (True, True), (False, False)]
    assert [r.effect for r in found.refinements] == ["mends"]
    assert found.lost_at is None


def test_unreadable_plans_have_unknown_verdicts():
    found = facts(ODD, ONE, AGREES)
    assert (found.steps[0].planned, found.steps[0].shown, found.steps[0].kept) == (None, None, None)
    assert found.inspections[0].fault is None
    assert values(found, "inspection recall", "false alarms", "steps kept", "pictures as planned") == [[], [], [], []]


def test_a_refinement_after_an_unreadable_plan():
    risen = facts(ODD, WRONG, FAULT, "refine", BOTH)
    assert risen.first < risen.final == 1 and [r.effect for r in risen.refinements] == [None]
    mends, nothing, harms = (f"refinements that {effect}" for effect in ("mend", "do nothing", "harm"))
    assert values(risen, mends, nothing, harms) == [[], [], []]
    # Rewritten to what can be read, the new plan tells one image from another, but not whether the old one was right.
    assert [r.effect for r in facts(ODD, (GREEN,), FAULT, FIRST, "refine", ONE).refinements] == ["mends"]
    assert [r.effect for r in facts(ODD, ONE, FAULT, FIRST, "refine", ONE).refinements] == [None]


def test_an_unreadable_plan_is_not_blamed():
    made = [facts(ODD, WRONG), facts(FIRST, ONE, AGREES, ODD, WRONG), facts(ODD, ONE, AGREES, SECOND, WRONG)]
    assert [one.lost_at for one in made] == [(0, "unknown"), (1, "unknown"), (0, "unknown")]
    # Whether the second plan agrees with an unreadable one is unknown, but its picture is certainly wrong.
    assert (made[2].steps[1].planned, made[2].steps[1].shown, made[2].steps[1].kept) == (None, False, None)
    assert values(made[2], "steps kept", "pictures as planned") == [[], [0.0]]
    assert facts(ODD, BOTH).lost_at is None
    unasked = facts(BOTH, prompt="a photo of a frobnicated gizmo")
    assert (unasked.final, unasked.steps[0].kept, unasked.lost_at) == (None, None, None)
    assert make_lost_table([*made, unasked]).rows == [("step 1: unknown", 2, 3), ("step 2: unknown", 1, 3)]


def test_single_pass_is_one_step_whose_plan_is_the_prompt():
    right, wrong = facts(BOTH), facts(WRONG)
    assert [step.kept for step in right.steps] == [True] and right.lost_at is None
    assert [step.kept for step in wrong.steps] == [False] and wrong.lost_at == (0, "picture")
    names = ("steps kept", "pictures as planned", "plans that agree with the prompt")
    assert values(right, *names) == [[1.0], [1.0], []]
    assert values(wrong, *names) == [[0.0], [0.0], []]
    assert make_lost_table([right, wrong, wrong]).rows == [("step 1: picture", 2, 3)]


@pytest.mark.parametrize(
    ("draft", "words", "refined", "fault", "effect"),
    [
        (WRONG, FAULT, BOTH, True, "mends"),
        (WRONG, FAULT, WRONG, True, "nothing"),
        (BOTH, FAULT, WRONG, False, "harms"),
        (BOTH, FAULT, BOTH, False, "nothing"),
        ((GREEN,), FAULT, WRONG, True, "mends"),
        (ONE, EARLY, BOTH, True, "mends"),
    ],
)
def test_an_inspector_of_a_single_pass_is_measured_against_the_prompt(draft, words, refined, fault, effect):
    found = facts(draft, words, "refine", refined)
    assert [step.images for step in found.steps] == [[0, 2]]
    # What the picture lacks is a fault here: no later step could draw it.
    assert [(i.alarm, i.fault, i.unfinished) for i in found.inspections] == [(True, fault, False)]
    assert [r.effect for r in found.refinements] == [effect]
    names = ("inspection precision", "inspection recall", "false alarms", "false alarms on what is not drawn yet")
    assert values(found, *names) == ([[1.0], [1.0], [], []] if fault else [[0.0], [], [1.0], []])
    assert found.lost_at == (None if refined == BOTH else (0, "picture"))


def test_an_inspector_that_accepts():
    missed, right = facts(WRONG, DONE), facts(BOTH, DONE)
    names = ("inspection precision", "inspection recall", "false alarms", "refinements that do nothing")
    assert values(missed, *names) == [[], [0.0], [], []]
    assert values(right, *names) == [[], [], [0.0], []]


def test_tables():
    whole = (FIRST, ONE, AGREES, SECOND, BOTH)
    made = [facts(FIRST, ONE, network_evaluations=50.0), facts(*whole, network_evaluations=90.0)]
    one, two = (msgspec.structs.replace(found, entities=n, prompt=f"{n}") for n, found in enumerate(made, 1))
    lengths = make_length_table([one, two])
    assert lengths.rows == [("1", 1.0, one.final, 1), ("2", 2.0, 1.0, 1)]
    rows = {row[0]: row for row in make_process_table([one, two]).rows}
    # Three steps of two prompts, all kept: drawing prompts anew changes nothing.
    assert rows["steps kept"] == ("steps kept", 1.0, 1.0, 1.0, 2, 3)
    assert rows["images"][1:5] == (1.5, 1.0, 2.0, 2)
    assert rows["final beats first draft"][1] == 0.5
    assert "refinements that mend" not in rows
    assert make_cost_table([one, two]).rows[0][:2] == ("network_evaluations", 70.0)
    drawn = [trajectory(BOTH, network_evaluations=20.0), trajectory(BOTH, network_evaluations=26.0)]
    assert make_cost_table(drawn).rows == [("network_evaluations", 23.0, None, None, 1, 2)]
    assert [table.title for table in make_tables([two])] == ["Process", "Costs", "Length"]


def test_a_measure_over_training_seeds():
    """Two images with the first seed and one with the second, of two prompts alike: the seeds alone differ."""
    two, one = facts(FIRST, ONE, AGREES, SECOND, BOTH), facts(FIRST, ONE)
    runs = [[msgspec.structs.replace(found, prompt=f"{n}") for n in range(2)] for found in (two, one)]
    found, count = estimate_measure(runs, MEASURES["images"])
    assert (found.value, found.low, found.high, found.n, count) == (1.5, 1, 2, 2, 4)
    # Only one of the prompts has an inspection, and with the first seed alone.
    runs[0][1] = msgspec.structs.replace(runs[0][1], inspections=[])
    found, count = estimate_measure(runs, MEASURES["false alarms"])
    assert (found.value, found.low, found.n, count) == (0, None, 1, 1)
    assert estimate_measure(runs, MEASURES["refinements that mend"]) is None
