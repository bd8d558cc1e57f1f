"""Scene graphs: validation, geometry of relations, growth and faults, over many random scenes."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.scenes import world

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, world.MAX_OBJECTS)


def circle(object_id=0, color="red", x=8, y=16, size=12, shape="circle"):
    return world.Object(id=object_id, shape=shape, color=color, size=size, x=x, y=y)


@given(SEEDS, COUNTS)
@settings(max_examples=300, deadline=None)
def test_random_scenes_keep_their_promises(seed, count):
    scene = world.random_scene(np.random.default_rng(seed), count)
    assert [o.id for o in scene.objects] == list(range(count))
    for a, b in itertools.combinations(scene.objects, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2
        assert (a.shape, a.color) != (b.shape, b.color)
    for relation in scene.relations:
        subject, reference = scene.find(relation.subject), scene.find(relation.reference)
        dx, dy = subject.x - reference.x, subject.y - reference.y
        along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation.kind]
        across = dy if relation.kind in ("left of", "right of") else dx
        assert along > abs(across), relation
    assert msgspec.convert(msgspec.to_builtins(scene), world.Scene) == scene
    assert world.random_scene(np.random.default_rng(seed), count) == scene


@given(SEEDS, COUNTS)
@settings(max_examples=200, deadline=None)
def test_each_step_is_implied_by_the_next(seed, count):
    rng = np.random.default_rng(seed)
    scene = world.random_scene(rng, count)
    steps = world.grow(rng, scene)
    assert steps[-1] == scene
    assert 1 <= len(steps) <= count
    for earlier, later in itertools.pairwise(steps):
        assert world.implies(later, earlier)
        assert not world.implies(earlier, later)


def test_a_changed_object_relation_or_background_is_not_implied():
    pair = (circle(0), circle(1, "blue", 24))
    scene = world.Scene(pair, (world.Relation(0, "left of", 1),), "light")
    assert world.implies(scene, world.Scene(pair))
    assert not world.implies(world.Scene(pair), scene)
    assert not world.implies(scene, world.Scene((circle(0, "green"),)))
    assert not world.implies(scene, world.Scene(pair, (), "grey"))


@given(SEEDS, COUNTS)
@settings(max_examples=200, deadline=None)
def test_a_corrupted_draft_differs_in_one_respect(seed, count):
    rng = np.random.default_rng(seed)
    scene = world.random_scene(rng, count)
    target = int(rng.integers(count))
    draft = world.corrupt(rng, scene, target)
    changed = [(a, b) for a, b in zip(draft.objects, scene.objects, strict=True) if a != b]
    ((wrong, right),) = changed
    assert wrong.id == target
    assert wrong.size == right.size
    respects = [wrong.color != right.color, wrong.shape != right.shape, wrong.place != right.place]
    assert sum(respects) == 1
    assert draft.background == scene.background


def test_every_count_of_objects_and_every_kind_of_fault_occurs():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(50):
        scene = world.random_scene(rng, 2)
        (wrong,) = set(world.corrupt(rng, scene, 1).objects) - set(scene.objects)
        right = scene.find(1)
        kinds |= {f for f in ("color", "shape", "place") if getattr(wrong, f) != getattr(right, f)}
    assert kinds == {"color", "shape", "place"}
    relations = {r.kind for _ in range(50) for r in world.random_scene(rng, 2).relations}
    assert relations == set(world.RELATIONS)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (24, 8, ("right of",)),
        # Offset (16, 8), shortened by 0.1 * (12 + 12) to (13.6, 5.6); over |offset| = 17.9: (0.76, 0.31).
        (24, 16, ("right of",)),
        # (13.6, 9.6) / 20 = (0.68, 0.48): without the margin both would hold.
        (24, 20, ("right of",)),
        # (13.6, 13.6) / 22.6 = (0.60, 0.60).
        (24, 24, ("right of", "below")),
        (8, 24, ("below",)),
        (10, 8, ()),  # closer than the margin
    ],
)
def test_relations_by_the_published_rule(x, y, expected):
    reference, subject = circle(0, y=8), circle(1, x=x, y=y)
    assert world.relations_between(subject, reference) == expected
    inverses = {world.INVERSE[kind] for kind in expected}
    assert set(world.relations_between(reference, subject)) == inverses


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: circle(shape="blob"), "object 0: shape 'blob'"),
        (lambda: circle(color="teal"), "object 0: color 'teal'"),
        (lambda: circle(size=13), "size 13 is not a positive even number"),
        (lambda: circle(x=4), "object 0: box .* leaves the picture"),
        (lambda: world.Scene((circle(),), background="plaid"), "background 'plaid'"),
        (lambda: world.Scene((circle(), circle(x=24, color="blue"))), "same id"),
        (lambda: world.Scene((circle(), circle(1, x=24))), "objects 0 and 1 are both a red circle"),
        (lambda: world.Scene((circle(), circle(1, "blue", 16))), "objects 0 and 1 overlap"),
        (lambda: world.Scene((circle(),), (world.Relation(0, "above", 1),)), "no two objects of the scene"),
        (
            lambda: world.Scene((circle(), circle(1, "blue", 24)), (world.Relation(0, "right of", 1),)),
            "0 right of 1 is untrue",
        ),
        (lambda: world.random_scene(np.random.default_rng(0), 5), "5 objects asked for"),
    ],
)
def test_faulty_scenes_are_refused_by_name(build, words):
    with pytest.raises(world.SceneError, match=words):
        build()


def test_faulty_scenes_are_refused_when_read():
    plain = msgspec.to_builtins(world.Scene((circle(),)))
    plain["objects"][0]["color"] = "teal"
    with pytest.raises(msgspec.ValidationError, match="teal"):
        msgspec.convert(plain, world.Scene)
