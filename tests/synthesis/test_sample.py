"""Random scene graphs: the contents of each task, layouts in which all relations hold, held-out pairs."""

import collections
import hashlib
import itertools

import numpy as np
import pytest

from pdgen.shapes.graph import COLORS, INVERSE, PLACES, Entity, Relation, SceneGraph, implies
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.world import BACKGROUNDS, MAX_OBJECTS, SHAPES
from pdgen.synthesis.sample import ENTITY_RATES, TASKS, has_room, make_prompt_graph, sample_graph

COUNT = 400


def made(task, split="train", count=COUNT):
    """Make pairs (scene, prompt's graph), the same in every call."""
    for index in range(count):
        rng = np.random.default_rng((7, TASKS.index(task), index))
        graph = sample_graph(rng, task, split)
        yield graph, make_prompt_graph(rng, graph, task)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_of_every_task_keep_the_rules(task):
    for graph, prompt in made(task):
        assert implies(graph, prompt)
        assert [e.id for e in graph.entities] == list(range(len(graph.entities)))
        assert len({(e.noun, e.attributes["color"]) for e in graph.entities}) == len(graph.entities)
        assert sum(e.count for e in graph.entities) <= MAX_OBJECTS
        assert graph.background in (None, *BACKGROUNDS)
        large = sum(e.count for e in graph.entities if e.attributes.get("size") == "large")
        assert large == 0 or (large == 1 and sum(e.count for e in graph.entities) <= 4)
        assert has_room(graph)
        for e in graph.entities:
            allowed = {"color": COLORS, "size": ("small", "large"), "fill": ("outlined",), "place": PLACES}
            assert e.noun in SHAPES
            assert all(value in allowed[name] for name, value in e.attributes.items())


@pytest.mark.parametrize(
    ("task", "entities", "attributes", "relations"),
    [
        ("single_object", 1, set(), 0),
        ("two_object", 2, set(), 0),
        ("counting", 1, set(), 0),
        ("colors", 1, {"color"}, 0),
        ("position", 2, set(), 1),
        ("color_attr", 2, {"color"}, 0),
    ],
)
def test_prompts_follow_the_templates_of_their_task(task, entities, attributes, relations):
    counts = collections.Counter()
    for graph, prompt in made(task):
        assert [e.noun for e in prompt.entities] == [e.noun for e in graph.entities]
        assert len({e.noun for e in prompt.entities}) == len(prompt.entities) == entities
        assert all(set(e.attributes) == attributes for e in prompt.entities)
        assert len(prompt.relations) == relations
        assert all((r.subject, r.reference) == (0, 1) for r in prompt.relations)
        assert prompt.background is None
        counts.update(e.count for e in prompt.entities)
    assert set(counts) == ({2, 3, 4} if task == "counting" else {1})


def test_kinds_of_counts_and_relations_are_about_equally_frequent():
    # Of 400 each: a share of p has a standard deviation of sqrt(400 p (1 - p)), 9.4 for a third; four of them.
    counts = collections.Counter(graph.entities[0].count for graph, _ in made("counting"))
    assert all(abs(n - COUNT / 3) < 38 for n in counts.values())
    kinds = collections.Counter(graph.relations[0].kind for graph, _ in made("position"))
    assert set(kinds) == set(INVERSE)
    # The held-out triples are not spread equally over the kinds, which adds up to a tenth.
    assert all(abs(n - COUNT / 4) < 35 + 10 for n in kinds.values())


def test_compositions_have_sizes_by_the_rates():
    pairs = list(made("composition"))
    entities = collections.Counter(len(graph.entities) for graph, _ in pairs)
    for number, rate in ENTITY_RATES.items():
        assert abs(entities[number] / COUNT - rate) < 4 * np.sqrt(rate * (1 - rate) / COUNT)
    things = [sum(e.count for e in graph.entities) for graph, _ in pairs]
    assert set(things) == {3, 4, 5, 6}
    seen = collections.Counter(
        word for graph, _ in pairs for e in graph.entities for word in (*e.attributes, *e.attributes.values())
    )
    assert {"size", "fill", "place", "small", "large", "outlined", *COLORS} <= set(seen)
    assert {e.count for graph, _ in pairs for e in graph.entities} == {1, 2, 3, 4}
    assert 0.65 < sum(graph.background is not None for graph, _ in pairs) / COUNT < 0.85
    assert 2 < np.mean([len(graph.relations) for graph, _ in pairs]) < 3.5
    for graph, prompt in pairs:
        assert prompt.relations == graph.relations
        for asked, shown in zip(prompt.entities, graph.entities, strict=True):
            assert shown.attributes.items() - asked.attributes.items() <= {("place", shown.attributes.get("place"))}
    # Of about 300 stated backgrounds 0.85 are asked for, of about 150 scenes with places one half.
    stated = [prompt.background is not None for graph, prompt in pairs if graph.background is not None]
    assert 0.76 < np.mean(stated) < 0.94
    placed = [("place" in repr(prompt)) for graph, prompt in pairs if "place" in repr(graph)]
    assert 0.3 < np.mean(placed) < 0.7


def cells_in_which_all_holds(graph):
    """Return whether some assignment of distinct cells of a 3 x 3 grid fulfils relations and places, by brute force."""
    owners = [e.id for e in graph.entities for _ in range(e.count)]
    places = {e.id: e.attributes.get("place") for e in graph.entities}

    def clear(a, b, kind):
        dx, dy = b % 3 - a % 3, b // 3 - a // 3
        along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[kind]
        return along > abs(across)

    def fits(chosen):
        new, cell = owners[len(chosen) - 1], chosen[-1]
        if places[new] not in (None, PLACES[cell]):
            return False
        for other, at in zip(owners, chosen[:-1]):
            for r in graph.relations:
                if (r.subject, r.reference) == (new, other) and not clear(cell, at, r.kind):
                    return False
                if (r.subject, r.reference) == (other, new) and not clear(at, cell, r.kind):
                    return False
        return True

    def search(chosen):
        if len(chosen) == len(owners):
            return True
        free = (cell for cell in range(9) if cell not in chosen)
        return any(fits([*chosen, cell]) and search([*chosen, cell]) for cell in free)

    return search([])


@pytest.mark.parametrize("task", ["two_object", "position", "composition"])
def test_relations_and_places_are_consistent_and_irredundant(task):
    for graph, _ in made(task, count=150):
        assert cells_in_which_all_holds(graph)
        # A forest: every relation connects two separate parts, so there are at most entities - 1.
        groups = {e.id: {e.id} for e in graph.entities}
        for r in graph.relations:
            assert groups[r.subject] is not groups[r.reference]
            joined = groups[r.subject] | groups[r.reference]
            groups |= dict.fromkeys(joined, joined)


def test_the_brute_force_search_rejects_impossible_graphs():
    trio = tuple(Entity(i, noun) for i, noun in enumerate(("circle", "square", "star")))
    four = (*trio, Entity(3, "heart"))
    row = [Relation(a, "left of", b) for a, b in itertools.pairwise(range(4))]
    assert cells_in_which_all_holds(SceneGraph(trio, tuple(row[:2])))
    assert not cells_in_which_all_holds(SceneGraph(four, tuple(row)))


def by_hand(words):
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % 10 == 0


def test_what_is_held_out_is_stable_and_the_same_from_both_sides():
    # Hexadecimal digests of these words, taken with sha256sum, divided by ten.
    assert is_held_out(SceneGraph((Entity(0, "square", 1, {"color": "red"}),)))
    assert not is_held_out(SceneGraph((Entity(0, "circle", 1, {"color": "red"}),)))
    circle, diamond = Entity(0, "circle"), Entity(1, "diamond")
    for relation in (Relation(0, "left of", 1), Relation(1, "right of", 0)):
        assert is_held_out(SceneGraph((circle, diamond), (relation,)))
    for relation in (Relation(1, "left of", 0), Relation(0, "right of", 1)):
        assert is_held_out(SceneGraph((circle, diamond), (relation,))) == by_hand("diamond left of circle")
    pairs = [f"{color} {noun}" for color in COLORS for noun in SHAPES]
    for words in pairs:
        color, noun = words.split(" ", 1)
        assert is_held_out(SceneGraph((Entity(0, noun, 1, {"color": color}),))) == by_hand(words)
    assert 0 < sum(map(by_hand, pairs)) < 0.2 * len(pairs)
    assert is_held_out(SceneGraph((Entity(0, "man"), Entity(1, "cup")), (Relation(0, "holding", 1),))) == by_hand(
        "man holding cup"
    )


def test_every_noun_and_colour_stays_in_training():
    kept = [(c, n) for c in COLORS for n in SHAPES if not by_hand(f"{c} {n}")]
    assert min(collections.Counter(n for _, n in kept).values()) >= 5
    assert min(collections.Counter(c for c, _ in kept).values()) >= 5


@pytest.mark.parametrize("task", TASKS)
def test_held_out_pairs_are_never_in_training_and_always_in_tests(task):
    for graph, prompt in made(task):
        assert not is_held_out(graph)
        assert not is_held_out(prompt)
    asks = task in ("colors", "position", "color_attr", "composition")
    for graph, prompt in made(task, "test", 200):
        assert is_held_out(prompt) == asks
        assert is_held_out(graph) == asks


@pytest.mark.parametrize(
    ("counts", "sizes", "room"),
    [
        ((3, 3), ("small", "small"), True),
        ((3, 4), ("small", "small"), False),
        ((1, 3), ("large", "small"), True),
        ((1, 4), ("large", "small"), False),
        ((1, 1), ("large", "large"), False),
        ((1, 2), ("small", "large"), False),
    ],
)
def test_room_for_so_many_things(counts, sizes, room):
    graph = SceneGraph(
        tuple(
            Entity(i, "star", n, {"size": size, "color": c})
            for i, (n, size, c) in enumerate(zip(counts, sizes, COLORS, strict=False))
        )
    )
    assert has_room(graph) == room


def test_equal_seeds_give_equal_scenes_and_others_do_not():
    for task in TASKS:
        first, again = list(made(task, count=30)), list(made(task, count=30))
        assert first == again
        assert len({repr(pair) for pair in first}) > 15


def test_unknown_tasks_and_splits_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="task 'sorting'"):
        sample_graph(rng, "sorting")
    with pytest.raises(ValueError, match="split 'val'"):
        sample_graph(rng, "colors", "val")
    with pytest.raises(ValueError, match=r"entity_rates are for \[7\] entities"):
        sample_graph(rng, "composition", entity_rates={7: 1.0})
    with pytest.raises(ValueError, match=r"(?i)probabilities"):
        sample_graph(rng, "composition", entity_rates={3: 0.5})


def test_compositions_of_the_numbers_of_entities_asked_for():
    rates = {1: 0.5, MAX_OBJECTS: 0.5}
    graphs = [sample_graph(np.random.default_rng(i), "composition", entity_rates=rates) for i in range(60)]
    assert {len(graph.entities) for graph in graphs} == {1, MAX_OBJECTS}
