"""Growing subgraphs: properties over thousands of random graphs, of shapes world and of other worlds."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pdgen.shapes.graph import Entity, Relation, SceneGraph, grow, implies
from pdgen.synthesis.sample import TASKS, sample_graph

KINDS = ("left of", "above", "holding", "near")


@st.composite
def graphs(draw):
    """Graphs of other worlds: many entities, any attributes, any relations from a lower to a higher id."""
    count = draw(st.integers(1, 14))
    ids = draw(st.permutations(range(30)))[:count]
    entities = tuple(
        Entity(i, f"thing {i}", draw(st.integers(1, 5)), draw(st.sampled_from([{}, {"material": "wooden"}])))
        for i in ids
    )
    pairs = list(itertools.combinations(sorted(ids), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=count, unique=True)) if pairs else []
    relations = tuple(Relation(a, draw(st.sampled_from(KINDS)), b) for a, b in chosen)
    return SceneGraph(entities, relations, draw(st.sampled_from([None, "a beach at dusk"])))


def check_growth(graph, steps, max_images):
    assert 1 <= len(steps) <= max_images
    assert steps[-1].graph is graph
    drawn: set[int] = set()
    for step in steps:
        assert step.operation == "add"
        assert step.entities
        assert not drawn & set(step.entities)
        there = drawn | set(step.entities)
        assert {e.id for e in step.graph.entities} == there
        assert step.graph.background == graph.background
        # Each subgraph states all that the graph says of the drawn entities, and nothing else.
        assert set(step.graph.relations) == {r for r in graph.relations if {r.subject, r.reference} <= there}
        assert [e for e in graph.entities if e.id in there] == list(step.graph.entities)
        drawn = there
    for earlier, later in itertools.pairwise(steps):
        assert implies(later.graph, earlier.graph)
        assert not implies(earlier.graph, later.graph)


def check_connection(graph, steps):
    """Check that no unrelated entity comes while one is left that is related to those drawn."""
    order = [e for step in steps for e in step.entities]
    ends = [{r.subject, r.reference} for r in graph.relations]
    for i in range(1, len(order)):
        drawn, left = set(order[:i]), set(order[i:])
        related = {e for pair in ends if pair & drawn for e in pair & left}
        assert order[i] in related or not related


@given(graphs(), st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=300)
def test_any_graph_grows_step_by_step(graph, seed, max_images):
    steps = grow(np.random.default_rng(seed), graph, max_images)
    check_growth(graph, steps, max_images)
    check_connection(graph, steps)
    sizes = [len(step.entities) for step in steps]
    assert max(sizes) - min(sizes) <= 1
    if len(graph.entities) <= 2 * max_images:
        assert max(sizes) <= 2


@pytest.mark.parametrize("task", TASKS)
def test_scenes_of_every_task_grow_step_by_step(task):
    for index in range(300):
        rng = np.random.default_rng((index, TASKS.index(task)))
        graph = sample_graph(rng, task)
        steps = grow(rng, graph)
        check_growth(graph, steps, 5)
        check_connection(graph, steps)


def test_a_connected_graph_is_connected_at_every_step():
    entities = tuple(Entity(i, f"thing {i}") for i in range(5))
    chain = SceneGraph(entities, tuple(Relation(i, "left of", i + 1) for i in range(4)))
    orders = set()
    for seed in range(200):
        drawn: list[int] = []
        for step in grow(np.random.default_rng(seed), chain):
            drawn += step.entities
            assert max(drawn) - min(drawn) == len(drawn) - 1  # A connected part of a chain has no gap.
        orders.add(tuple(drawn))
    assert len(orders) == 16  # Every one of the 2**4 orders in which a chain of five can grow.


def test_compositions_take_about_three_and_a_half_steps():
    # Entities 3, 4, 5, 6 with 0.25, 0.35, 0.25, 0.15. Of n entities binomial(n // 2, 0.4) pairs are drawn at once,
    # at least one of six: 2.6, 3.2, 4.2 and 6 - (1.2 + 0.6**3) = 4.584 steps. Together 3.508.
    lengths = []
    for index in range(1500):
        rng = np.random.default_rng((11, index))
        lengths.append(len(grow(rng, sample_graph(rng, "composition"))))
    assert abs(np.mean(lengths) - 3.508) < 4 * np.std(lengths) / np.sqrt(len(lengths))
    assert set(lengths) == {2, 3, 4, 5}


def test_equal_seeds_give_equal_steps():
    graph = sample_graph(np.random.default_rng(3), "composition")
    runs = [[grow(np.random.default_rng(seed), graph) for seed in range(30)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({repr(steps) for steps in runs[0]}) > 10


def test_nothing_to_draw_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="0 entities in at most 5"):
        grow(rng, SceneGraph((), (), "beige"))
    with pytest.raises(ValueError, match="1 entities in at most 0"):
        grow(rng, SceneGraph((Entity(0, "circle"),)), 0)
