"""What is held out from training: its amount, and its absence from the records of every subset."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest
from msgspec.structs import replace

from pdgen.sequence.trajectory import parse_plan
from pdgen.shapes import language
from pdgen.shapes.graph import COLORS, INVERSE, Step, drop_implied
from pdgen.shapes.held_out import find_unstated, is_held_out, is_held_out_look, is_held_out_relation
from pdgen.shapes.layout import RELATIONS
from pdgen.shapes.parse import parse
from pdgen.shapes.placement import PLACEMENTS
from pdgen.shapes.world import SHAPES, find_relations, place_scenes, shows_held_out
from pdgen.synthesis.faults import FAULTS
from pdgen.synthesis.prompts import make_story
from pdgen.synthesis.sample import TASKS
from pdgen.synthesis.self_sampling import judge_sampled_plan, make_self_sampled
from pdgen.synthesis.settings import Alignment, Conflict, DatasetSettings, MultiTurn
from pdgen.synthesis.story import HELD_OUT, Rejected
from pdgen.synthesis.subsets import make_samples
from tests.support.kept_out import is_kept_out, kept_out, of_graph, of_plan, of_segment, scanned
from tests.support.shapes_records import ASSUMED, EXACT
from tests.support.stories import entity, graph, story, thing

SETTINGS = DatasetSettings(
    tasks=dict.fromkeys(TASKS, 0.1) | {"composition": 0.4},
    multi_turn=MultiTurn(count=60, fault_rate=0.6),
    conflict=Conflict(positive=10, negative=80),
    alignment=Alignment(positive=10, negative=110),
    rewritten=0.5,
)


def model(prompts, seeds):
    """A model that plans the whole prompt, every second time with other colours, held out or not."""
    plans = []
    for prompt, seed in zip(prompts, seeds):
        rng = np.random.default_rng(seed)
        said = parse(prompt)
        if seed % 2:
            colors = rng.permutation(COLORS).tolist()
            other = tuple(replace(e, attributes=e.attributes | {"color": c}) for e, c in zip(said.entities, colors))
            said = replace(said, entities=other)
        plans.append(language.write_plan(rng, None, Step("add", tuple(e.id for e in said.entities), said)))
    return plans


@pytest.fixture(scope="module", params=PLACEMENTS)
def made(request):
    """Samples of every subset; "self" holds conflicts in plans written by a model."""
    placement = PLACEMENTS[request.param]
    samples = {
        subset: make_samples(SETTINGS, dataclasses.replace(ASSUMED, placement=placement), subset, range(count))
        for subset, count in (("multi_turn", 60), ("conflict", 90), ("alignment", 120))
    }
    sampled = DatasetSettings(tasks={"color_attr": 1.0, "colors": 1.0}, conflict=Conflict(20, 30, variant="self"))
    return samples | {
        "self": make_self_sampled(sampled, dataclasses.replace(EXACT, placement=placement), range(50), model)
    }


@pytest.fixture(scope="module")
def told(made):
    """List, by subset, every segment and what it says or shows."""
    return {name: [(s, of_segment(s)) for r in samples.records for s in r.segments] for name, samples in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["multi_turn", "conflict", "alignment", "self"])
def test_no_record_says_or_shows_what_is_held_out(told, subset):
    assert len(told[subset]) > 200
    assert [(s.stage, getattr(s, "text", ""), found) for s, said in told[subset] if (found := kept_out(said))] == []


@pytest.mark.slow
def test_the_records_have_faults_of_every_kind(made):
    def noted(*subsets):
        notes = (r.scene.get("note", "") for subset in subsets for r in made[subset].records)
        return collections.Counter(re.findall(r"\w+", " ".join(notes)))

    drawn, planned = noted("multi_turn", "alignment"), noted("conflict")
    assert min(drawn[kind] for kind in FAULTS) >= 5, drawn
    assert min(planned[kind] for kind in ("color", "shape", "count", "relation", "extra")) >= 3, planned


@pytest.mark.slow
def test_all_that_is_not_held_out_occurs(told):
    said = set().union(*(said for segments in told.values() for _, said in segments))
    assert said >= {f"{c} {n}" for c in COLORS for n in SHAPES if not is_kept_out(f"{c} {n}")}


def test_rejected_plans_and_prompts_are_counted(made):
    assert made["self"].rejected[HELD_OUT] >= 3
    settings = DatasetSettings(multi_turn=MultiTurn(count=3), rewritten=0)
    prompts = ["a red square and a green circle", "a green circle", "a red circle left of a green diamond"]
    samples = make_samples(settings, ASSUMED, "multi_turn", range(3), prompts)
    assert samples.rejected[HELD_OUT] >= 2
    assert {r.segments[0].text for r in samples.records} == {"a green circle"}


@pytest.mark.parametrize(
    "plan",
    [
        "<ins>Add a red square.</ins><des>The picture shows a square.</des>",
        "<ins>Add a green square.</ins><des>The picture shows a red square.</des>",
        "<ins>Make the green square red.</ins><des>The picture shows a green square.</des>",
        "<ins>Add a pink circle left of a green diamond.</ins>"
        "<des>The picture shows a pink circle and a green diamond.</des>",
    ],
)
def test_a_model_s_plan_that_names_it_in_either_part_is_rejected(plan):
    rng = np.random.default_rng(0)
    green = make_story(rng, DatasetSettings(), EXACT, "a green square")
    with pytest.raises(Rejected, match=HELD_OUT):
        judge_sampled_plan(rng, EXACT, green, plan)


def test_the_rule_is_that_of_the_digests_and_holds_out_about_a_tenth():
    pairs = {(c, n) for c in COLORS for n in SHAPES if is_held_out_look(c, n)}
    assert {f"{c} {n}" for c, n in pairs} == {f"{c} {n}" for c in COLORS for n in SHAPES if is_kept_out(f"{c} {n}")}
    assert 6 <= len(pairs) <= 14
    triples = [(a, k, b) for a, k, b in itertools.product(SHAPES, RELATIONS, SHAPES) if is_held_out_relation(a, k, b)]
    assert 24 <= len(triples) <= 56  # of 360, each named twice
    assert {(b, INVERSE[k], a) for a, k, b in triples} == {*triples}
    assert not any(a == b for a, _, b in triples)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_layout_shows_a_relation_that_is_held_out_only_where_it_is_stated(name):
    circle, diamond = entity(0), entity(1, "diamond", color="green")
    free = graph(circle, diamond)
    assert [(r.subject, r.kind, r.reference) for r in find_unstated(free)] == [(0, "left of", 1)]
    shown = collections.Counter()
    for seed in range(100):
        (scene,) = place_scenes(np.random.default_rng(seed), [Step("add", (0, 1), free)], PLACEMENTS[name])
        shown.update(find_relations(*(scene.objects_of(i)[0] for i in (0, 1))))
        assert not shows_held_out(scene.objects)
    assert not shown["left of"] and min(shown[kind] for kind in ("right of", "above", "below")) > 10
    stated = graph(circle, diamond, relations=[(0, "left of", 1)])
    assert is_held_out(stated) and find_unstated(stated) == []
    assert find_unstated(graph(circle, diamond, relations=[(1, "right of", 0)])) == []
    (scene,) = place_scenes(np.random.default_rng(0), [Step("add", (0, 1), stated)], PLACEMENTS[name])
    assert shows_held_out(scene.objects)


@pytest.mark.parametrize(
    ("objects", "shown"),
    [
        ((thing(color="red", shape="square"),), True),
        ((thing(color="green", shape="square"),), False),
        ((thing(0, 2), thing(1, 20, shape="diamond", color="green")), True),
        ((thing(0, 20), thing(1, 2, shape="diamond", color="green")), False),
        ((thing(0, 2, 2), thing(1, 18, 18, shape="diamond", color="green")), True),  # left of and above
        ((thing(0, 10, 2), thing(1, 12, 20, shape="diamond", color="green")), False),
    ],
)
def test_what_objects_show(objects, shown):
    assert shows_held_out(objects) == shown


def test_the_reader_of_these_tests_finds_what_is_there():
    for seed in range(80):
        rng, (_, asked, steps) = story(seed)
        text = language.write_prompt(rng, asked, "composition")
        assert scanned(text) >= {words for words in of_graph(asked) if words.split()[0] in COLORS}
        for before, step in zip([None, *(s.graph for s in steps)], steps):
            plan = language.write_plan(rng, before, step, asked)
            said = of_graph(drop_implied(step.graph))
            assert said <= of_plan(plan) and scanned(parse_plan(plan)[1]) >= said
    assert scanned("The red circle is not left of the two green stars and above the ring.") == {
        "red circle",
        "green star",
        "circle left of star",
        "circle above ring",
    }
    assert scanned("The prompt wants a star below a cross, not left of it. A ring.") == {
        "cross above star",
        "star left of cross",
    }
