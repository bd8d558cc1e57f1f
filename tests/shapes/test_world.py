"""Placed scenes: validity, the published rule of relations, layouts of steps, and checks."""

import collections
import functools
import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.shapes import world
from pdgen.shapes.graph import COLORS, INVERSE, PLACES, Entity, SceneError, Step, grow
from pdgen.shapes.layout import make_domain
from pdgen.shapes.matching import find_violations
from pdgen.shapes.placement import PLACEMENTS
from pdgen.synthesis.rewrite import rewrite
from pdgen.synthesis.sample import TASKS, sample_graph
from tests.support.stories import entity, graph, thing

SEEDS = st.integers(0, 2**32 - 1)
both = pytest.mark.parametrize("name", ["lattice", "free"])
STATED = {"lattice": {"small": (7,), "large": (15,)}, "free": {"small": (7,), "medium": (10, 11), "large": (14, 15)}}


def made(seed):
    """Make random steps of a random task."""
    rng = np.random.default_rng(seed)
    return rewrite(rng, grow(rng, sample_graph(rng, TASKS[seed % len(TASKS)])), 0.6)


def keeps(a, b):
    """Return whether the boxes have at least one empty unit between them."""
    (al, at, ar, ab), (bl, bt, br, bb) = a.box, b.box
    return max(al - br, bl - ar, at - bb, bt - ab) >= 1


def placed(name, seed, steps):
    return world.place_scenes(np.random.default_rng(seed), steps, PLACEMENTS[name])


def test_the_lattice_is_the_default():
    steps, scene = made(1), world.sample_scene(np.random.default_rng(1), 3)
    assert (
        world.place_scenes(np.random.default_rng(1), steps) == placed("lattice", 1, steps) != placed("free", 1, steps)
    )
    assert scene == world.sample_scene(np.random.default_rng(1), 3, PLACEMENTS["lattice"])


@both
@given(SEEDS)
@settings(max_examples=200)
def test_placed_scenes_satisfy_their_graphs_and_keep_what_a_step_does_not_name(name, seed):
    steps = made(seed)
    scenes = placed(name, seed, steps)
    assert scenes == placed(name, seed, steps)
    usual = usual_by_hand(name, steps)
    for step, scene in zip(steps, scenes or []):
        by_hand(scene, step.graph, name, usual)
        assert all(keeps(a, b) for a, b in itertools.combinations(scene.objects, 2))
        assert find_violations(scene, step.graph) == []
        assert msgspec.convert(msgspec.to_builtins(scene), world.Scene) == scene
    for (before, after), step in zip(itertools.pairwise(scenes or []), steps[1:]):
        assert before.background == after.background
        untouched = [o for o in before.objects if o.entity not in step.entities]
        assert [o for o in after.objects if o.entity not in step.entities] == untouched


def usual_by_hand(name, steps):
    """Return the size of every entity if a step states none, by the rules in words."""
    entities = [e for step in steps for e in step.graph.entities]
    if name == "free":
        return {e.id: "medium" for e in entities}
    usual = {e.id: "small" for e in entities}
    for a, b in itertools.product(entities, entities):
        needed = "fill" in a.attributes or b.attributes.get("size") == "small"
        if a.id == b.id and "size" not in a.attributes and needed:
            usual[a.id] = "large"
    return usual


def by_hand(scene, wanted, name, usual):
    """Check what a graph says, without the module's own functions."""
    spacing = {"lattice": 8, "free": 1}[name]
    assert not any(o.x % spacing or o.y % spacing for o in scene.objects)
    counts = collections.Counter(o.entity for o in scene.objects)
    assert counts == {e.id: e.count for e in wanted.entities}
    for item in scene.objects:
        said = wanted.find(item.entity)
        assert (item.shape, item.color) == (said.noun, said.attributes["color"])
        assert item.size in STATED[name][said.attributes.get("size", usual[item.entity])]
        assert item.fill == said.attributes.get("fill", "solid")
        if "place" in said.attributes:
            column, row = (int((v + item.size / 2) / (32 / 3)) for v in (item.x, item.y))
            assert said.attributes["place"] == PLACES[3 * row + column]
    for r in wanted.relations:
        for a, b in itertools.product(scene.objects_of(r.subject), scene.objects_of(r.reference)):
            dx, dy = a.x - b.x + (a.size - b.size) / 2, a.y - b.y + (a.size - b.size) / 2
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[r.kind]
            assert (along - 0.1 * (a.size + b.size)) / np.hypot(dx, dy) > 0.5
    assert wanted.background in (None, scene.background)


@both
def test_most_samples_find_a_layout(name):
    failed = [seed for seed in range(350) if placed(name, seed, made(seed)) is None]
    assert len(failed) <= 0.04 * 350


@both
def test_layouts_vary(name):
    lone = [Step("add", (0,), graph(entity(0)))]
    scenes = [placed(name, seed, lone)[0] for seed in range(400)]
    corners = {(s.objects[0].x, s.objects[0].y) for s in scenes}
    if name == "lattice":
        assert corners == set(itertools.product((0, 8, 16, 24), repeat=2))
    else:
        assert len(corners) > 200
    assert {s.objects[0].place for s in scenes} == set(PLACES)
    assert {s.background for s in scenes} == set(world.BACKGROUNDS)


SQUARE, STAR = entity(1, "square", color="blue"), entity(2, "star", color="green")
PAIR = graph(entity(0), SQUARE, relations=[(0, "left of", 1)])
TURNED = graph(entity(0), SQUARE, relations=[(1, "left of", 0)])
BLUE = entity(0, color="blue")
RED_SQUARE = entity(1, "square")
USUAL = {"lattice": "small", "free": "medium"}


def two_scenes(name, seed, first, second):
    return placed(name, seed, [Step("add", tuple(e.id for e in first.entities), first), second])


@both
@pytest.mark.parametrize("seed", range(5))
def test_operations_change_only_what_they_state(name, seed):
    then = functools.partial(two_scenes, name, seed)
    a, b = then(PAIR, Step("swap", (0, 1), TURNED))

    def centre(scene, i):
        return [(lo + hi) // 2 for lo, hi in zip(scene.objects_of(i)[0].box[:2], scene.objects_of(i)[0].box[2:])]

    assert np.abs(np.subtract(centre(a, 0), centre(b, 1))).max() <= 1
    assert np.abs(np.subtract(centre(a, 1), centre(b, 0))).max() <= 1
    a, b = then(PAIR, Step("swap", (0, 1), graph(BLUE, RED_SQUARE, relations=[(0, "left of", 1)])))
    assert [o.box for o in a.objects] == [o.box for o in b.objects]
    assert [o.color for o in b.objects] == ["blue", "red"]
    a, b = then(PAIR, Step("move", (0,), TURNED))
    assert a.objects_of(1) == b.objects_of(1)
    assert max(abs(a.objects_of(0)[0].x - b.objects_of(0)[0].x), abs(a.objects_of(0)[0].y - b.objects_of(0)[0].y)) >= 6
    a, b = then(PAIR, Step("replace", (0, 2), graph(STAR, SQUARE, relations=[(2, "left of", 1)])))
    assert np.abs(np.subtract(centre(a, 0), centre(b, 2))).max() <= 1
    a, b = then(PAIR, Step("remove", (0,), graph(SQUARE)))
    assert b.objects == a.objects_of(1)
    large = graph(entity(0, size="large"), SQUARE, relations=[(0, "left of", 1)])
    a, b = then(PAIR, Step("modify", (0,), large))
    assert (a.objects_of(0)[0].size_word, b.objects_of(0)[0].size_word) == (USUAL[name], "large")
    if name == "lattice":
        assert (a.objects_of(0)[0].x, a.objects_of(0)[0].y) == (b.objects_of(0)[0].x, b.objects_of(0)[0].y)
    else:
        assert np.abs(np.subtract(centre(a, 0), centre(b, 0))).max() <= 1


@both
def test_a_moved_thing_leaves_its_place_even_without_a_relation(name):
    alone = graph(entity(0))
    for seed in range(40):
        a, b = two_scenes(name, seed, alone, Step("move", (0,), alone))
        assert max(abs(a.objects[0].x - b.objects[0].x), abs(a.objects[0].y - b.objects[0].y)) >= 6


def test_backgrounds_last_until_another_is_stated():
    backgrounds = [None, "beige", "lavender", None]
    graphs = [
        graph(*([entity(0)] + [SQUARE, STAR, entity(3, "ring")][:i]), background=b) for i, b in enumerate(backgrounds)
    ]
    steps = [Step("add", (g.entities[-1].id,), g) for g in graphs]
    scenes = world.place_scenes(np.random.default_rng(0), steps)
    assert [s.background for s in scenes] == ["beige", "beige", "lavender", "lavender"]


@both
def test_impossible_scenes_have_no_layout(name):
    crowd = graph(*(entity(i, color=COLORS[i], size="large") for i in range(6)))
    assert placed(name, 0, [Step("add", tuple(range(6)), crowd)]) is None
    far = graph(entity(0, place="left"), entity(1, place="right", color="blue"), relations=[(0, "right of", 1)])
    assert placed(name, 0, [Step("add", (0, 1), far)]) is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Step("add", (0,), graph(entity(0, "dog")))], "step 1: entity 0: 'dog' is no shape"),
        ([Step("add", (0,), graph(Entity(0, "ring")))], "entity 0: a ring of shapes world needs a color"),
        ([Step("add", (0,), graph(entity(0, color="teal")))], "entity 0: shapes world has no color 'teal'"),
        ([Step("add", (0,), graph(entity(0, material="wood")))], "entity 0: shapes world has no material 'wood'"),
        ([Step("add", (0,), graph(entity(0, "star", fill="outlined")))], "circle, square, .* can be outlined, if they"),
        ([Step("add", (0,), graph(entity(0, size="small", fill="outlined")))], "can be outlined, if they are not"),
        ([Step("add", (0,), graph(entity(0, size="medium")))], "entity 0: shapes world has no size 'medium'"),
        ([Step("add", (0, 1), graph(entity(0), SQUARE, relations=[(0, "on", 1)]))], "relation 0 on 1: the kind"),
        ([Step("add", (0,), graph(entity(0), background="plaid"))], "background 'plaid'"),
        ([Step("add", (0,), PAIR)], "step 1: entity 1 changes or appears, but the step does not name it"),
        ([Step("add", (0, 1), PAIR), Step("add", (1,), graph(SQUARE))], "step 2: entity 0 goes, but"),
        ([Step("add", (0,), graph(entity(0))), Step("add", (1,), graph(BLUE, SQUARE))], "step 2: entity 0 changes"),
        ([Step("add", (0,), graph(entity(0))), Step("swap", (0, 1), PAIR)], r"step 2: swap of \(0, 1\)"),
        ([Step("replace", (2, 0), graph(entity(0)))], r"step 1: replace of \(2, 0\)"),
    ],
)
def test_things_beyond_shapes_world_are_named(steps, words):
    with pytest.raises(SceneError, match=words):
        world.place_scenes(np.random.default_rng(0), steps)


def test_things_with_free_placement_may_be_medium():
    (scene,) = placed("free", 0, [Step("add", (0,), graph(entity(0, size="medium", fill="outlined")))])
    assert scene.objects[0].size in (10, 11) and scene.objects[0].fill == "outlined"


RING, OUTLINED = entity(0, "ring"), entity(0, fill="outlined")


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        ((RING,), "small"),
        ((RING, entity(0, "ring", color="blue")), "small"),
        ((RING, entity(0, "ring", size="large")), "small"),
        ((RING, entity(0, "ring", size="small")), "large"),
        ((entity(0, "ring", size="small"), RING), "large"),
        ((OUTLINED,), "large"),
        ((entity(0), OUTLINED), "large"),  # from the beginning: outlining it later does not change its size
        ((OUTLINED, entity(0, size="large", fill="outlined")), "large"),
        ((entity(0, size="large", fill="outlined"), entity(0)), "small"),
    ],
)
def test_things_without_a_stated_size_have_the_default(entities, expected):
    graphs = [graph(e, entity(1, "square", color="blue", size="small")) for e in entities]
    steps = [Step("add", (0, 1), graphs[0])] + [Step("modify", (0,), g) for g in graphs[1:]]
    for name, size in (("lattice", expected), ("free", "medium")):
        for scene, e in zip(placed(name, 3, steps), entities, strict=True):
            assert scene.objects_of(0)[0].size in STATED[name][e.attributes.get("size", size)]


@pytest.mark.parametrize(
    ("size", "spacing", "corners"),
    [(7, 8, [0, 8, 16, 24]), (15, 8, [0, 8, 16]), (29, 1, [0, 1, 2, 3]), (25, 3, [0, 3, 6])],
)
def test_the_domain_of_a_square_is_all_spaced_corners_that_keep_it_inside(size, spacing, corners):
    rows, columns = np.nonzero(make_domain(size, spacing))
    assert {*zip(rows, columns)} == {*itertools.product(corners, repeat=2)}
    assert make_domain(size, spacing).shape == (33 - size, 33 - size) and make_domain(size).all()


@pytest.mark.parametrize(
    ("name", "value", "before", "width", "after"),
    [
        ("free", 10, 10, 14, 8),
        ("free", 8, 14, 10, 10),
        ("free", 1, 7, 15, 0),
        ("free", 25, 7, 15, 17),
        ("lattice", 8, 7, 15, 8),
        ("lattice", 0, 15, 7, 0),
        ("lattice", 16, 7, 15, 16),
        ("lattice", 24, 7, 15, 16),  # at 24 it would leave the picture
    ],
)
def test_things_that_change_size_stay_in_place(name, value, before, width, after):
    assert PLACEMENTS[name].resize_corner(value, before, width) == after


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ((thing(0), thing(1, 20, color="blue", shape="square")), []),
        ((thing(0),), ["entity 1: 0 of 1 square"]),
        (
            (
                thing(0),
                thing(1, 20, color="blue", shape="square"),
                thing(2, 20, 0, entity=1, color="blue", shape="square"),
            ),
            ["entity 1: 2 of 1 square"],
        ),
        ((thing(0, color="pink"), thing(1, 20, color="blue", shape="square")), ["entity 0: color of object 0 is pink"]),
        ((thing(0, shape="ring"), thing(1, 20, color="blue", shape="square")), ["entity 0: shape of object 0 is ring"]),
        ((thing(0, 20), thing(1, 3, color="blue", shape="square")), ["object 0 is not left of object 1"]),
        (
            (thing(0), thing(1, 20, color="blue", shape="square"), thing(7, 10, 0, size=7)),
            ["entity 7 is not in the graph"],
        ),
    ],
)
def test_violations_are_named(objects, words):
    found = [v.text for v in find_violations(world.Scene(objects), PAIR)]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found))


def test_stated_sizes_places_fills_and_backgrounds_are_checked():
    scene = world.Scene((thing(0, 0, 0, size=7),))
    wanted = graph(entity(0, size="large", fill="outlined", place="right"), background="beige")
    assert [v.text for v in find_violations(scene, wanted)] == [
        "entity 0: size of object 0 is small, not large",
        "entity 0: fill of object 0 is solid, not outlined",
        "entity 0: place of object 0 is top left, not right",
        "background is light grey, not beige",
    ]


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (((0, 0), (24, 8)), []),
        (((24, 8), (0, 0)), []),
        (((0, 0), (24, 24)), ["entity 0: place of object 1 is bottom right, not top left, right"]),
        (((24, 0), (24, 24)), ["is top right, not top left, right", "is bottom right, not top left, right"]),
        # Both are at the same one of two places.
        (((24, 8), (24, 16)), ["entity 0: place of object 1 is right, not top left, right"]),
        # With one too many or too few, none is misplaced as long as the others are at the right places.
        (((0, 0),), ["entity 0: 1 of 2 circle"]),
        (((0, 0), (24, 8), (0, 24)), ["entity 0: 3 of 2 circle"]),
        (((0, 24),), ["entity 0: 1 of 2 circle", "is bottom left, not top left, right"]),
    ],
)
def test_places_of_several_things_are_taken_in_any_order(where, wrong):
    scene = world.Scene(tuple(thing(i, x, y, 7, entity=0) for i, (x, y) in enumerate(where)))
    found = [v.text for v in find_violations(scene, graph(entity(0, count=2, place="top left, right")))]
    assert len(found) == len(wrong)
    assert all(text.endswith(words) for words, text in zip(wrong, found))


@both
def test_things_of_an_entity_have_their_own_places(name):
    crowded, groups = 0, 0
    for seed in range(300):
        wanted = graph(entity(0, count=2 + seed % 3), entity(1, "star", 1 + seed % 2, "blue"))
        (scene,) = placed(name, seed, [Step("add", (0, 1), wanted)])
        for one in wanted.entities:
            groups += one.count > 1
            crowded += len({o.place for o in scene.objects_of(one.id)}) < one.count
    assert groups == 450 and crowded == 0


def test_things_of_an_entity_share_a_place_stated_for_all():
    together = graph(entity(0, count=2, place="centre"))
    assert {o.place for o in placed("lattice", 0, [Step("add", (0,), together)])[0].objects} == {"centre"}


@both
@pytest.mark.parametrize("seed", range(20))
def test_stated_places_of_several_things_match_the_layout(name, seed):
    rng = np.random.default_rng(seed)
    words = sorted(rng.permutation(PLACES)[: 2 + seed % 4].tolist(), key=PLACES.index)
    wanted = graph(entity(0, count=len(words), place=", ".join(words)))
    (scene,) = placed(name, seed, [Step("add", (0,), wanted)])
    assert sorted((o.place for o in scene.objects), key=PLACES.index) == words


def random_scene(name, seed, count):
    return world.sample_scene(np.random.default_rng(seed), count, PLACEMENTS[name])


@both
@given(SEEDS, st.integers(1, world.MAX_OBJECTS))
@settings(max_examples=150)
def test_random_scenes_are_valid_and_reproducible(name, seed, count):
    scene = random_scene(name, seed, count)
    assert len(scene.objects) == count
    assert all(keeps(a, b) for a, b in itertools.combinations(scene.objects, 2))
    assert random_scene(name, seed, count) == scene


@both
def test_random_scenes_show_everything(name):
    objects = [o for seed in range(200) for o in random_scene(name, seed, 6).objects]
    objects += [random_scene(name, seed, 1).objects[0] for seed in range(400)]
    assert {o.shape for o in objects} == set(world.SHAPES)
    assert {o.color for o in objects} == set(COLORS)
    assert {o.size for o in objects} == set(itertools.chain(*STATED[name].values()))
    assert {(o.shape, o.size_word) for o in objects if o.fill == "outlined"} == {
        (shape, size) for shape in world.OUTLINED_SHAPES for size in STATED[name] if size != "small"
    }
    corners = {v for o in objects for v in (o.x, o.y)}
    assert corners == ({0, 8, 16, 24} if name == "lattice" else set(range(26)))
    # Of the 400 single ones; a share of 0.6 has a standard deviation of sqrt(0.24 / 400) = 0.024, allowed four times.
    small = np.mean([o.size == 7 for o in objects[-400:]])
    assert abs(small - {"lattice": 0.6, "free": 0.3}[name]) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        # Sizes 10 and 10: shortened by 0.1 * 20 = 2.
        (16, 0, ("right of",)),
        (16, 8, ("right of",)),  # (14, 6) / 17.9 = (0.78, 0.34)
        (16, 11, ("right of",)),  # (14, 9) / 19.4 = (0.72, 0.46): without the margin both would hold
        (16, 16, ("right of", "below")),  # (14, 14) / 22.6 = (0.62, 0.62)
        (0, 16, ("below",)),
        (2, 1, ()),  # closer than the margin
        (3, 3, ()),  # (1, 1) / 4.2 = (0.24, 0.24)
    ],
)
def test_relations_by_the_published_rule(x, y, expected):
    reference, subject = thing(0, 0, 0), thing(1, x, y)
    assert world.find_relations(subject, reference) == expected
    assert set(world.find_relations(reference, subject)) == {INVERSE[kind] for kind in expected}


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [(0, 0, "top left"), (11, 22, "bottom"), (22, 11, "right"), (5, 5, "top left"), (6, 6, "centre")],
)
def test_the_place_is_the_ninth_that_holds_the_centre(x, y, place):
    assert thing(0, x, y).place == place


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: thing(shape="blob"), "object 0: shape 'blob'"),
        (lambda: thing(color="teal"), "object 0: color 'teal'"),
        (lambda: thing(fill="striped"), "object 0: fill 'striped'"),
        (lambda: thing(size=13), "object 0: size 13 is none of"),
        (lambda: thing(x=-1), "object 0: box .* leaves the picture"),
        (lambda: thing(y=23), "object 0: box .* leaves the picture"),
        (lambda: thing(shape="star", fill="outlined"), "object 0: a star of size 10 has no inside"),
        (lambda: thing(size=7, fill="outlined"), "object 0: a circle of size 7 has no inside"),
        (lambda: world.Scene((thing(),), "plaid"), "background 'plaid'"),
        (lambda: world.Scene((thing(), thing(x=20))), "same id"),
        (lambda: world.Scene((thing(), thing(1, x=13))), "objects 0 and 1 touch or overlap"),
        (lambda: world.Scene((thing(x=13), thing(1))), "objects 0 and 1 touch or overlap"),
        (lambda: world.Scene((thing(y=1), thing(1, x=8))), "objects 0 and 1 touch or overlap"),
        (lambda: world.Scene((thing(y=11), thing(1, y=1))), "objects 0 and 1 touch or overlap"),
        (lambda: world.sample_scene(np.random.default_rng(0), 7), "7 objects asked for"),
    ],
)
def test_faulty_scenes_are_named(build, words):
    with pytest.raises(SceneError, match=words):
        build()


def test_faulty_scenes_are_refused_when_read():
    plain = msgspec.to_builtins(world.Scene((thing(),)))
    plain["objects"][0]["color"] = "teal"
    with pytest.raises(msgspec.ValidationError, match="teal"):
        msgspec.convert(plain, world.Scene)
