"""The first scenes of shapes world, of which ``subsets`` still makes its trajectories.

Validated objects and relations, drawn at random and grown step by step.

Lengths and positions are in units of 1/32 of the picture's side (``GRID``), x to the right, y downwards, so
that a scene is the same at every picture size and its boxes are whole pixels at 32 px.
"""

import functools
import itertools

import msgspec
import numpy as np

from pdgen.scenes.graph import SceneError

GRID = 32
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUNDS = ("light grey", "pale blue", "pale green", "beige")
SIZES = (12, 14)
# Two objects of the largest size fit side by side when their centres differ by 16 along one axis.
PLACES = {
    "top left": (8, 8),
    "top": (16, 8),
    "top right": (24, 8),
    "left": (8, 16),
    "centre": (16, 16),
    "right": (24, 16),
    "bottom left": (8, 24),
    "bottom": (16, 24),
    "bottom right": (24, 24),
}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
MARGIN = 0.1
MAX_OBJECTS = 4
RELATION_RATE = 0.8




class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shape: its id within the scene, looks, width (= height) and the centre of its bounding box."""

    id: int
    shape: str
    color: str
    size: int
    x: int
    y: int

    def __post_init__(self) -> None:
        for field, allowed in (("shape", SHAPES), ("color", COLORS)):
            if getattr(self, field) not in allowed:
                raise SceneError(f"object {self.id}: {field} {getattr(self, field)!r} is none of {allowed}")
        if self.size < 2 or self.size % 2:
            raise SceneError(f"object {self.id}: size {self.size} is not a positive even number")
        left, top, right, bottom = self.box
        if left < 0 or top < 0 or right > GRID or bottom > GRID:
            raise SceneError(f"object {self.id}: box {self.box} leaves the picture (0 to {GRID})")

    @property
    def fill(self) -> str:
        """All shapes are solid."""
        return "solid"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in grid units; right and bottom are exclusive."""
        half = self.size // 2
        return self.x - half, self.y - half, self.x + half, self.y + half

    @property
    def place(self) -> str:
        """The key of ``PLACES`` nearest to the object's centre."""
        return min(PLACES, key=lambda name: (PLACES[name][0] - self.x) ** 2 + (PLACES[name][1] - self.y) ** 2)


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``subject`` stands ``kind`` (one of ``RELATIONS``) ``reference``; both are object ids."""

    subject: int
    kind: str
    reference: int

    def seen_from(self, object_id: int) -> "Relation":
        """The same fact with ``object_id``, one of its two objects, as the subject."""
        if self.subject == object_id:
            return self
        return Relation(subject=self.reference, kind=INVERSE[self.kind], reference=self.subject)


class Scene(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture's content. ``relations`` are those the prompt states; the layout may fulfil more.

    Raises:
      SceneError: two objects share an id, their looks or space, or a relation names an unknown object or is
        untrue of the boxes.
    """

    objects: tuple[Object, ...]
    relations: tuple[Relation, ...] = ()
    background: str = "light grey"

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise SceneError(f"background {self.background!r} is none of {BACKGROUNDS}")
        by_id = {o.id: o for o in self.objects}
        if len(by_id) != len(self.objects):
            raise SceneError("two objects have the same id")
        for a, b in itertools.combinations(self.objects, 2):
            if (a.shape, a.color) == (b.shape, b.color):
                raise SceneError(f"objects {a.id} and {b.id} are both a {a.color} {a.shape}")
            if overlap(a, b):
                raise SceneError(f"objects {a.id} and {b.id} overlap: boxes {a.box} and {b.box}")
        for r in self.relations:
            if r.subject == r.reference or not {r.subject, r.reference} <= by_id.keys():
                raise SceneError(f"relation {r.subject} {r.kind} {r.reference}: no two objects of the scene")
            if r.kind not in relations_between(by_id[r.subject], by_id[r.reference]):
                raise SceneError(f"relation {r.subject} {r.kind} {r.reference} is untrue of the boxes")

    def find(self, object_id: int) -> Object:
        """The object of that id. Raises KeyError if there is none."""
        for candidate in self.objects:
            if candidate.id == object_id:
                return candidate
        raise KeyError(object_id)


def overlap(a: Object, b: Object) -> bool:
    """Whether the bounding boxes share area."""
    (al, at, ar, ab), (bl, bt, br, bb) = a.box, b.box
    return al < br and bl < ar and at < bb and bt < ab


def relations_between(subject: Object, reference: Object) -> tuple[str, ...]:
    """The relations true of two boxes by GenEval's rule: up to two of ``RELATIONS``, or none.

    offset = subject centre - reference centre, shortened by ``MARGIN`` times the sum of both sizes along each
    axis and divided by |offset|; a relation holds where that exceeds 0.5.
    """
    offset = np.array([subject.x - reference.x, subject.y - reference.y], np.float64)
    shortened = np.maximum(np.abs(offset) - MARGIN * (subject.size + reference.size), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return ()
    dx, dy = shortened / np.linalg.norm(offset)
    true = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return tuple(kind for kind in RELATIONS if true[kind])


def implies(later: Scene, earlier: Scene) -> bool:
    """Whether ``later`` holds all of ``earlier``: each object unchanged, each relation, the background."""
    return (
        set(earlier.objects) <= set(later.objects)
        and set(earlier.relations) <= set(later.relations)
        and earlier.background == later.background
    )


@functools.lru_cache
def layouts(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ordered choices of ``count`` places (x, y) at which objects of any of ``SIZES`` stay apart."""
    return tuple(
        places
        for places in itertools.permutations(PLACES.values(), count)
        if all(
            max(abs(ax - bx), abs(ay - by)) >= max(SIZES) for (ax, ay), (bx, by) in itertools.combinations(places, 2)
        )
    )


def _random_relation(rng: np.random.Generator, new: Object, others: list[Object]) -> Relation | None:
    # A diagonal pair fulfils two relations; only pairs with a single one are stated, so that words are clear.
    choices = [(other, kinds[0]) for other in others if len(kinds := relations_between(new, other)) == 1]
    if not choices or rng.random() >= RELATION_RATE:
        return None
    other, kind = choices[rng.integers(len(choices))]
    relation = Relation(subject=new.id, kind=kind, reference=other.id)
    return relation.seen_from(other.id) if new.id == 1 else relation


def random_scene(rng: np.random.Generator, count: int) -> Scene:
    """A scene of ``count`` (1 to ``MAX_OBJECTS``) objects with ids 0, 1, ... in the order they are added.

    Object 1 may be the reference of a relation of object 0; each later object may be the subject of one with
    an earlier object. Raises SceneError for a count out of range.
    """
    if not 1 <= count <= MAX_OBJECTS:
        raise SceneError(f"{count} objects asked for; a scene holds 1 to {MAX_OBJECTS}")
    places = layouts(count)[rng.integers(len(layouts(count)))]
    looks = rng.permutation(len(SHAPES) * len(COLORS))[:count]
    objects: list[Object] = []
    relations = []
    for index, ((x, y), look) in enumerate(zip(places, looks)):
        shape, color = SHAPES[look // len(COLORS)], COLORS[look % len(COLORS)]
        new = Object(id=index, shape=shape, color=color, size=int(rng.choice(SIZES)), x=x, y=y)
        relation = _random_relation(rng, new, objects)
        objects.append(new)
        if relation is not None:
            relations.append(relation)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Scene(objects=tuple(objects), relations=tuple(relations), background=background)


def subscene(scene: Scene, count: int) -> Scene:
    """The first ``count`` objects, the relations among them, and the background."""
    objects = scene.objects[:count]
    ids = {o.id for o in objects}
    relations = tuple(r for r in scene.relations if r.subject in ids and r.reference in ids)
    return Scene(objects=objects, relations=relations, background=scene.background)


def grow(rng: np.random.Generator, scene: Scene, pair_rate: float = 0.2) -> list[Scene]:
    """Growing subscenes that end in ``scene``; each is implied by the next.

    Every step adds one object, except that with probability ``pair_rate`` the first step of a scene of three
    or more adds two.
    """
    first = 2 if len(scene.objects) > 2 and rng.random() < pair_rate else 1
    return [subscene(scene, count) for count in range(first, len(scene.objects) + 1)]


def corrupt(rng: np.random.Generator, scene: Scene, object_id: int) -> Scene:
    """The scene as a faulty draft: that object with another colour, shape or place; no relations claimed.

    The kind of fault is drawn first; a crowded scene that leaves no other place gets one of the other kinds.
    """
    right = scene.find(object_id)
    changes = (
        [{"color": c} for c in COLORS if c != right.color],
        [{"shape": s} for s in SHAPES if s != right.shape],
        [{"x": x, "y": y} for x, y in PLACES.values() if (x, y) != (right.x, right.y)],
    )
    for kind in rng.permutation(len(changes)):
        for index in rng.permutation(len(changes[kind])):
            wrong = msgspec.structs.replace(right, **changes[kind][index])
            objects = tuple(wrong if o.id == object_id else o for o in scene.objects)
            try:
                return Scene(objects=objects, background=scene.background)
            except SceneError:  # The change makes two objects alike or lets them overlap.
                continue
    raise SceneError(f"object {object_id}: every change makes the scene invalid")
