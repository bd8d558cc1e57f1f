"""Faulty drafts: visibly wrong in one respect, of every kind, and never showing what is held out."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.shapes.graph import COLORS, SceneError, Step
from pdgen.shapes.matching import find_violations
from pdgen.shapes.placement import PLACEMENTS
from pdgen.shapes.world import SHAPES, Scene, find_relations, place_scenes
from pdgen.synthesis.faults import FAULTS, corrupt
from tests.support.stories import entity, graph, story, thing

SEEDS = st.integers(0, 2**32 - 1)
both = pytest.mark.parametrize("name", PLACEMENTS)
WIDTHS = {"lattice": {7, 15}, "free": {7, 10, 14}}  # of things with a faulty size
SQUARE = entity(1, "square", color="green")
PAIR = graph(entity(0), SQUARE, relations=[(0, "left of", 1)])


def laid_out(name, seed, wanted):
    """Lay out a scene of the graph."""
    step = Step("add", tuple(e.id for e in wanted.entities), wanted)
    return place_scenes(np.random.default_rng(seed), [step], PLACEMENTS[name])[0]


def stays(name, corner, size, old_corner, old_size):
    """Check one axis: on the lattice the corner stays, else the centre, unless the thing would leave the picture."""
    if name == "lattice":
        assert corner == (16 if old_corner == 24 and size == 15 else old_corner)
    elif 0 < corner < 32 - size:
        assert abs(corner - old_corner + (size - old_size) / 2) <= 0.5


@both
@given(SEEDS)
@settings(max_examples=200)
def test_a_faulty_draft_is_wrong_in_one_respect(name, seed):
    rng = np.random.default_rng(seed)
    step = story(seed)[1].steps[-1]
    scenes = place_scenes(rng, [Step("add", tuple(e.id for e in step.graph.entities), step.graph)], PLACEMENTS[name])
    target = step.graph.entities[int(rng.integers(len(step.graph.entities)))].id
    for scene in scenes or []:
        draft, kind = corrupt(rng, scene, step.graph, target, PLACEMENTS[name])
        assert name == "free" or not any(o.x % 8 or o.y % 8 for o in draft.objects)
        assert [o for o in draft.objects if o.entity != target] == [o for o in scene.objects if o.entity != target]
        assert draft.background == scene.background
        mine, right = draft.objects_of(target), scene.objects_of(target)
        assert {v.kind for v in find_violations(draft, step.graph)} == {kind}
        if kind == "size":
            assert {o.size for o in mine} <= WIDTHS[name]
            for one, was in zip(mine, right, strict=True):
                stays(name, one.x, one.size, was.x, was.size)
                stays(name, one.y, one.size, was.y, was.size)
        if kind in ("count", "missing"):
            assert abs(len(mine) - len(right)) == 1 if kind == "count" else not mine
            assert {(o.shape, o.color, o.size, o.fill) for o in mine} <= {
                (o.shape, o.color, o.size, o.fill) for o in right
            }
            continue
        changes = {
            field
            for a, b in zip(mine, right, strict=True)
            for field in a.__struct_fields__
            if getattr(a, field) != getattr(b, field)
        }
        assert (
            changes <= {"color": {"color"}, "shape": {"shape"}, "size": {"size", "x", "y"}, "place": {"x", "y"}}[kind]
        )


@both
def test_every_kind_of_fault_occurs_if_the_graph_allows_it(name):
    full = graph(entity(0, count=2, size="small"), SQUARE, relations=[(0, "above", 1)])
    # There is room above the square for a third circle, and for two large ones.
    below = (8, 24, 7) if name == "lattice" else (11, 20, 10)
    circles = (thing(0, 0, 0, 7, entity=0), thing(1, 16, 0, 7, entity=0))
    scene = Scene((*circles, thing(2, *below, color="green", shape="square", entity=1)))
    rng = np.random.default_rng(1)
    drafts = [corrupt(rng, scene, full, 0, PLACEMENTS[name]) for _ in range(300)]
    kinds = collections.Counter(kind for _, kind in drafts)
    assert set(kinds) == set(FAULTS)
    assert min(kinds.values()) > 300 / 6 - 4 * np.sqrt(300 * 5 / 36)
    assert {len(d.objects_of(0)) for d, kind in drafts if kind == "count"} == {1, 3}
    plain = graph(entity(0), SQUARE)
    scene = laid_out(name, 0, plain)
    kinds = {corrupt(rng, scene, plain, 0, PLACEMENTS[name])[1] for _ in range(60)}
    assert kinds == {"color", "shape", "count", "missing"}


def test_no_fault_makes_two_entities_equal_or_shows_what_is_held_out():
    full = graph(entity(0), entity(1, color="blue"), entity(2, "ring"))
    scene = Scene((thing(0, 0, 0), thing(1, 11, 0, color="blue"), thing(2, 22, 0, shape="ring")))
    drafts = [corrupt(np.random.default_rng(i), scene, full, 0) for i in range(300)]
    wrong = {
        kind: {(o.shape, o.color) for d, k in drafts if k == kind for o in d.objects_of(0)}
        for kind in ("color", "shape")
    }
    assert wrong["color"] == {("circle", color) for color in COLORS if color not in ("red", "blue")}
    # Held out: red squares, triangles and arrows; diamonds, crosses and crescents left of rings (by sha256sum).
    alike = {"circle", "ring"}
    held_out = {"square", "triangle", "arrow", "diamond", "cross", "crescent"}
    assert wrong["shape"] == {(shape, "red") for shape in SHAPES if shape not in alike | held_out}


@pytest.mark.parametrize(("kind", "x", "y"), [("above", 13, 2), ("right of", 24, 13)])
def test_moved_and_extra_things_show_no_relation_that_is_held_out(kind, x, y):
    # A circle left of a diamond is held out; there is room for other faults too.
    full = graph(entity(0), entity(1, "diamond", color="green"), relations=[(0, kind, 1)])
    scene = Scene((thing(0, x, y, 7), thing(1, 13, 13, 7, color="green", shape="diamond")))
    shown = collections.defaultdict(collections.Counter)
    for seed in range(400):
        draft, fault = corrupt(np.random.default_rng(seed), scene, full, seed % 2)
        circles, diamonds = ([o for o in draft.objects if o.shape == shape] for shape in ("circle", "diamond"))
        for circle, diamond in itertools.product(circles, diamonds):
            shown[fault].update(find_relations(circle, diamond))
    assert min(sum(shown["place"].values()), sum(shown["count"].values())) > 20
    assert not any(relations["left of"] for relations in shown.values())


def test_a_scene_that_shows_what_is_held_out_has_no_drafts():
    red = graph(entity(0), entity(1, "square", color="red"))
    scene = Scene((thing(0, 0), thing(1, 20, color="red", shape="square")))
    with pytest.raises(SceneError, match="entity 0: every draft shows what is held out from training"):
        corrupt(np.random.default_rng(0), scene, red, 0)


@both
def test_a_misplaced_object_clearly_contradicts_the_relation(name):
    scene = laid_out(name, 0, PAIR)
    drafts = [corrupt(np.random.default_rng(i), scene, PAIR, 0, PLACEMENTS[name]) for i in range(200)]
    placed = [d for d, kind in drafts if kind == "place"]
    assert len(placed) > 10
    for draft in placed:
        a, b = draft.objects if draft.objects[0].entity == 0 else draft.objects[::-1]
        dx, dy = a.x - b.x + (a.size - b.size) / 2, a.y - b.y + (a.size - b.size) / 2
        assert (-dx - 0.1 * (a.size + b.size)) / np.hypot(dx, dy) <= 0.25


def test_faults_need_a_faultless_scene_that_shows_the_entity():
    with pytest.raises(SceneError, match="entity 5: not in the scene"):
        corrupt(np.random.default_rng(0), Scene((thing(0),)), graph(entity(0)), 5)
    with pytest.raises(SceneError, match=r"entity 0: .* or the scene has faults already"):
        corrupt(np.random.default_rng(0), Scene((thing(0),)), PAIR, 0)
