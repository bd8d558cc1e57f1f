"""Parsing: prompts, descriptions and instructions of random stories are read back; worked examples."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.shapes import language
from pdgen.shapes.graph import (
    COLORS,
    INVERSE,
    PLACES,
    Entity,
    Relation,
    SceneError,
    SceneGraph,
    Step,
    drop_implied,
    join_places,
)
from pdgen.shapes.instruction import EXCHANGED, Instruction, apply_instruction, make_instruction, write_instruction
from pdgen.shapes.lexicon import COCO, NOUNS, add_article, pluralize
from pdgen.shapes.parse import canonicalize, parse, parse_instruction
from pdgen.shapes.world import BACKGROUNDS
from tests.support.stories import story

SEEDS = range(1400)


def thing(number, noun, count=1, **attributes):
    return Entity(number, noun, count, attributes)


def test_prompts_and_descriptions_read_back_as_their_graphs():
    wrong = []
    for seed in SEEDS:
        rng, told = story(seed)
        texts = [(language.write_prompt(rng, told.asked, told.task), told.asked)]
        texts += [(language.write_description(rng, step.graph), drop_implied(step.graph)) for step in told.steps]
        wrong += [text for text, graph in texts if canonicalize(parse(text)) != canonicalize(graph)]
    assert wrong == []


def looks(instruction):
    """List noun and attributes of the entities concerned, in the order of naming if it has a meaning."""
    concerned = [instruction.graph.find(i) for i in instruction.entities]
    found = [(e.noun, e.count, sorted(e.attributes.items())) for e in concerned]
    return sorted(found) if instruction.operation in ("add", "remove") else found


def test_instructions_read_back_and_carried_out_lead_to_the_next_graph():
    operations = set()
    for seed in SEEDS:
        rng, told = story(seed)
        for before, step in told.pairs():
            order = make_instruction(before, step)
            order = msgspec.structs.replace(order, for_now=bool(rng.integers(2)))
            text = write_instruction(rng, order, first=before is None)
            read = parse_instruction(text)
            assert (read.operation, read.changes, read.for_now) == (order.operation, order.changes, order.for_now), text
            assert canonicalize(read.graph) == canonicalize(order.graph), text
            assert looks(read) == looks(order), text
            after = drop_implied(apply_instruction(before, order))
            assert canonicalize(after) == canonicalize(drop_implied(step.graph)), text
            operations.add(read.operation)
    assert operations == {"add", "modify", "swap", "move", "replace", "remove"}


def attributes_strategy():
    values = {"color": COLORS, "size": ("small", "large"), "fill": ("outlined",), "place": PLACES}
    return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in values.items()})


@st.composite
def graphs(draw):
    """Draw any graph in the words of the lexicon, with a noun that begins another's look or name."""
    nouns = st.sampled_from((*NOUNS[:4], "orange", "skis", "sheep", "tv", "tv remote", "hot dog", "dog"))
    parts = draw(st.lists(st.tuples(nouns, st.integers(1, 20), attributes_strategy()), max_size=5))
    each = {n: draw(st.lists(st.sampled_from(PLACES), min_size=n, max_size=n)) for _, n, a in parts if "place" in a}
    parts = [(noun, n, a | ({"place": join_places(each[n])} if n in each else {})) for noun, n, a in parts]
    entities = {(noun, tuple(sorted(a.items()))): (noun, count, a) for noun, count, a in parts}
    entities = [Entity(i, *entity) for i, entity in enumerate(entities.values())]
    pairs = [(a, b) for a in range(len(entities)) for b in range(a)]
    stated = draw(st.lists(st.sampled_from(pairs), max_size=4, unique=True)) if pairs else []
    # Later entities are right of or below earlier ones, so there is no contradiction.
    relations = [Relation(a, draw(st.sampled_from(("right of", "below"))), b) for a, b in stated]
    relations = [r.with_subject(r.reference) if draw(st.booleans()) else r for r in relations]
    backgrounds = (None, *BACKGROUNDS) if entities else BACKGROUNDS
    return SceneGraph(tuple(entities), tuple(relations), draw(st.sampled_from(backgrounds)))


@given(graphs(), st.integers(0, 2**31), st.sampled_from(("composition", "position")))
@settings(max_examples=500)
def test_any_graph_round_trips(graph, seed, task):
    rng = np.random.default_rng(seed)
    assert canonicalize(parse(language.write_prompt(rng, graph, task))) == canonicalize(graph)
    assert canonicalize(parse(language.write_description(rng, graph))) == canonicalize(graph)
    if graph.entities:
        order = language.write_step_instruction(rng, None, Step("add", tuple(e.id for e in graph.entities), graph))
        assert canonicalize(parse_instruction(order).graph) == canonicalize(graph)


@given(graphs())
@settings(max_examples=100)
def test_the_canonical_form_ignores_ids_order_and_direction(graph):
    ids = {e.id: 10 - e.id for e in graph.entities}
    entities = tuple(Entity(ids[e.id], e.noun, e.count, e.attributes) for e in reversed(graph.entities))
    relations = tuple(Relation(ids[r.reference], INVERSE[r.kind], ids[r.subject]) for r in graph.relations)
    assert canonicalize(SceneGraph(entities, relations, graph.background)) == canonicalize(graph)
    if graph.relations:
        assert canonicalize(SceneGraph(graph.entities, graph.relations[1:], graph.background)) != canonicalize(graph)


@pytest.mark.parametrize(
    ("text", "entities", "relations"),
    [
        ("a photo of a bench", [thing(0, "bench")], []),
        ("a photo of three sports balls", [thing(0, "sports ball", 3)], []),
        ("A photo of 3 Sports Balls.", [thing(0, "sports ball", 3)], []),
        ("a photo of a tv remote and a tv", [thing(0, "tv remote"), thing(1, "tv")], []),
        ("a photo of an orange orange", [thing(0, "orange", color="orange")], []),
        ("a photo of an orange and an orange dog", [thing(0, "orange"), thing(1, "dog", color="orange")], []),
        ("a photo of a green skis", [thing(0, "skis", color="green")], []),
        ("a photo of four knifes", [thing(0, "knife", 4)], []),
        ("a photo of two sheeps", [thing(0, "sheep", 2)], []),
        ("a photo of three people", [thing(0, "person", 3)], []),
        ("a photo of a dog right of a teddy bear", [thing(0, "dog"), thing(1, "teddy bear")], [(0, "right of", 1)]),
        ("draw a big black cat", [thing(0, "cat", size="large", color="black")], []),
        ("a star on the left", [thing(0, "star", place="left")], []),
        ("two stars on the left", [thing(0, "star", 2, place="left")], []),
        (
            "three stars at the bottom, on the left and at the top, and a ring on a beige background",
            [thing(0, "star", 3, place="top, left, bottom"), thing(1, "ring")],
            [],
        ),
        (
            "two stars at the top and on the right and on the left of a ring",
            [thing(0, "star", 2, place="top, right"), thing(1, "ring")],
            [(0, "left of", 1)],
        ),
        (
            "three stars, and a ring. The stars are at the top, at the top and in the middle.",
            [thing(0, "star", 3, place="top, top, centre"), thing(1, "ring")],
            [],
        ),
        ("a star on the left of a ring", [thing(0, "star"), thing(1, "ring")], [(0, "left of", 1)]),
        (
            "a star and a ring. The star is in the center and below the ring.",
            [thing(0, "star", place="centre"), thing(1, "ring")],
            [(0, "below", 1)],
        ),
        (
            "a red star, a star, and a ring above the star",
            [thing(0, "star", color="red"), thing(1, "star"), thing(2, "ring")],
            [(2, "above", 1)],
        ),
        (
            "a red star, a blue star, and a ring above the blue star and left of the red star",
            [thing(0, "star", color="red"), thing(1, "star", color="blue"), thing(2, "ring")],
            [(2, "above", 1), (2, "left of", 0)],
        ),
    ],
)
def test_worked_examples(text, entities, relations):
    graph = parse(text)
    assert list(graph.entities) == entities
    assert list(graph.relations) == [Relation(*r) for r in relations]


def test_every_noun_is_read_in_singular_and_plural():
    assert len(COCO) == len(set(COCO)) == 80
    for noun in NOUNS:
        assert parse(f"a photo of {add_article(noun)}") == SceneGraph((thing(0, noun),))
        for form in (pluralize(noun), f"{noun}s"):
            assert parse(f"a photo of two {form}") == SceneGraph((thing(0, noun, 2),))
    assert [
        pluralize(n) for n in ("cross", "bench", "toothbrush", "bus", "knife", "person", "sheep", "wine glass")
    ] == [*("crosses", "benches", "toothbrushes", "buses", "knives", "people", "sheep", "wine glasses")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a photo of a unicorn", "'unicorn' is not understood where a noun is expected"),
        ("a photo of a shiny dog", "'shiny' is not understood where a noun is expected"),
        ("a dog to the left of a big, black cat", "',' is not understood where a noun is expected"),
        ("a photo of", "the text ends where 'a', 'an' or a number is expected"),
        ("", "names nothing"),
        ("a dog near a cat", "'near' is not understood"),
        ("a dog above a cat below a bird", "'below' is not understood"),
        ("a dog on a purple background", "'a' is not understood where a background is expected"),
        ("a dog on a beige background. The background is lavender.", "both 'beige' and 'lavender'"),
        ("a dog. The cat is left of the dog.", "'the cat' is not named before"),
        ("a dog and a cat. The dog is happy.", "'happy' is not understood where a place or relation is expected"),
        ("a red blue dog", "'blue' is not understood where a noun (its color is red) is expected"),
        ("a dog and a dog", "cannot be told apart"),
        ("three dogs on the left and at the top", "entity 0: 2 places for 3 things: 'top, left'"),
        ("a dog on the left and at the top", "entity 0: 2 places for 1 things"),
        ("a dog left of a cat. The cat is left of the dog.", "contradict"),
        ("twenty-one dogs", "'twenty-one' is not understood"),
    ],
)
def test_texts_that_are_not_understood_are_named(text, words):
    with pytest.raises(SceneError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


RED, BLUE = thing(0, "star", color="red"), thing(1, "ring", color="blue")
RINGS, STAR = thing(0, "ring", 2), thing(1, "star", color="red")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("Add a red star.", Instruction("add", (0,), SceneGraph((RED,)))),
        ("Start with a red star on a beige background.", Instruction("add", (0,), SceneGraph((RED,), (), "beige"))),
        (
            "Put a red star left of the blue ring.",
            Instruction("add", (0,), SceneGraph((RED, BLUE), (Relation(0, "left of", 1),))),
        ),
        (
            "Add a red star left of a blue ring.",
            Instruction("add", (0, 1), SceneGraph((RED, BLUE), (Relation(0, "left of", 1),))),
        ),
        (
            "Put the red star below the blue ring.",
            Instruction("move", (0,), SceneGraph((RED, BLUE), (Relation(0, "below", 1),))),
        ),
        ("Move the red star to the left.", Instruction("move", (0,), SceneGraph((RED,)), {"place": "left"})),
        (
            "Move the two rings to the top and to the right and below the red star.",
            Instruction("move", (0,), SceneGraph((RINGS, STAR), (Relation(0, "below", 1),)), {"place": "top, right"}),
        ),
        (
            "Move the red star to the left of the blue ring.",
            Instruction("move", (0,), SceneGraph((RED, BLUE), (Relation(0, "left of", 1),))),
        ),
        (
            "Move the red star to the top and left of the blue ring.",
            Instruction("move", (0,), SceneGraph((RED, BLUE), (Relation(0, "left of", 1),)), {"place": "top"}),
        ),
        ("Make the red star large.", Instruction("modify", (0,), SceneGraph((RED,)), {"size": "large"})),
        ("Turn the red star into a blue ring.", Instruction("replace", (0, 1), SceneGraph((RED, BLUE)))),
        ("Exchange the red star for a blue ring.", Instruction("replace", (0, 1), SceneGraph((RED, BLUE)))),
        ("Exchange the red star and the blue ring.", Instruction("swap", (0, 1), SceneGraph((RED, BLUE)))),
        (
            "Let the red star and the blue ring change colours.",
            Instruction("swap", (0, 1), SceneGraph((RED, BLUE)), {"color": EXCHANGED}),
        ),
        ("Take away the red star and the blue ring.", Instruction("remove", (0, 1), SceneGraph((RED, BLUE)))),
    ],
)
def test_worked_instructions(text, order):
    assert parse_instruction(text) == order


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Admire the red star.", "'admire' is not understood where an instruction is expected"),
        ("Move the red star.", "'.' is not understood where a place or relation is expected"),
        ("Make the red star nicer.", "'nicer' is not understood where a new colour, size or fill is expected"),
        ("Swap the red star.", "'.' is not understood where 'and' is expected"),
        ("Remove the red star. Add a ring.", "'add' is not understood where the end is expected"),
    ],
)
def test_instructions_that_are_not_understood(text, words):
    with pytest.raises(SceneError) as caught:
        parse_instruction(text)
    assert words in str(caught.value)


def test_an_instruction_applies_only_to_what_is_there():
    there = SceneGraph((RED,))
    with pytest.raises(SceneError, match="remove: the blue ring is not there"):
        apply_instruction(there, Instruction("remove", (1,), SceneGraph((BLUE,))))
    with pytest.raises(SceneError, match="add: the red star is there"):
        apply_instruction(there, Instruction("add", (0,), SceneGraph((RED,))))
    nowhere = Step("move", (0,), SceneGraph((RED, BLUE)))
    with pytest.raises(SceneError, match="does not say where to"):
        make_instruction(SceneGraph((RED, BLUE), (Relation(0, "above", 1),)), nowhere)
