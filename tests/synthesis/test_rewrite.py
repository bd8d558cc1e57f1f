"""Rewritten trajectories: over thousands of random ones, every operation changes only what it states."""

import collections
import itertools

import numpy as np
import pytest

from pdgen.shapes.graph import INVERSE, OPERATIONS, Entity, Relation, SceneGraph, Step, grow, swaps_places
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.matching import find_violations
from pdgen.shapes.placement import PLACEMENTS
from pdgen.shapes.world import MAX_OBJECTS, SHAPES, place_scenes
from pdgen.synthesis.rewrite import DEFAULT_WEIGHTS, SECOND_RATE, SHAPES_VOCABULARY, Vocabulary, rewrite
from pdgen.synthesis.sample import TASKS, sample_graph

EMPTY = SceneGraph(())


def rewritten(task, count, share=1.0, **options):
    """Make triples (final graph, grown steps, rewritten steps), the same in every call."""
    for index in range(count):
        rng = np.random.default_rng((5, TASKS.index(task), index))
        graph = sample_graph(rng, task)
        steps = grow(rng, graph)
        yield graph, steps, rewrite(rng, steps, share, **options)


def changes_of(before, after):
    """Return (removed ids, new ids, {id: names of changed attributes}, removed relations, new relations)."""
    old, new = {e.id: e for e in before.entities}, {e.id: e for e in after.entities}
    changed = {}
    for i in old.keys() & new.keys():
        assert (old[i].noun, old[i].count) == (new[i].noun, new[i].count)
        names = {k for k, _ in old[i].attributes.items() ^ new[i].attributes.items()}
        if names:
            changed[i] = names
    relations = set(before.relations), set(after.relations)
    return (
        old.keys() - new.keys(),
        new.keys() - old.keys(),
        changed,
        relations[0] - relations[1],
        relations[1] - relations[0],
    )


def ends(relations):
    return {end for r in relations for end in (r.subject, r.reference)}


def check_add(before, step, gone, new, changed, lost, gained):
    assert new == set(step.entities)
    assert not gone | changed.keys() | lost
    assert all({r.subject, r.reference} & new for r in gained)


def check_modify(before, step, gone, new, changed, lost, gained):
    assert not gone | new | lost | gained
    assert tuple(changed) == step.entities
    assert len(changed[step.entities[0]]) == 1
    assert "place" not in changed[step.entities[0]]


def check_swap(before, step, gone, new, changed, lost, gained):
    a, b = step.entities
    assert not gone | new
    assert changed.keys() <= {a, b}
    other = {a: b, b: a}
    old, now = (dict(zip(other, map(graph.find, other))) for graph in (before, step.graph))
    name = "place" if swaps_places(before, step) else "color"
    for i in other:
        assert now[i].attributes.get(name) == old[other[i]].attributes.get(name)
        assert changed.get(i, {name}) == {name}
    if name == "place":
        turned = {Relation(other.get(r.subject, r.subject), r.kind, other.get(r.reference, r.reference)) for r in lost}
        assert turned == gained
        assert lost or changed
        assert now[a].count == now[b].count
    else:
        assert now[a].noun != now[b].noun
        assert not lost | gained
        assert changed.keys() == {a, b}


def check_move(before, step, gone, new, changed, lost, gained):
    # A single fact fixes the entity's place, and fixes nothing else.
    (moved,) = step.entities
    assert not gone | new
    held = [r for r in before.relations if moved in (r.subject, r.reference)]
    if changed:
        assert changed == {moved: {"place"}}
        assert not lost | gained
        assert not held
    else:
        assert len(held) == 1
        assert all("place" not in before.find(e).attributes for e in ends(held))
        ((was,), (now,)) = lost, gained
        assert (was.subject, was.reference) == (now.subject, now.reference)
        assert moved in (now.subject, now.reference)
        assert was.kind != now.kind


def check_replace(before, step, gone, new, changed, lost, gained):
    old, now = step.entities
    assert (gone, new, changed) == ({old}, {now}, {})
    was, entity = before.find(old), step.graph.find(now)
    assert was.noun != entity.noun
    assert (was.count, was.attributes) == (entity.count, entity.attributes)
    names = {old: now}
    turned = {Relation(names.get(r.subject, r.subject), r.kind, names.get(r.reference, r.reference)) for r in lost}
    assert turned == gained
    assert all(old in (r.subject, r.reference) for r in lost)


def check_remove(before, step, gone, new, changed, lost, gained):
    assert gone == set(step.entities)
    assert not new | changed.keys() | gained
    assert all({r.subject, r.reference} & gone for r in lost)


CHECKS = dict(zip(OPERATIONS, (check_add, check_modify, check_swap, check_move, check_replace, check_remove)))


def check_steps(steps):
    assert steps[0].operation == "add"
    before = EMPTY
    for number, step in enumerate(steps):
        if number:
            assert step.graph.background == before.background
        CHECKS[step.operation](before, step, *changes_of(before, step.graph))
        before = step.graph


@pytest.mark.parametrize("task", TASKS)
def test_each_operation_changes_only_what_it_states(task):
    seen = collections.Counter()
    for graph, grown, steps in rewritten(task, 400):
        check_steps(steps)
        assert steps[-1].graph is graph
        others = [step.operation for step in steps if step.operation != "add"]
        assert 1 <= len(others) <= 2
        assert len(steps) <= max(5, len(grown))
        seen.update(others)
    expected = {"modify", "replace", "remove"}
    if len(graph.entities) > 1:
        expected |= {"swap", "move"}
    assert expected <= set(seen)


@pytest.mark.parametrize("task", ["colors", "composition"])
def test_temporary_things_are_distinguishable_and_not_held_out(task):
    for _, _, steps in rewritten(task, 400):
        for step in steps:
            entities = step.graph.entities
            assert not is_held_out(step.graph)
            assert len({(e.noun, e.attributes["color"]) for e in entities}) == len(entities)
            large = sum(e.count for e in entities if e.attributes.get("size") == "large")
            assert sum(e.count for e in entities) <= (4 if large else MAX_OBJECTS)
            assert large <= 1
            assert {e.noun for e in entities} <= set(SHAPES)


def test_the_share_sets_how_many_steps_change():
    assert all(steps == grown for _, grown, steps in rewritten("composition", 200, share=0.0))
    changed = sum(steps != grown for _, grown, steps in rewritten("composition", 400, share=0.3))
    assert abs(changed - 120) < 4 * np.sqrt(400 * 0.3 * 0.7)


def test_a_second_detour_is_as_frequent_as_configured():
    twice = [sum(s.operation != "add" for s in steps) == 2 for _, _, steps in rewritten("single_object", 600)]
    assert abs(np.mean(twice) - SECOND_RATE) < 4 * np.sqrt(SECOND_RATE * (1 - SECOND_RATE) / 600)


def operations_of(task, count, **options):
    return collections.Counter(
        step.operation for _, _, steps in rewritten(task, count, **options) for step in steps if step.operation != "add"
    )


def test_weights_choose_the_operations():
    for operation in OPERATIONS[1:]:
        assert set(operations_of("composition", 60, weights={operation: 2.0})) == {operation}
    seen = operations_of("counting", 600, weights={"modify": 3.0, "remove": 1.0})
    total = sum(seen.values())
    assert set(seen) == {"modify", "remove"}
    assert abs(seen["modify"] / total - 0.75) < 4 * np.sqrt(0.75 * 0.25 / total)
    assert operations_of("composition", 20, weights={}) == {}


def test_impossible_operations_leave_the_steps():
    alone = SceneGraph((Entity(0, "circle", 1, {"color": "red"}),))
    steps = grow(np.random.default_rng(0), alone)
    for operation in ("swap", "move"):
        assert rewrite(np.random.default_rng(0), steps, 1.0, weights={operation: 1.0}) == steps


def test_too_many_steps_are_avoided_by_merging_adds():
    entities = tuple(Entity(i, noun, 1, {"color": "red"}) for i, noun in enumerate(SHAPES[:5]))
    graph = SceneGraph(entities)
    order = range(5)
    full = [Step("add", (i,), SceneGraph(entities[: i + 1])) for i in order]
    for seed in range(50):
        steps = rewrite(np.random.default_rng(seed), full, 1.0, Vocabulary(attributes=SHAPES_VOCABULARY.attributes))
        assert len(steps) == 5
        assert sorted(len(step.entities) for step in steps if step.operation == "add") == [1, 1, 1, 2]
        assert steps[-1].graph == graph
    short = rewrite(np.random.default_rng(0), full[:1], 1.0, max_images=1)
    assert short == full[:1]


KITCHEN = SceneGraph(
    (
        Entity(4, "table", 1, {"material": "wooden", "color": "brown"}),
        Entity(9, "man", 1, {}),
        Entity(2, "cup", 2, {"color": "turquoise"}),
        Entity(7, "window", 1, {"light": "bright"}),
    ),
    (Relation(9, "holding", 2), Relation(4, "below", 7), Relation(9, "left of", 4)),
    "a kitchen",
)


def test_graphs_of_other_worlds_keep_their_own_words():
    seen = collections.Counter()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        steps = rewrite(rng, grow(rng, KITCHEN), 1.0, Vocabulary())
        check_steps(steps)
        assert steps[-1].graph is KITCHEN
        for before, step in itertools.pairwise(steps):
            seen[step.operation] += 1
            for e in before.graph.entities:
                final = KITCHEN.find(e.id)
                assert (e.noun, e.count) == (final.noun, final.count)
            if step.operation in ("swap", "move"):
                lost = set(before.graph.relations) - set(step.graph.relations)
                assert all(r.kind in INVERSE for r in lost)
                assert 2 not in ends(lost)
    assert set(seen) == {"add", "modify", "swap", "move"}


def test_an_attribute_without_alternatives_is_left_out_at_first():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        steps = rewrite(rng, grow(rng, KITCHEN), 1.0, Vocabulary(), {"modify": 1.0})
        modified = [(a.graph, b) for a, b in itertools.pairwise(steps) if b.operation == "modify"]
        assert modified
        for before, step in modified:
            (entity,) = step.entities
            assert before.find(entity).attributes.items() < step.graph.find(entity).attributes.items()


def test_a_vocabulary_of_only_the_same_word_counts_as_none():
    steps = [Step("add", (0,), SceneGraph((Entity(0, "cup", 1, {"color": "red"}),)))]
    new = rewrite(np.random.default_rng(0), steps, 1.0, Vocabulary(attributes={"color": ("red",)}), {"modify": 1.0})
    assert [step.graph.entities[0].attributes for step in new[:2]] in ([{}, {"color": "red"}], [{}, {}])


def test_words_of_a_vocabulary_are_the_only_new_ones():
    vocabulary = Vocabulary(
        ("dog", "lamp"), {"color": ("red", "blue")}, lambda g: any(e.noun == "lamp" for e in g.entities)
    )
    nouns, colors = set(), set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        steps = rewrite(rng, grow(rng, KITCHEN), 1.0, vocabulary)
        check_steps(steps)
        for e in itertools.chain(*(step.graph.entities for step in steps)):
            nouns.add(e.noun)
            colors |= {e.attributes.get("color")}
        for before, step in itertools.pairwise(steps):
            if step.operation == "remove":
                (extra,) = (before.graph.find(i) for i in step.entities)
                others = [e for e in before.graph.entities if e is not extra]
                assert ("color" in extra.attributes) == all("color" in e.attributes for e in others)
    assert nouns == {"table", "man", "cup", "window", "dog"}
    assert colors == {None, "brown", "turquoise", "red", "blue"}


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize(("task", "least"), [("position", 0.9), ("composition", 0.85)])
def test_most_rewritten_trajectories_find_a_layout(task, least, name):
    placed = 0
    for index, (_, _, steps) in enumerate(rewritten(task, 100)):
        scenes = place_scenes(np.random.default_rng(index), steps, PLACEMENTS[name])
        if scenes is not None:
            placed += 1
            assert not any(find_violations(scene, step.graph) for scene, step in zip(scenes, steps, strict=True))
    assert placed >= least * 100


def test_equal_seeds_give_equal_steps():
    first, again = (list(rewritten("composition", 50)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("share", "weights", "words"),
    [
        (1.5, DEFAULT_WEIGHTS, "share 1.5"),
        (-0.1, DEFAULT_WEIGHTS, "share -0.1"),
        (0.5, {"add": 1.0}, "weight 'add'"),
        (0.5, {"paint": 1.0}, "weight 'paint'"),
        (0.5, {"swap": -1.0}, "weight 'swap': -1.0"),
    ],
)
def test_shares_and_weights_out_of_range_are_refused(share, weights, words):
    rng = np.random.default_rng(0)
    steps = grow(rng, KITCHEN)
    with pytest.raises(ValueError, match=words):
        rewrite(rng, steps, share, weights=weights)
