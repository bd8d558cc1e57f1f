"""The abilities of a base model: cases, judges on painted pictures, and tables."""

import collections
import io

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.evaluate.abilities.prompts import DRAWING, EDITING, GROUPS, READING, UNSEEN, AbilityCase, make_draws
from pdgen.evaluate.abilities.run import read_ability_settings
from pdgen.evaluate.abilities.scores import (
    AbilityOutcome,
    judge_answer,
    judge_case,
    judge_drawing,
    judge_edit,
    make_ability_tables,
)
from pdgen.evaluate.errors import EvaluationError
from pdgen.shapes.detector import detect, detect_background
from pdgen.shapes.graph import Entity, Relation, SceneGraph, Step
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.instruction import Instruction, apply_instruction, make_instruction
from pdgen.shapes.painter import paint
from pdgen.shapes.parse import canonicalize, parse
from pdgen.shapes.world import Scene
from pdgen.synthesis.settings import DatasetSettings, Edit
from pdgen.synthesis.subsets import make_samples
from tests.evaluate.painted import painted
from tests.support.shapes_records import EXACT
from tests.support.stories import thing

COUNT = 16


@pytest.fixture(scope="module")
def made():
    return make_draws(COUNT)


def pixels(png):
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.slow
def test_every_row_has_its_number_of_prompts(made):
    rows = collections.defaultdict(list)
    for draw in made:
        rows[draw.case.group, draw.case.row].append(draw)
    assert list(rows) == [(group, row) for group, (_, names) in GROUPS.items() for row in names]
    for (_, row), own in rows.items():
        assert len({draw.job.name.rpartition("-")[0] for draw in own}) == (12 if row == UNSEEN else COUNT)
        assert COUNT <= len(own) <= 2 * COUNT
    assert len({draw.job.name for draw in made}) == len({draw.job.seed for draw in made}) == len(made)
    assert made == make_draws(COUNT)
    assert [d.case for d in make_draws(COUNT, seed=1)] != [d.case for d in made]
    some = make_draws(3, rows={"drawing": ("position",), "reading": ("place",)})
    assert [d.case.row for d in some] == ["position"] * 3 + ["place"] * 3


def test_prompts_ask_for_what_is_judged(made):
    sizes = {"one thing": 1, UNSEEN: 1, "two things": 2, "position": 2, "three things": 3, "six things": 6}
    for _, case in made:
        if case.group in ("drawing", "thinking"):
            assert canonicalize(parse(case.prompt)) == canonicalize(case.asked)
            assert is_held_out(case.asked) == (case.row == UNSEEN)
            things = sum(e.count for e in case.asked.entities)
            assert things == sizes.get(case.row, things) and (case.row != "counting" or 2 <= things <= 4)
            assert bool(case.asked.relations) or case.row != "position"
            assert (case.given, case.answer) == (b"", "")
            assert case.mode == {"drawing": "single_pass", "thinking": "think"}[case.group]
    drawing, thinking = ([c for _, c in made if c.group == group] for group in ("drawing", "thinking"))
    assert {case.row for case in drawing} == {*DRAWING}
    assert [case._replace(group="drawing") for case in thinking] == drawing


def test_given_pictures_are_those_of_the_questions(made):
    for _, case in made:
        if case.group == "editing":
            assert case.mode == "edit" and case.instruction.operation == case.row
            assert not is_held_out(case.asked) and pixels(case.given).shape == (64, 64, 3)
        elif case.group == "reading" and case.row in ("caption", "places"):
            said = parse(case.answer)
            assert sum(e.count for e in said.entities) == len(detect(pixels(case.given)))
            assert said.background == detect_background(pixels(case.given))
    assert {case.row for _, case in made if case.group in ("editing", "reading")} == {*EDITING, *READING}


def test_pictures_are_right_for_their_own_prompts_alone(made):
    cases = [case for _, case in made if case.group == "drawing"]
    for number, case in enumerate(cases):
        picture = np.asarray(painted(case.prompt, number))
        scores, fault = judge_case(case, None, picture, "")
        assert set(scores.values()) == {1.0} and not fault, (case.prompt, fault)
        other = next(one for one in reversed(cases) if canonicalize(one.asked) != canonicalize(case.asked))
        scores, fault = judge_case(case, None, np.asarray(painted(other.prompt, number)), "")
        assert scores["right"] == 0.0 and fault and "<" not in fault


@pytest.mark.parametrize(
    ("asked", "shown", "scores"),
    [
        ("a red circle", "a red circle", (1, 1, 1, 1)),
        ("a red circle", "a blue circle", (0, 1, 0, 1)),
        ("a red circle", "a red star", (0, 1, 1, 0)),
        ("a red circle", "a red circle and a blue star", (0, 0, 1, 1)),
        ("a red circle and a blue star", "a blue circle and a red star", (0, 1, 1, 1)),
        ("a red circle and a blue star", "a blue star", (0, 0, 0, 0)),
        ("two circles", "two circles", (1, 1, None, 1)),
        ("two circles", "three circles", (0, 0, None, 1)),
        ("three circles", "two circles", (0, 0, None, 0)),
        ("two circles", "two circles and a star", (0, 0, None, 1)),
        ("a circle left of a star", "a circle left of a star", (1, 1, None, 1)),
        ("a circle left of a star", "a circle right of a star", (0, 1, None, 1)),
        ("a red circle on a beige background", "a red circle on a lavender background", (0, 1, 1, 1)),
    ],
)
def test_every_kind_of_wrong_picture_is_detected(asked, shown, scores):
    found, fault = judge_drawing(parse(asked), np.asarray(painted(shown, 3)))
    assert tuple(found.get(name) for name in ("right", "number", "colours", "nouns")) == scores
    assert bool(fault) != found["right"]


def test_pictures_of_noise_are_wrong(made):
    rng = np.random.default_rng(0)
    for _, case in made:
        if case.asked is not None:
            noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
            before = pixels(case.given) if case.given else None
            assert judge_case(case, before, noise, "")[0]["right"] == 0.0


def test_right_edits_pass_and_edits_that_did_nothing_fail():
    settings = DatasetSettings(tasks={"composition": 1.0}, edit=Edit(72, operations=dict.fromkeys(EDITING, 1.0)))
    for record in make_samples(settings, EXACT, "edit", range(72)).records:
        before, (step,) = msgspec.convert(record.scene["before"], SceneGraph), record.scene["steps"]
        step = msgspec.convert(step, Step)
        given, now = pixels(record.segments[0].png), pixels(record.segments[2].png)
        scores, fault = judge_edit(step.graph, make_instruction(before, step), given, now)
        assert scores == {"right": 1.0, "done": 1.0, "untouched": 1.0} and not fault
        scores, fault = judge_edit(step.graph, make_instruction(before, step), given, given)
        assert scores == {"right": 0.0, "done": 0.0, "untouched": 1.0} and fault, step.operation


CIRCLE, STAR = thing(0, 0, 0, 7, "red"), thing(1, 16, 16, 7, "blue", "star")
GREEN = thing(0, 0, 0, 7, "green")


@pytest.mark.parametrize(
    ("now", "ground", "done", "untouched"),
    [
        ((GREEN, STAR), "beige", 1, 1),
        ((CIRCLE, STAR), "beige", 0, 1),
        ((GREEN, thing(1, 16, 16, 7, "pink", "star")), "beige", 0, 0),
        ((GREEN, thing(1, 24, 16, 7, "blue", "star")), "beige", 1, 0),
        ((GREEN, thing(1, 16, 16, 7, "blue", "heart")), "beige", 0, 0),
        ((GREEN,), "beige", 0, 0),
        ((GREEN, STAR, thing(2, 0, 24, 7, "white", "ring")), "beige", 0, 1),
        ((GREEN, STAR), "lavender", 1, 0),
    ],
)
def test_every_kind_of_wrong_edit_is_detected(now, ground, done, untouched):
    before = SceneGraph((Entity(0, "circle", 1, {"color": "red"}), Entity(1, "star", 1, {"color": "blue"})))
    order = Instruction("modify", (0,), SceneGraph((before.entities[0],)), {"color": "green"})
    pictures = [paint(Scene(things, where), 64) for things, where in (((CIRCLE, STAR), "beige"), (now, ground))]
    scores, fault = judge_edit(apply_instruction(before, order), order, *pictures)
    assert scores == {"right": done and untouched, "done": done, "untouched": untouched}
    assert bool(fault) != scores["right"]


@pytest.mark.parametrize(
    ("circle", "star", "right"),
    [
        ((16, 16), (0, 0), 1),
        ((0, 0), (16, 16), 0),
        ((16, 16), (24, 0), 0),
        ((0, 24), (0, 0), 0),
    ],
)
def test_swapped_things_take_each_other_s_places(circle, star, right):
    before = SceneGraph((Entity(0, "circle", 1, {"color": "red"}), Entity(1, "star", 1, {"color": "blue"})))
    order = Instruction("swap", (0, 1), before)
    now = thing(0, *circle, 7, "red"), thing(1, *star, 7, "blue", "star")
    pictures = [paint(Scene(things, "beige"), 64) for things in ((CIRCLE, STAR), now)]
    scores, fault = judge_edit(apply_instruction(before, order), order, *pictures)
    assert (scores["right"], bool(fault)) == (right, not right)


@pytest.mark.parametrize(
    ("place", "done", "fault"),
    [
        ((0, 16), 1, ""),
        ((0, 0), 0, "The red circle has not moved."),
        ((24, 0), 0, "left"),
    ],
)
def test_a_moved_thing_leaves_its_place_even_if_the_place_would_do(place, done, fault):
    before = SceneGraph((Entity(0, "circle", 1, {"color": "red"}), Entity(1, "star", 1, {"color": "blue"})))
    order = Instruction("move", (0,), SceneGraph(before.entities, (Relation(0, "left of", 1),)))
    pictures = [paint(Scene((circle, STAR), "beige"), 64) for circle in (CIRCLE, thing(0, *place, 7, "red"))]
    scores, told = judge_edit(apply_instruction(before, order), order, *pictures)
    assert scores["done"] == done and fault in told and bool(told) != done


def test_expected_answers_are_right(made):
    for _, case in made:
        if case.group == "reading":
            scores, fault = judge_case(case, pixels(case.given), None, case.answer)
            assert set(scores.values()) == {1.0} and not fault


@pytest.mark.parametrize(
    ("thought", "shown", "agrees", "as_thought"),
    [
        ("There is a red circle left of a blue star.", "a red circle left of a blue star", 1, 1),
        ("There is a red circle left of a blue star.", "a red circle right of a blue star", 1, 0),
        ("There is a red circle left of a green star.", "a red circle left of a green star", 0, 1),
        ("There is a red circle right of a blue star.", "a red circle right of a blue star", 0, 1),
        ("There is a red circle.", "a red circle", 0, 1),
        ("There is a circle left of a blue star.", "a red circle left of a blue star", 0, 1),
        ("A red circle and and.", "a red circle left of a blue star", 0, 0),
        ("", "a red circle left of a blue star", 0, 0),
        ("There is a red circle at the top and in the centre.", "a red circle left of a blue star", 0, 0),
    ],
)
def test_a_thought_agrees_with_the_prompt_and_the_picture_with_the_thought(thought, shown, agrees, as_thought):
    asked = parse("a red circle left of a blue star")
    case = AbilityCase("thinking", "position", "", asked)
    scores, _ = judge_case(case, None, np.asarray(painted(shown, 3)), thought)
    assert (scores["thought"], scores["as thought"]) == (agrees, as_thought)


CAPTION = "The picture shows a large red circle and two blue stars on a beige background."


@pytest.mark.parametrize(
    ("kind", "answer", "expected", "right"),
    [
        ("caption", CAPTION, CAPTION, 1),
        ("caption", "The picture shows two blue stars and a large red circle on a beige background.", CAPTION, 1),
        ("caption", CAPTION.replace("red", "pink"), CAPTION, 0),
        ("caption", CAPTION.replace("two", "three"), CAPTION, 0),
        ("caption", CAPTION.replace("large ", ""), CAPTION, 0),
        ("caption", CAPTION.replace("beige", "lavender"), CAPTION, 0),
        ("caption", CAPTION.replace(" on a beige background", ""), CAPTION, 0),
        ("caption", CAPTION.replace(" on", " and a pink ring on"), CAPTION, 0),
        ("caption", "The picture shows a large red", CAPTION, 0),
        ("caption", "", CAPTION, 0),
        ("places", "A red circle at the top left.", "The picture shows a red circle at the top left.", 1),
        ("places", "A red circle at the top right.", "The picture shows a red circle at the top left.", 0),
        ("places", "A red circle.", "The picture shows a red circle at the top left.", 0),
        ("color", "Red.", "Red.", 1),
        ("color", "Pink.", "Red.", 0),
        ("count", "Three.", "Two.", 0),
        ("count", "Two.", "Two.", 1),
        ("place", "At the top.", "At the top left.", 0),
    ],
)
def test_answers(kind, answer, expected, right):
    scores, fault = judge_answer(kind, answer, expected)
    assert scores == {"right": right} and bool(fault) != right


@pytest.mark.parametrize(
    ("answer", "expected", "right", "first"),
    [
        ("Yes.", "Yes.", 1, 1),
        ("No, the circle is red, not blue.", "Yes.", 0, 0),
        ("No, the circle is red, not blue.", "No, the circle is red, not blue.", 1, 1),
        ("No, the circle is pink, not blue.", "No, the circle is red, not blue.", 0, 1),
        ("Yes.", "No, the circle is red, not blue.", 0, 0),
        ("Yesterday.", "Yes.", 0, 0),
        ("", "Yes.", 0, 0),
    ],
)
def test_checks_are_scored_by_verdict_and_as_a_whole(answer, expected, right, first):
    assert judge_answer("check", answer, expected)[0] == {"right": right, "yes or no": first}


def outcome(row, prompt, sample, right, group="editing"):
    return AbilityOutcome(f"{group}/{row}/{prompt:05d}-{sample:02d}", group, row, "", 0, {"right": float(right)})


def test_tables_count_prompts_and_weigh_operations_equally():
    edits = [outcome("add", 0, 0, 1), outcome("add", 0, 1, 0), outcome("add", 1, 0, 1), outcome("add", 1, 1, 1)]
    edits += [outcome("move", n, 0, 0) for n in range(8)]
    first, second = make_ability_tables([*edits, outcome("color", 0, 0, 1, "reading")])
    assert (first.title, second.title) == ("editing", "reading")
    rows = {row[0]: row for row in first.rows}
    assert list(rows) == ["overall", "add", "move"]
    assert rows["add"][1] == 0.75 and 0.5 <= rows["add"][2] < 0.75 < rows["add"][3] <= 1 and rows["add"][-2:] == (2, 4)
    assert rows["overall"][1] == 0.375 and rows["overall"][-2:] == (10, 12)
    assert rows["move"][1:4] == (0.0, 0.0, 0.0) and rows["move"][4] is None  # "done" is not scored
    assert second.rows == [("colour", 1.0, None, None, None, None, None, 1, 1)]


def test_settings_are_those_of_each_mode():
    settings = read_ability_settings({"text.max_tokens": 9, "image.text_scale": 2.0})
    assert settings.keys() == {"single_pass", "edit", "understand", "think"}
    assert {one.text.max_tokens for one in settings.values()} == {9}
    assert {one.image.num_timesteps for one in settings.values()} == {25}
    assert (settings["edit"].image.interval, settings["single_pass"].image.interval) == ((0.0, 1.0), (0.4, 1.0))
    assert settings["understand"].text.temperature == 0.0
    assert read_ability_settings({"image.num_timesteps": 7})["edit"].image.num_timesteps == 7
    with pytest.raises(EvaluationError, match="--setting=mode: every row of abilities has its own"):
        read_ability_settings({"mode": "edit"})
