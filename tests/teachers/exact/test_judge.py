"""The exact judge on hand-made plans, every kind of fault, and thousands of correct plans and pictures."""

import collections

import numpy as np
import pytest
from msgspec.structs import replace

from pdgen.sequence.trajectory import format_inspection, format_plan
from pdgen.shapes import language
from pdgen.shapes.graph import COLORS, PLACES, Entity, Relation, SceneGraph, Step, grow
from pdgen.shapes.matching import align, find_differences
from pdgen.shapes.painter import paint
from pdgen.shapes.parse import canonicalize, parse
from pdgen.shapes.placement import LATTICE, PLACEMENTS
from pdgen.shapes.world import BACKGROUNDS, SHAPES, Scene, place_scenes
from pdgen.synthesis.faults import FAULTS, corrupt
from pdgen.synthesis.rewrite import rewrite
from pdgen.synthesis.sample import TASKS, make_prompt_graph, sample_graph
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.protocols import Declined, Judge, TeacherError

JUDGE: Judge = ExactJudge()
WORDINGS = 12  # seeds, so that each wording of a fault is met
TWO = "a photo of a red circle left of a blue square"


def plan(instruction, description):
    return format_plan(instruction, description)


FIRST = plan("Start with a red circle.", "The picture shows a red circle.")
SECOND = plan("Add a blue square right of the red circle.", "The picture shows a red circle left of a blue square.")

AGREEING = [
    # Neither what is not drawn yet nor what the prompt leaves open is a fault.
    (TWO, [FIRST], "a blue square is still to come"),
    (TWO, [FIRST, SECOND], "nothing is missing"),
    (TWO, [plan("Draw a small red circle on the left.", "There is a small red circle on the left.")], "a blue square"),
    (TWO, [plan("Draw a red circle in the centre.", "There is a red circle in the centre.")], "a blue square"),
    ("a photo of a circle", [plan("Draw a green circle.", "There is a green circle.")], "nothing is missing"),
    ("draw a circle and a star", [plan("Draw a pink star.", "There is a pink star.")], "a circle is still to come"),
    (TWO, [plan("Draw a red circle on a beige background.", "There is a red circle on a beige background.")], "come"),
    # The same relation told from its other end; a description that leaves the relation out.
    (TWO, [FIRST, plan("Add a blue square right of the red circle.", "There is a red circle and a blue square.")], ""),
    # The instruction keeps the existing background.
    ("draw a star on a beige background", [plan("Draw a star.", "There is a star on a beige background.")], "nothing"),
    # Drawn in another order than named; looks distinguish the things.
    ("draw a star and a red star", [plan("Draw a red star.", "There is a red star.")], "a star is still to come"),
    # A detour: something extra is removed, something wrong corrected.
    (
        TWO,
        [
            plan("Draw a green circle.", "There is a green circle."),
            plan("Make the green circle red.", "There is a red circle."),
        ],
        "a blue square",
    ),
    (
        TWO,
        [
            plan("Draw a red circle and a star.", "There is a red circle and a star."),
            plan("Remove the star.", "There is a red circle."),
        ],
        "a blue square",
    ),
    # "The circle" is the one without further attributes.
    (
        "draw a red circle",
        [
            plan("Draw a red circle and a circle.", "There is a red circle and a circle."),
            plan("Remove the circle.", "There is a red circle."),
        ],
        "nothing is missing",
    ),
    # Drawn for now, on purpose, and still there at the next step.
    (TWO, [plan("Draw a green circle for now.", "There is a green circle.")], "a blue square"),
    (
        TWO,
        [
            plan("Draw a red circle and a star for now.", "There is a red circle and a star."),
            plan(
                "Add a blue square right of the red circle.", "There is a red circle left of a blue square, and a star."
            ),
        ],
        "nothing is missing",
    ),
]


@pytest.mark.parametrize(("prompt", "plans", "words"), AGREEING)
def test_plans_that_agree(prompt, plans, words):
    verdict = JUDGE.judge_plan(prompt, plans)
    assert verdict.accept, verdict
    assert words in verdict.analysis


STARS = "two stars in the centre and at the bottom right"
PLACES_SWAPPED = "There is a red circle on the right and a blue square on the left."
CONFLICTING = [
    # (prompt, plans, words of the analysis)
    (TWO, [plan("Draw a green circle.", "There is a green circle.")], ["red", "green"]),
    (TWO, [plan("Draw a red star.", "There is a red star.")], ["circle", "star"]),
    (TWO, [plan("Draw two red circles.", "There are two red circles.")], ["one red circle", "two"]),
    (TWO, [plan("Draw a red circle and a star.", "There is a red circle and a star.")], ["star"]),
    (
        TWO,
        [plan("Draw a red circle right of a blue square.", "There is a red circle right of a blue square.")],
        ["left of", "right of"],
    ),
    (TWO, [plan("Draw a red circle above a blue square.", "There is a red circle above a blue square.")], ["left of"]),
    # An earlier fault is not reported again, a new one is.
    (
        TWO,
        [
            plan("Draw a green circle for now.", "There is a green circle."),
            plan("Add a star.", "There is a green circle and a star."),
        ],
        ["star"],
    ),
    ("a small circle", [plan("Draw a large red circle.", "There is a large red circle.")], ["small", "large"]),
    ("an outlined circle", [plan("Draw a solid circle.", "There is a solid circle.")], ["outlined", "solid"]),
    ("a circle on the left", [plan("Draw a circle at the top.", "There is a circle at the top.")], ["left", "top"]),
    (
        "a circle on a beige background",
        [plan("Draw a circle on a lavender background.", "There is a circle on a lavender background.")],
        ["beige", "lavender"],
    ),
    # Contradictions by places, also of several things, and by two relations together.
    (
        "two stars left of a square",
        [plan(f"Draw {STARS}, and a square on the left.", f"There are {STARS}, and a square on the left.")],
        ["left of"],
    ),
    (TWO, [plan("Draw a red circle on the right and a blue square on the left.", PLACES_SWAPPED)], ["left of"]),
    # Nothing is left of the left edge; neighbours that are also above or below need not be left of each other.
    (TWO, [plan("Draw a blue square at the top left.", "There is a blue square at the top left.")], ["left of"]),
    (TWO, [plan("Draw a red circle on the right.", "There is a red circle on the right.")], ["left of"]),
    (
        TWO,
        [
            plan(
                "Draw a red circle on the left and a blue square at the top.",
                "There is a red circle on the left and a blue square at the top.",
            )
        ],
        ["left of"],
    ),
    (
        "Draw a red circle, a star and a blue square. The red circle is left of the blue square.",
        [
            plan(
                "Draw a blue square left of a star, and a red circle right of the star.",
                "There is a blue square left of a star, and a red circle right of the star.",
            )
        ],
        ["left of"],
    ),
    # Only the instruction is wrong.
    (
        TWO,
        [FIRST, plan("Add a green square right of the red circle.", "There is a red circle and a square.")],
        ["blue", "green"],
    ),
    (TWO, [FIRST, SECOND, plan("Remove the red circle.", "There is a blue square.")], ["a red circle", "away"]),
    # The two parts disagree: something drawn is not described, or something described is not drawn.
    (
        TWO,
        [FIRST, plan("Add a blue square right of the red circle.", "There is a blue square.")],
        ["red circle", "leaves it out"],
    ),
    (
        TWO,
        [plan("Draw a red circle.", "There is a red circle left of a blue square.")],
        ["a blue square", "no step draws it"],
    ),
    ("draw two stars", [plan("Draw two red stars.", "There are two blue stars.")], ["two red stars", "blue"]),
    ("draw a star", [plan("Draw a star on the left.", "There is a star on the right.")], ["left", "right"]),
    (
        "draw a star",
        [plan("Draw a star on a beige background.", "There is a star on a lavender background.")],
        ["a beige background", "lavender"],
    ),
    ("draw a star and a ring", [plan("Draw a star above a ring.", "There is a star below a ring.")], ["above the"]),
    # The instruction names something absent.
    (TWO, [FIRST, plan("Make the blue square green.", "There is a red circle.")], ["the blue square", "not there"]),
]


def assert_rejected(words, verdicts):
    """Check that all verdicts reject in valid texts, and that each word occurs in some of them."""
    assert not any(v.accept for v in verdicts), verdicts
    texts = [format_inspection(v.analysis, v.correction).lower() for v in verdicts]
    for word in words:
        assert any(word in text for text in texts), texts


@pytest.mark.parametrize(("prompt", "plans", "words"), CONFLICTING)
def test_plans_that_contradict(prompt, plans, words):
    assert_rejected(words, [ExactJudge(seed).judge_plan(prompt, plans) for seed in range(WORDINGS)])
    assert JUDGE.judge_plan(prompt, plans) == JUDGE.judge_plan(prompt, plans)


def test_texts_that_are_not_understood_are_declined():
    for prompt, text, word in (
        ("a fluffy circle", FIRST, "fluffy"),
        (TWO, plan("Draw a red blob.", "There is a red circle."), "blob"),
        (TWO, plan("Draw a red circle.", "There is a red blob."), "blob"),
        (TWO, "Draw a red circle.", "not a plan"),
    ):
        with pytest.raises(Declined, match=f"exact judge: .*{word}"):
            JUDGE.judge_plan(prompt, [text])
    with pytest.raises(TeacherError, match="no plan to judge"):
        JUDGE.judge_plan(TWO, [])
    with pytest.raises(Declined, match="blob"):
        JUDGE.judge_picture(plan("Draw a red circle.", "There is a red blob."), paint(Scene(())))
    with pytest.raises(ValueError, match="squares of 32 pixels"):
        JUDGE.judge_picture(FIRST, np.zeros((16, 16, 3), np.uint8))


def story(seed, share=0.5, placement=LATTICE):
    """Make (rng, prompt graph, prompt, steps, scenes) of a random trajectory."""
    rng = np.random.default_rng((11, seed))
    task = TASKS[seed % len(TASKS)]
    scenes = None
    while scenes is None:
        graph = sample_graph(rng, task)
        asked = make_prompt_graph(rng, graph, task)
        steps = rewrite(rng, grow(rng, graph), share)
        scenes = place_scenes(rng, steps, placement)
    return rng, asked, language.write_prompt(rng, asked, task), steps, scenes


both = pytest.mark.parametrize(("name", "size"), [("lattice", 64), ("free", 32)])


def contradictions(asked, graph):
    """Return what contradicts the prompt, by ids; the judge has only the words."""
    return {d for d in find_differences(asked, graph) if d.said is not None} if graph is not None else set()


@pytest.mark.slow
@both
def test_right_pictures_and_consistent_plans_raise_no_alarm(name, size):
    count = 0
    for seed in range(112):
        rng, asked, prompt, steps, scenes = story(seed, placement=PLACEMENTS[name])
        plans, before, previous = [], None, None
        for step, scene in zip(steps, scenes):
            mistaken = [*plans, language.write_plan(rng, before, step)]
            plans.append(language.write_plan(rng, before, step, asked))
            picture = paint(scene, size)
            verdict = JUDGE.judge_picture(plans[-1], picture, previous)
            assert verdict.accept, (plans, verdict)
            # In a detour a step may contradict the prompt on purpose, if it says that this is for now.
            verdict = JUDGE.judge_plan(prompt, plans)
            assert verdict.accept, (prompt, plans, verdict)
            contradicts = bool(contradictions(asked, step.graph) - contradictions(asked, before))
            verdict = JUDGE.judge_plan(prompt, mistaken)
            assert verdict.accept is not contradicts, (prompt, mistaken, verdict)
            before, previous = step.graph, picture
            count += 1
    assert count > 200


@pytest.mark.slow
@both
def test_every_kind_of_faulty_draft_is_caught_and_named(name, size):
    seen = collections.Counter()
    for seed in range(90):
        rng, _, _, steps, scenes = story(seed, share=0.0, placement=PLACEMENTS[name])
        before = previous = None
        for step, scene in zip(steps, scenes):
            text = language.write_plan(rng, before, step)
            for entity in step.graph.entities:
                draft, kind = corrupt(rng, scene, step.graph, entity.id, PLACEMENTS[name])
                verdict = JUDGE.judge_picture(text, paint(draft, size), previous)
                assert not verdict.accept, (kind, text)
                seen[kind] += 1
                right, wrong = entity.attributes["color"], {o.color for o in draft.objects_of(entity.id)}
                if kind == "color":
                    assert right in verdict.analysis + verdict.correction and wrong.pop() in verdict.analysis
                elif kind in ("missing", "shape"):
                    assert entity.noun in verdict.analysis + verdict.correction
            before, previous = step.graph, paint(scene, size)
    assert seen.keys() == set(FAULTS) and min(seen.values()) >= 5


def wrong_graphs(rng, asked, graph):
    """Yield (kind, graph) with one contradiction of ``asked`` each."""
    for e in graph.entities:
        try:
            right = asked.find(e.id)
        except KeyError:
            continue
        nouns = {x.noun for g in (asked, graph) for x in g.entities}
        colors = {x.attributes.get("color") for g in (asked, graph) for x in g.entities}
        changes = {
            "noun": replace(e, noun=str(rng.choice([s for s in SHAPES if s not in nouns]))),
            "count": replace(e, count=e.count + 1),
        }
        words = {
            "color": [c for c in COLORS if c not in colors],
            "size": ["medium"],
            "place": [p for p in PLACES if p != e.attributes.get("place")],
        }
        for key in words.keys() & right.attributes.keys():
            changes[key] = replace(e, attributes=e.attributes | {key: str(rng.choice(words[key]))})
        for kind, changed in changes.items():
            entities = tuple(changed if x.id == e.id else x for x in graph.entities)
            yield kind, SceneGraph(entities, () if kind == "place" else graph.relations, graph.background)
        extra = Entity(99, changes["noun"].noun, 1, {"color": words["color"][0]})
        yield "extra", SceneGraph((*graph.entities, extra), graph.relations, graph.background)
    for r in graph.relations:
        if r in asked.relations:
            turned = Relation(r.reference, r.kind, r.subject)
            relations = tuple(turned if x is r else x for x in graph.relations)
            yield "relation", SceneGraph(graph.entities, relations, graph.background)
    if asked.background is not None:
        other = BACKGROUNDS[BACKGROUNDS.index(asked.background) - 1]
        yield "background", SceneGraph(graph.entities, graph.relations, other)


def test_every_kind_of_contradiction_is_caught():
    seen = collections.Counter()
    for seed in range(100):
        rng, asked, prompt, steps, _ = story(seed, share=0.0)
        last = steps[-1].graph
        for kind, graph in wrong_graphs(rng, asked, last):
            step = Step("add", tuple(e.id for e in graph.entities), graph)
            verdict = JUDGE.judge_plan(prompt, [language.write_plan(rng, None, step)])
            assert not verdict.accept, (kind, prompt, graph)
            seen[kind] += 1
    assert seen.keys() == {"noun", "count", "color", "size", "place", "extra", "relation", "background"}
    assert min(seen.values()) >= 5


def test_the_seed_decides_only_the_wording():
    text = plan("Draw a green circle.", "There is a green circle.")
    verdicts = [ExactJudge(seed).judge_plan(TWO, [text]) for seed in range(12)]
    assert {v.accept for v in verdicts} == {False}
    assert len({v.analysis for v in verdicts}) > 1
    assert verdicts[3] == ExactJudge(3).judge_plan(TWO, [text])
    assert ExactJudge().name == "exact"


@pytest.mark.parametrize("seed", range(30))
def test_alignment_finds_the_ids_of_the_same_graph_in_other_order(seed):
    rng, _, _, steps, _ = story(seed, share=0.0)
    graph = steps[-1].graph
    read = parse(language.write_description(rng, SceneGraph(graph.entities[::-1], graph.relations, graph.background)))
    assert canonicalize(read) == canonicalize(graph)
    again = align(graph, read)
    assert {e.id: e for e in again.entities} == {e.id: e for e in graph.entities}
    assert align(graph, SceneGraph(())) == SceneGraph(())


@pytest.mark.parametrize(
    ("asked", "said", "match"),
    [
        ("a red circle and a blue square", "a blue circle", {"color": "red"}),
        ("two circles and an outlined circle", "a circle", {"fill": "outlined"}),
        ("a star and a red star", "a red star", {"color": "red"}),
        ("a star left of a ring and a pink star", "a ring and a star right of the ring", {"color": "pink"}),
        ("a red circle", "a blue square", None),
    ],
)
def test_alignment_weighs_noun_colour_count_and_relations(asked, said, match):
    asked, said = parse(asked), parse(said)
    last = align(asked, said).entities[-1]
    same = [e.attributes for e in asked.entities if e.id == last.id]
    assert same == ([] if match is None else [match])
