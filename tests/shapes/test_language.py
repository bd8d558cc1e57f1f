"""Prompts, plans and inspections: worked examples, variety, lengths, and faults."""

import collections

import msgspec
import numpy as np
import pytest

from pdgen.sequence.trajectory import parse_plan, parse_refine
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import Entity, Relation, SceneError, SceneGraph, Step
from pdgen.shapes.instruction import apply_instruction, make_instruction
from pdgen.shapes.lexicon import COCO
from pdgen.shapes.matching import find_differences
from pdgen.shapes.parse import canonicalize, parse, parse_instruction
from pdgen.shapes.placement import PLACEMENTS
from pdgen.shapes.world import place_scenes
from pdgen.synthesis.faults import FAULTS, corrupt
from pdgen.synthesis.sample import make_prompt_graph, sample_graph
from tests.support.stories import story


def thing(number, noun, count=1, **attributes):
    return Entity(number, noun, count, attributes)


CIRCLE, SQUARE = thing(0, "circle", color="red"), thing(1, "square", color="blue")
STARS = thing(2, "star", 3, color="pink")
LEFT = Relation(0, "left of", 1)
PAIR = SceneGraph((CIRCLE, SQUARE), (LEFT,))
TRIO = SceneGraph((CIRCLE, SQUARE, STARS), (LEFT, Relation(2, "above", 1)), "beige")


def all_wordings(write, times=200):
    return {write(np.random.default_rng(seed)) for seed in range(times)}


@pytest.mark.parametrize(
    ("graph", "task", "official"),
    [
        (SceneGraph((thing(0, "circle"),)), "single_object", "a photo of a circle"),
        (SceneGraph((thing(0, "circle"), thing(1, "arrow"))), "two_object", "a photo of a circle and an arrow"),
        (SceneGraph((thing(0, "cross", 3),)), "counting", "a photo of three crosses"),
        (SceneGraph((thing(0, "circle", color="orange"),)), "colors", "a photo of an orange circle"),
        (SceneGraph(PAIR.entities), "color_attr", "a photo of a red circle and a blue square"),
        (
            SceneGraph((thing(0, "circle"), thing(1, "square")), (LEFT,)),
            "position",
            "a photo of a circle left of a square",
        ),
    ],
)
def test_prompts_come_in_genevals_form_and_in_others(graph, task, official):
    said = collections.Counter(language.write_prompt(np.random.default_rng(s), graph, task) for s in range(400))
    assert 0.3 < said[official] / 400 < 0.5
    assert len(said) >= 7
    assert {canonicalize(parse(text)) for text in said} == {canonicalize(graph)}


def test_compositions_average_about_150_characters():
    lengths, said = [], set()
    for seed in range(1500):
        rng = np.random.default_rng((5, seed))
        graph = make_prompt_graph(rng, sample_graph(rng, "composition"), "composition")
        said.add(language.write_prompt(rng, graph, "composition"))
        lengths.append(len(language.write_prompt(rng, graph, "composition")))
    assert 145 < np.mean(lengths) < 160
    assert len(said) > 1490


def test_a_composition_in_all_its_wordings():
    said = all_wordings(lambda rng: language.write_prompt(rng, TRIO, "composition"), 600)
    assert {
        "Draw a red circle left of a blue square, and three pink stars above the square, on a beige background.",
        "A photo of a beige background with a red circle left of a blue square, and three pink stars above the square.",
        "A red circle left of a blue square, and three pink stars above the square. The background is beige.",
    } <= said
    assert any("and three pink stars. The circle is left of the square. The three stars are above" in t for t in said)
    assert {canonicalize(parse(text)) for text in said} == {canonicalize(TRIO)}


def test_names_are_as_long_as_needed():
    alike = SceneGraph(
        (thing(0, "ring", color="red"), thing(1, "ring", color="blue", size="small"), thing(2, "ring", color="blue")),
        (Relation(1, "above", 0), Relation(2, "below", 0)),
    )
    for text in all_wordings(lambda rng: language.write_description(rng, alike)):
        assert "a red ring below a small blue ring and above a blue ring" in text
    moved = SceneGraph(alike.entities, (Relation(2, "left of", 1),))
    said = all_wordings(lambda rng: language.write_step_instruction(rng, alike, Step("move", (2,), moved)))
    assert "Move the blue ring left of the small blue ring." in said


def test_plans_say_what_is_new_and_describe_the_whole():
    first = all_wordings(lambda rng: language.write_plan(rng, None, Step("add", (0,), SceneGraph((CIRCLE,)))))
    assert "<ins>Start with a red circle.</ins> <des>The picture shows a red circle.</des>" in first
    last = all_wordings(lambda rng: language.write_plan(rng, PAIR, Step("add", (2,), TRIO)))
    parts = [parse_plan(text) for text in last]
    what = "three pink stars above the blue square on a beige background."
    assert {ins for ins, _ in parts} == {f"Add {what}", f"Draw {what}", f"Place {what}"}
    assert {canonicalize(parse(des)) for _, des in parts} == {canonicalize(TRIO)}
    assert len({des for _, des in parts}) == 3


@pytest.mark.parametrize(
    ("step", "before", "words"),
    [
        (
            Step("modify", (0,), SceneGraph((thing(0, "circle", color="green"),))),
            SceneGraph((CIRCLE,)),
            {"Make the red circle green.", "Turn the red circle green.", "Change the red circle to green."},
        ),
        (
            Step("swap", (0, 1), SceneGraph(PAIR.entities, (Relation(1, "left of", 0),))),
            PAIR,
            {
                "Swap the red circle and the blue square.",
                "Exchange the red circle and the blue square.",
                "Let the red circle and the blue square change places.",
            },
        ),
        (
            Step("move", (0,), SceneGraph(PAIR.entities, (Relation(0, "above", 1),))),
            PAIR,
            {
                "Move the red circle above the blue square.",
                "Shift the red circle above the blue square.",
                "Bring the red circle above the blue square.",
            },
        ),
        (
            Step("replace", (0, 9), SceneGraph((thing(9, "heart", color="red"),))),
            SceneGraph((CIRCLE,)),
            {
                "Replace the red circle with a red heart.",
                "Turn the red circle into a red heart.",
                "Exchange the red circle for a red heart.",
            },
        ),
        (
            Step("remove", (1,), SceneGraph((CIRCLE,))),
            PAIR,
            {"Remove the blue square.", "Erase the blue square.", "Take away the blue square."},
        ),
        (
            Step("add", (1,), PAIR),
            SceneGraph((CIRCLE,)),
            {
                "Add a blue square right of the red circle.",
                "Draw a blue square right of the red circle.",
                "Place a blue square right of the red circle.",
            },
        ),
    ],
)
def test_instructions_of_each_operation(step, before, words):
    assert all_wordings(lambda rng: language.write_step_instruction(rng, before, step)) == words


def test_temporary_things_are_drawn_for_now():
    asked = SceneGraph((thing(0, "circle"), thing(1, "square", color="green"), STARS), (LEFT,))

    def ending(before, step):
        said = all_wordings(lambda rng: language.write_step_instruction(rng, before, step, asked))
        return {text.endswith(" for now.") for text in said}

    circle, square = SceneGraph((CIRCLE,)), thing(1, "square", color="green")
    assert ending(None, Step("add", (0,), circle)) == {False}
    assert ending(circle, Step("add", (1,), PAIR)) == {True}
    right = SceneGraph((CIRCLE, square), (LEFT,))
    assert ending(PAIR, Step("modify", (1,), right)) == {False}
    assert ending(circle, Step("add", (1,), SceneGraph((CIRCLE, square), (Relation(0, "above", 1),)))) == {True}
    assert ending(circle, Step("add", (1,), SceneGraph((CIRCLE, square)))) == {False}
    assert ending(PAIR, Step("add", (2,), SceneGraph((*PAIR.entities, STARS), (LEFT,)))) == {False}
    assert ending(circle, Step("add", (5,), SceneGraph((CIRCLE, thing(5, "ring"))))) == {True}
    assert ending(PAIR, Step("add", (5,), SceneGraph((*PAIR.entities, thing(5, "ring")), (LEFT,)))) == {True}


def test_instructions_are_short():
    words = []
    for seed in range(1000):
        rng, told = story(seed)
        words += [len(language.write_step_instruction(rng, before, step).split()) for before, step in told.pairs()]
    assert np.mean(words) < 10
    assert np.percentile(words, 99) < 30


def test_agreement_states_what_is_to_come():
    asked = SceneGraph((CIRCLE, SQUARE, STARS), (LEFT,))
    said = all_wordings(lambda rng: inspections.write_agreement(rng, PAIR, asked))
    assert {text.split(". ")[0] for text in said} == {"As planned", "All is as planned", "The picture is as planned"}
    to_come = ("Three pink stars are still to come.", "Still to come: three pink stars.")
    assert {text.split(". ")[1] for text in said} == {*to_come, "Three pink stars are not drawn yet."}
    done = all_wordings(lambda rng: inspections.write_agreement(rng, PAIR, PAIR))
    ends = {"Nothing is missing.", "The picture is complete.", "All that was asked for is there."}
    assert {next(e for e in ends if text.endswith(e)) for text in done} == ends


def test_later_corrections_are_announced():
    later = SceneGraph((thing(0, "circle", color="green", size="small"), SQUARE), (Relation(0, "above", 1),))
    here = SceneGraph((*PAIR.entities, thing(7, "ring", color="black")), (LEFT,))
    text = inspections.write_agreement(np.random.default_rng(0), here, later)
    assert text.split(". ", 1)[1] == (
        "The red circle will become green. The red circle will become small. The black ring will not stay. "
        "The red circle will move above the blue square."
    )


def test_agreements_never_ask_for_a_refinement():
    for seed in range(300):
        rng, told = story(seed)
        for step in told.steps:
            text = inspections.write_agreement(rng, step.graph, told.asked)
            assert parse_refine(text) is None
            assert text.endswith(".") and text[0].isupper()
            complete = text.endswith(("Nothing is missing.", "is complete.", "All that was asked for is there."))
            # Later steps may settle what the prompt leaves open; after the last one nothing is to come.
            assert complete or step is not told.steps[-1]


@pytest.mark.parametrize(
    ("kind", "entity", "wrong", "analyses", "correction"),
    [
        (
            "color",
            0,
            thing(0, "circle", color="green"),
            {
                "The circle is green, not red.",
                "The green circle should be red.",
                "A red circle was planned, not green.",
                "The green circle should not be green but red.",
            },
            "Make the green circle red.",
        ),
        (
            "shape",
            2,
            thing(2, "ring", 3, color="pink"),
            {
                "There are three pink rings, not three stars.",
                "The three pink rings should be three stars.",
                "Three pink stars were planned, not three rings.",
            },
            "Replace the three pink rings with three pink stars.",
        ),
        (
            "count",
            2,
            thing(2, "star", 2, color="pink"),
            {
                "There are two pink stars, not three.",
                "Three pink stars were planned, not two.",
                "Two pink stars are there, but three were planned.",
            },
            "Add one more pink star.",
        ),
        (
            "count",
            0,
            thing(0, "circle", 2, color="red"),
            {
                "There are two red circles, not one.",
                "One red circle was planned, not two.",
                "Two red circles are there, but one was planned.",
            },
            "Remove one red circle.",
        ),
        (
            "missing",
            1,
            None,
            {"The blue square is missing.", "There is no blue square.", "The blue square is not drawn."},
            "Add a blue square right of the red circle and below the three pink stars.",
        ),
        (
            "extra",
            None,
            thing(9, "heart", color="brown"),
            {
                "There is a brown heart that was not planned.",
                "A brown heart is there, not planned.",
                "Nothing in the plan says a brown heart.",
            },
            "Remove the brown heart.",
        ),
    ],
)
def test_faults_and_their_corrections(kind, entity, wrong, analyses, correction):
    said = all_wordings(lambda rng: inspections.write_fault(rng, kind, TRIO, entity, wrong))
    assert {text.split(" <refine>")[0] for text in said} == analyses
    corrections = {parse_refine(text) for text in said}
    assert correction in corrections and len(corrections) > 1


@pytest.mark.parametrize(("right", "wrong"), [("small", "large"), ("large", "small"), ("large", "medium")])
def test_faults_of_size_are_those_of_a_stated_size(right, wrong):
    planned = SceneGraph((thing(0, "circle", color="red", size=right),))
    seen = thing(0, "circle", color="red", size=wrong)
    said = all_wordings(lambda rng: inspections.write_fault(rng, "size", planned, 0, seen))
    assert {text.split(" <refine>")[0] for text in said} == {
        f"The red circle is {wrong}, not {right}.",
        f"The {wrong} red circle should be {right}.",
        f"A {right} red circle was planned, not {wrong}.",
        f"The {wrong} red circle should not be {wrong} but {right}.",
    }
    assert f"Make the {wrong} red circle {right}." in {parse_refine(text) for text in said}
    for size in ("small", "medium", "large"):
        with pytest.raises(SceneError, match="entity 0: the size"):
            inspections.write_fault(
                np.random.default_rng(0), "size", TRIO, 0, thing(0, "circle", color="red", size=size)
            )


def test_faults_of_place_name_the_relation_or_the_place():
    said = all_wordings(lambda rng: inspections.write_fault(rng, "place", TRIO, 0, CIRCLE, LEFT))
    assert {text.split(" <refine>")[0] for text in said} == {
        "The red circle is not left of the blue square.",
        "The red circle should be left of the blue square.",
        "The red circle is in the wrong place, not left of the blue square.",
    }
    assert "Move the red circle left of the blue square." in {parse_refine(text) for text in said}
    placed = SceneGraph((thing(0, "circle", color="red", place="top left"),))
    said = all_wordings(lambda rng: inspections.write_fault(rng, "place", placed, 0, thing(0, "circle", place="right")))
    analysis = "The red circle is on the right, not at the top left."
    assert f"{analysis} <refine>Move the red circle to the top left.</refine>" in said
    three = SceneGraph((thing(0, "heart", 3, color="red", place="top left, right, bottom"),))
    said = all_wordings(lambda rng: inspections.write_fault(rng, "place", three, 0, thing(0, "heart", place="top")))
    planned = "at the top left, on the right and at the bottom"
    assert {text.split(" <refine>")[0] for text in said} == {
        f"One of the three red hearts is at the top, not {planned}.",
        f"The three red hearts should be {planned}.",
        f"One of the three red hearts is at the top, but the plan says {planned}.",
    }
    moved = "Move the three red hearts to the top left, to the right and to the bottom."
    assert moved in {parse_refine(text) for text in said}
    assert parse_instruction(moved).changes == {"place": "top left, right, bottom"}
    with pytest.raises(SceneError, match="no place or relation is wrong"):
        inspections.write_fault(np.random.default_rng(0), "place", placed, 0, placed.entities[0])


@pytest.mark.parametrize("kind", ["color", "shape", "count", "size"])
def test_faultless_pictures_have_no_fault(kind):
    with pytest.raises(SceneError, match="entity 0"):
        inspections.write_fault(np.random.default_rng(0), kind, TRIO, 0, CIRCLE)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_fault_of_a_draft_has_words_and_its_correction_undoes_it(name):
    seen = collections.Counter()
    for seed in range(250):
        rng, told = story(seed)
        graph = told.steps[-1].graph
        scenes = place_scenes(rng, [Step("add", tuple(e.id for e in graph.entities), graph)], PLACEMENTS[name])
        if scenes is None:
            continue
        entity = graph.entities[int(rng.integers(len(graph.entities)))]
        draft, kind = corrupt(rng, scenes[0], graph, entity.id, PLACEMENTS[name])
        text = inspections.write_draft_fault(rng, kind, graph, entity.id, draft)
        correction = parse_refine(text)
        seen[kind] += 1
        if kind != "count":
            order = parse_instruction(correction)
            assert order.operation == {"missing": "add", "shape": "replace", "place": "move"}.get(kind, "modify")
        if kind in ("color", "size"):
            assert order.changes == {kind: entity.attributes[kind]}
        if kind == "shape":
            assert order.graph.find(order.entities[1]).noun == entity.noun
    assert set(seen) == set(FAULTS)


def changed(graph, number, **fields):
    entities = tuple(msgspec.structs.replace(e, **fields) if e.id == number else e for e in graph.entities)
    return SceneGraph(entities, graph.relations, graph.background)


@pytest.mark.parametrize(
    ("plan", "analysis", "correction"),
    [
        (
            changed(TRIO, 0, attributes={"color": "green"}),
            "The prompt asks for a red circle, not green.",
            "Plan a red circle.",
        ),
        (changed(TRIO, 0, noun="ring"), "The prompt asks for a red circle, not a ring.", "Plan a red circle."),
        (changed(TRIO, 2, count=2), "The prompt asks for three pink stars, not two.", "Plan three pink stars."),
        (changed(TRIO, 0, count=2), "The prompt asks for one red circle, not two.", "Plan one red circle."),
        (
            SceneGraph(PAIR.entities, (Relation(1, "left of", 0),)),
            "The prompt wants the red circle left of the blue square, not right of it.",
            "Plan the red circle left of the blue square.",
        ),
        (
            SceneGraph((*PAIR.entities, thing(9, "heart", color="brown")), (LEFT,)),
            "The prompt does not ask for a brown heart.",
            "Plan no brown heart.",
        ),
        (
            SceneGraph((CIRCLE,), (), "lavender"),
            "The prompt asks for a beige background, not lavender.",
            "Plan a beige background.",
        ),
    ],
)
def test_conflicts_of_a_plan_with_its_prompt(plan, analysis, correction):
    said = all_wordings(lambda rng: inspections.write_conflict(rng, TRIO, plan))
    assert analysis in {text.split(" <refine>")[0] for text in said}
    assert correction in {parse_refine(text) for text in said}
    assert len({text.split(" <refine>")[0] for text in said}) == len({parse_refine(text) for text in said}) == 3


def test_an_incomplete_plan_is_no_conflict():
    for number in range(len(TRIO.entities)):
        part = SceneGraph(TRIO.entities[: number + 1])
        with pytest.raises(SceneError, match="does not contradict"):
            inspections.write_conflict(np.random.default_rng(0), TRIO, part)


def test_plans_leave_out_what_places_imply():
    places = ((CIRCLE, "bottom left"), (SQUARE, "top right"))
    placed = [Entity(e.id, e.noun, e.count, e.attributes | {"place": word}) for e, word in places]
    graph = SceneGraph(tuple(placed), (LEFT,))
    first = Step("add", (0,), SceneGraph(tuple(placed[:1])))
    plan = language.write_plan(np.random.default_rng(1), first.graph, Step("add", (1,), graph))
    assert plan == (
        "<ins>Draw a blue square at the top right.</ins> "
        "<des>Now the picture shows a red circle at the bottom left and a blue square at the top right.</des>"
    )
    said = parse(plan.partition("<des>")[2].removesuffix("</des>"))
    assert said.relations == () and find_differences(PAIR, said) == []
    right = Relation(0, "right of", 1)
    (difference,) = find_differences(SceneGraph(PAIR.entities, (right,)), said)
    assert (difference.kind, difference.asked, difference.said) == ("relation", "right of", "left of")
    (unsaid,) = find_differences(SceneGraph(PAIR.entities, (Relation(0, "above", 1),)), said)
    assert unsaid.said == "below"


def test_words_fit_real_pictures_too():
    graph = SceneGraph(
        (thing(0, COCO[16], color="brown"), thing(1, "umbrella", material="wooden")), (Relation(0, "on top of", 1),)
    )
    text = language.write_description(np.random.default_rng(1), graph)
    assert text.endswith("a brown dog and a wooden umbrella. The dog is on top of the umbrella.")
    step = Step("add", (0, 1), graph)
    text = language.write_step_instruction(np.random.default_rng(0), None, step)
    assert text.endswith("a brown dog and a wooden umbrella. The brown dog is on top of the umbrella.")
    assert canonicalize(apply_instruction(None, make_instruction(None, step))) == canonicalize(graph)
