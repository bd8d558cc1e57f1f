"""Scene graphs: refusals, implications, and reading from JSON."""

import collections
import itertools
import types

import msgspec
import numpy as np
import pytest

from pdgen.shapes.graph import (
    COLORS,
    GRAPH_SCHEMA,
    INVERSE,
    Entity,
    Relation,
    SceneError,
    SceneGraph,
    Step,
    decode_graph,
    drop_implied,
    extract_subgraph,
    implies,
    join_places,
    places_imply,
    swaps_places,
)
from pdgen.shapes.layout import GRID, RELATIONS
from pdgen.shapes.placement import LATTICE
from pdgen.shapes.world import find_place, find_relations

CIRCLE = Entity(0, "circle", 1, {"color": "red", "size": "small"})
SQUARES = Entity(1, "square", 3, {"color": "blue"})
STAR = Entity(2, "star", 1, {"color": "green"})
GRAPH = SceneGraph((CIRCLE, SQUARES, STAR), (Relation(0, "left of", 1), Relation(2, "below", 0)), "beige")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Entity(4, "Circle"), "entity 4: noun 'Circle'"),
        (lambda: Entity(4, ""), "entity 4: noun ''"),
        (lambda: Entity(4, "circle", 0), "entity 4: count 0"),
        (lambda: Entity(4, "circle", 21), "count 21 is outside 1 to 20"),
        (lambda: Entity(4, "circle", 1, {"color": "Red"}), "entity 4: attribute 'color': 'Red'"),
        (lambda: Entity(4, "circle", 1, {"color": ""}), "entity 4: attribute 'color': ''"),
        (lambda: SceneGraph((CIRCLE, Entity(0, "star"))), "two entities have the same id"),
        (lambda: SceneGraph((CIRCLE, Entity(1, "circle", 1, CIRCLE.attributes))), "0 and 1 cannot be told apart"),
        (lambda: SceneGraph((CIRCLE,), (Relation(0, "above", 1),)), "relation 0 above 1: no two entities"),
        (lambda: SceneGraph((CIRCLE,), (Relation(0, "above", 0),)), "relation 0 above 0: no two entities"),
        (
            lambda: SceneGraph((CIRCLE, STAR), (Relation(0, "above", 2), Relation(2, "above", 0))),
            "'above' and 'below' contradict each other",
        ),
        (
            lambda: SceneGraph((CIRCLE, STAR), (Relation(0, "left of", 2), Relation(0, "right of", 2))),
            "'left of' and 'right of' contradict",
        ),
        (lambda: Step("paint", (0,), GRAPH), "operation 'paint' is none of"),
        (lambda: Step("add", (), GRAPH), r"add \(\): the graph after it has the entities \[0, 1, 2\]"),
        (lambda: Step("add", (7,), GRAPH), r"add \(7,\)"),
        (lambda: Step("remove", (0,), GRAPH), r"remove \(0,\)"),
        (lambda: Step("replace", (0, 1), GRAPH), r"replace \(0, 1\)"),
    ],
)
def test_contradictions_are_named(build, words):
    with pytest.raises(SceneError, match=words):
        build()


def test_a_cycle_of_three_is_refused_and_a_chain_is_not():
    chain = (Relation(0, "left of", 1), Relation(2, "right of", 1))
    assert SceneGraph(GRAPH.entities, (*chain, Relation(0, "left of", 2))).relations[:2] == chain
    with pytest.raises(SceneError, match="contradict"):
        SceneGraph(GRAPH.entities, (*chain, Relation(2, "left of", 0)))
    # Left of and above together make no cycle: each is along its own axis.
    SceneGraph(GRAPH.entities, (Relation(0, "left of", 1), Relation(1, "above", 0)))


@pytest.mark.parametrize(
    "less",
    [
        SceneGraph(()),
        SceneGraph(GRAPH.entities),
        SceneGraph((STAR,), (), "beige"),
        SceneGraph((Entity(0, "circle"), Entity(1, "square", 3)), (Relation(0, "left of", 1),)),
    ],
)
def test_a_graph_implies_each_part_of_it(less):
    assert implies(GRAPH, less)
    assert not implies(less, GRAPH)


@pytest.mark.parametrize(
    "other",
    [
        SceneGraph((Entity(0, "star"),)),
        SceneGraph((Entity(1, "square", 2),)),
        SceneGraph((Entity(0, "circle", 1, {"color": "blue"}),)),
        SceneGraph((Entity(0, "circle", 1, {"fill": "outlined"}),)),
        SceneGraph((Entity(3, "heart"),)),
        SceneGraph((CIRCLE, SQUARES), (Relation(0, "above", 1),)),
        SceneGraph((), (), "lavender"),
    ],
)
def test_a_graph_does_not_imply_another_look_count_relation_or_background(other):
    assert not implies(GRAPH, other)


def test_a_relation_can_be_stated_from_both_sides():
    for kind, inverse in INVERSE.items():
        assert Relation(3, kind, 5).with_subject(3) == Relation(3, kind, 5)
        assert Relation(3, kind, 5).with_subject(5) == Relation(5, inverse, 3)
    with pytest.raises(KeyError):
        Relation(3, "holding", 5).with_subject(5)


def test_subgraphs_keep_order_relations_among_them_and_background():
    assert extract_subgraph(GRAPH, [2, 0]) == SceneGraph((CIRCLE, STAR), (Relation(2, "below", 0),), "beige")
    assert extract_subgraph(GRAPH, {1, 2}) == SceneGraph((SQUARES, STAR), (), "beige")


def test_a_swap_exchanges_places_or_colours():
    turned = SceneGraph((CIRCLE, SQUARES), (Relation(1, "left of", 0),))
    pair = SceneGraph((CIRCLE, SQUARES), (Relation(0, "left of", 1),))
    assert swaps_places(turned, Step("swap", (0, 1), pair))
    assert not swaps_places(
        SceneGraph((Entity(0, "circle", 1, {"color": "blue", "size": "small"}), SQUARES), pair.relations),
        Step("swap", (0, 1), pair),
    )
    here, there = (
        SceneGraph((Entity(0, "circle", 1, {"place": a}), Entity(1, "square", 1, {"place": b})))
        for a, b in (("top", "left"), ("left", "top"))
    )
    assert swaps_places(here, Step("swap", (1, 0), there))


def test_graphs_round_trip_through_json_and_faults_are_named():
    assert decode_graph(msgspec.json.encode(GRAPH)) == GRAPH
    with pytest.raises(SceneError, match=r"entity 0: count 0.*\$\.entities\[0\]"):
        decode_graph('{"entities": [{"id": 0, "noun": "circle", "count": 0}]}')
    with pytest.raises(SceneError, match="unknown field `colour`"):
        decode_graph('{"entities": [{"id": 0, "noun": "circle", "colour": "red"}]}')
    with pytest.raises(SceneError, match="malformed"):
        decode_graph('{"entities": [}')


def test_the_schema_names_every_field():
    fields = {name: set(d["properties"]) for name, d in GRAPH_SCHEMA["$defs"].items()}
    assert fields == {
        "SceneGraph": {"entities", "relations", "background"},
        "Entity": {"id", "noun", "count", "attributes"},
        "Relation": {"subject", "kind", "reference"},
    }


def test_random_orders_of_subgraphs_grow():
    rng = np.random.default_rng(0)
    for _ in range(100):
        order = rng.permutation(3).tolist()
        parts = [extract_subgraph(GRAPH, order[:n]) for n in range(4)]
        assert all(implies(b, a) for a, b in itertools.pairwise(parts))


def place(entity, *places):
    return Entity(entity, "star", len(places), {"color": COLORS[entity], "place": join_places(places)})


def test_places_imply_a_relation_exactly_where_every_pair_of_objects_on_the_lattice_shows_it():
    sides = [width for widths in LATTICE.widths.values() for width in widths]
    squares = [(x, y, x + side, y + side) for side in sides for x, y in itertools.product(range(0, GRID, 8), repeat=2)]
    boxes = [types.SimpleNamespace(box=square) for square in squares if max(square) <= GRID]
    always = collections.defaultdict(lambda: {*RELATIONS})
    for a, b in itertools.permutations(boxes, 2):
        (al, at, ar, ab), (bl, bt, br, bb) = a.box, b.box
        if ar < bl or br < al or ab < bt or bb < at:
            always[find_place(a), find_place(b)] &= {*find_relations(a, b)}
    for (first, second), kinds in always.items():
        graph = SceneGraph((place(0, first), place(1, second)))
        assert {kind for kind in RELATIONS if places_imply(graph, Relation(0, kind, 1))} == kinds, (first, second)
    assert len(always) == 9 * 9 - 4  # a corner has room for one object


def test_places_of_several_things_imply_a_relation_if_all_of_them_do():
    left = Relation(0, "left of", 1)
    apart = SceneGraph((place(0, "left", "top left"), place(1, "right", "top right")), (left,))
    mixed = SceneGraph((place(0, "left", "top"), place(1, "right", "top right")), (left,))
    open_ = SceneGraph((place(0, "left"), Entity(1, "ring")), (left, Relation(0, "on top of", 1)))
    assert drop_implied(apart).relations == () and drop_implied(apart).entities == apart.entities
    assert drop_implied(mixed) == mixed and drop_implied(open_) == open_
