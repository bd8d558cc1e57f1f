"""Scene graphs: what a picture shows, in words and not in pixels.

A graph holds entities (a noun, a count, attributes), relations between them and a background. It has no layout: the
same type describes a GenEval prompt, the plan of a remote teacher and a scene of shapes world, whose objects
``pdgen.shapes.world`` places. ``decode_graph`` validates JSON. ``GRAPH_SCHEMA`` is the JSON schema for remote teachers.

Attributes are pairs of lower-case words. Shapes world uses ``color``, ``size`` ("small", "large"), ``fill``
("outlined") and ``place``. A place is a word of ``PLACES``; several things at different places have one word each:
"top left, right". All other attributes are kept unchanged.
"""

import collections
import itertools
from collections.abc import Collection, Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np

from pdgen.json_text import decode_json

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
MAX_COUNT = 20
PAIR_RATE = 0.4  # probability that two entities that could share a step do
PLACE_SEPARATOR = ", "  # between the places of several things


class SceneError(ValueError):
    """A scene that contradicts itself. The message names the entity, object or relation."""


@runtime_checkable
class HasPlace(Protocol):
    """An object with a place: one of a scene, or one detected in a picture."""

    @property
    def place(self) -> str:
        """A word of ``PLACES``."""


_Placed = TypeVar("_Placed", bound=HasPlace)


def split_places(place: str) -> tuple[str, ...]:
    """Return the words of ``PLACES`` in a ``place`` attribute."""
    return tuple(place.split(PLACE_SEPARATOR))


def join_places(places: Iterable[str]) -> str:
    """Return the ``place`` attribute of things at these places: one word if all agree, else all words in order."""
    order = {place: number for number, place in enumerate(PLACES)}
    words = sorted(places, key=lambda place: order.get(place, len(order)))
    return words[0] if len(set(words)) == 1 else PLACE_SEPARATOR.join(words)


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``count`` things that share a noun (singular) and all attributes. ``id`` is unique in the graph."""

    id: int
    noun: str
    count: int = 1
    attributes: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.noun or self.noun != self.noun.strip().lower():
            raise SceneError(f"entity {self.id}: noun {self.noun!r} is not a lower-case name")
        if not 1 <= self.count <= MAX_COUNT:
            raise SceneError(f"entity {self.id}: count {self.count} is outside 1 to {MAX_COUNT}")
        for name, value in self.attributes.items():
            if not (name and value) or (name + value) != (name + value).lower():
                raise SceneError(f"entity {self.id}: attribute {name!r}: {value!r} is not two lower-case words")
        number = self.attributes.get("place", "").count(PLACE_SEPARATOR) + 1
        if number not in (1, self.count):
            raise SceneError(f"entity {self.id}: {number} places for {self.count} things: {self.attributes['place']!r}")

    @property
    def places(self) -> tuple[str, ...]:
        """The place of each thing; empty if no place is stated."""
        if "place" not in self.attributes:
            return ()
        stated = split_places(self.attributes["place"])
        return stated * self.count if len(stated) == 1 else stated

    def find_misplaced(self, things: Iterable[_Placed]) -> list[_Placed]:
        """Return the things that are at none of the stated places, or at one that another thing has already."""
        if not self.places:
            return []
        free, wrong = collections.Counter(self.places), []
        for thing in things:
            if free[thing.place]:
                free[thing.place] -= 1
            else:
                wrong.append(thing)
        return wrong


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A relation such as "left of" between two entities, given by their ids."""

    subject: int
    kind: str
    reference: int

    def with_subject(self, entity: int) -> "Relation":
        """Return the same fact with ``entity`` as the subject. Raises KeyError if ``kind`` has no inverse."""
        if self.subject == entity:
            return self
        return Relation(subject=self.reference, kind=INVERSE[self.kind], reference=self.subject)


class SceneGraph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a picture. Entities are in the order in which they are named or drawn.

    Raises:
      SceneError: two entities share an id or cannot be told apart, a relation names an unknown entity, or
        the relations along one axis contradict each other.
    """

    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...] = ()
    background: str | None = None

    def __post_init__(self) -> None:
        ids = {e.id for e in self.entities}
        if len(ids) != len(self.entities):
            raise SceneError("two entities have the same id")
        for a, b in itertools.combinations(self.entities, 2):
            if (a.noun, a.attributes) == (b.noun, b.attributes):
                raise SceneError(f"entities {a.id} and {b.id} cannot be told apart: both are {a.noun!r}")
        for r in self.relations:
            if r.subject == r.reference or not {r.subject, r.reference} <= ids:
                raise SceneError(f"relation {r.subject} {r.kind} {r.reference}: no two entities of the graph")
        for kind in ("left of", "above"):
            _refuse_cycle(self.relations, kind)

    def find(self, entity: int) -> Entity:
        """Return the entity with this id. Raises KeyError if there is none."""
        for candidate in self.entities:
            if candidate.id == entity:
                return candidate
        raise KeyError(entity)


def _refuse_cycle(relations: tuple[Relation, ...], kind: str) -> None:
    # Kahn's algorithm on the order along this axis: if no entity is first, the remaining edges hold a cycle.
    edges = {(r.subject, r.reference) for r in relations if r.kind == kind}
    edges |= {(r.reference, r.subject) for r in relations if r.kind == INVERSE[kind]}
    while edges:
        firsts = {a for a, _ in edges} - {b for _, b in edges}
        if not firsts:
            raise SceneError(f"the relations '{kind}' and '{INVERSE[kind]}' contradict each other: {sorted(edges)}")
        edges = {(a, b) for a, b in edges if a not in firsts}


def implies(later: SceneGraph, earlier: SceneGraph) -> bool:
    """Return whether ``later`` states everything that ``earlier`` states. Entities are matched by id."""
    entities = {e.id: e for e in later.entities}
    for e in earlier.entities:
        same = entities.get(e.id)
        if same is None or (same.noun, same.count) != (e.noun, e.count):
            return False
        if not e.attributes.items() <= same.attributes.items():
            return False
    background = earlier.background in (None, later.background)
    return background and set(earlier.relations) <= set(later.relations)


def extract_subgraph(graph: SceneGraph, ids: Collection[int]) -> SceneGraph:
    """Return the graph of these entities in the same order, with the relations among them and the background."""
    return SceneGraph(
        entities=tuple(e for e in graph.entities if e.id in ids),
        relations=tuple(r for r in graph.relations if r.subject in ids and r.reference in ids),
        background=graph.background,
    )


def place_implies(kind: str, subject: str, reference: str) -> bool:
    """Return whether everything at one of ``PLACES`` is in a spatial relation to everything at another.

    The two are in different thirds of the picture along the relation's axis. Neighbouring thirds only suffice if both
    are in the same third across it: one token to the left and two down is not "left of" by GenEval's rule.
    """
    first, second = (subject, reference) if kind in ("left of", "above") else (reference, subject)
    rows, columns = zip(*(divmod(PLACES.index(place), 3) for place in (first, second)))
    along, across = (columns, rows) if kind in ("left of", "right of") else (rows, columns)
    distance = along[1] - along[0]
    return distance == 2 or (distance == 1 and across[0] == across[1])


def all_imply(kind: str, subjects: Iterable[str], references: Iterable[str]) -> bool:
    """Return whether ``place_implies`` holds for every pair of places."""
    return all(place_implies(kind, a, b) for a, b in itertools.product(subjects, references))


def places_imply(graph: SceneGraph, relation: Relation) -> bool:
    """Return whether the stated places alone imply a spatial relation between all things of two entities."""
    if relation.kind not in INVERSE:
        return False
    ends = graph.find(relation.subject).places, graph.find(relation.reference).places
    if not all(places and {*places} <= {*PLACES} for places in ends):
        return False
    return all_imply(relation.kind, *ends)


def drop_implied(graph: SceneGraph) -> SceneGraph:
    """Return the graph without the relations that its places imply."""
    kept = tuple(r for r in graph.relations if not places_imply(graph, r))
    return msgspec.structs.replace(graph, relations=kept)


GRAPH_SCHEMA: dict[str, Any] = msgspec.json.schema(SceneGraph)


def decode_graph(data: bytes | str) -> SceneGraph:
    """Decode a graph from JSON. Raises SceneError naming the key or the contradiction."""
    try:
        return decode_json(data, SceneGraph)
    except msgspec.DecodeError as fault:
        raise SceneError(f"scene graph: {fault}") from None


OPERATIONS = ("add", "modify", "swap", "move", "replace", "remove")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a trajectory: an operation, the entities it changes, and the whole graph after it.

    Together with the graph before it, this describes a step completely:

    - ``add``: ``entities`` are new, with their relations to existing entities. Only "add" adds entities. The first
      step, whose graph before is None, is always an "add".
    - ``modify``: one attribute of one entity, not ``place``, gets another value or is stated for the first time. An
      entity that becomes "outlined" and had no ``fill`` before was solid.
    - ``swap``: two entities exchange places, that is their relations and ``place``. If these stay, the two exchange
      their ``color``. ``swaps_places`` tells the two cases apart.
    - ``move``: the relations or the ``place`` of one entity change.
    - ``replace``: ``entities`` holds the old id and the new id. The new entity has another noun and the old entity's
      count, attributes and relations.
    - ``remove``: ``entities`` (ids of the graph before) disappear with their relations.

    An operation changes nothing else: no other entity, attribute or relation, and not the background.

    Raises:
      SceneError: the operation is unknown, or ``entities`` contradict the graph.
    """

    operation: str
    entities: tuple[int, ...]
    graph: SceneGraph

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise SceneError(f"operation {self.operation!r} is none of {OPERATIONS}")
        present = {e.id for e in self.graph.entities}
        gone = {"remove": self.entities, "replace": self.entities[:1]}.get(self.operation, ())
        here = self.entities[len(gone) :]
        if not self.entities or present & set(gone) or not set(here) <= present:
            raise SceneError(f"{self.operation} {self.entities}: the graph after it has the entities {sorted(present)}")


def swaps_places(before: SceneGraph, step: Step) -> bool:
    """Return whether a "swap" exchanges the places of its two entities; otherwise it exchanges their colours."""
    places = [[graph.find(e).attributes.get("place") for e in step.entities] for graph in (before, step.graph)]
    return set(before.relations) != set(step.graph.relations) or places[0] != places[1]


# Growth: a graph as a sequence of growing connected subgraphs, one per drawing step.


def _draw_order(rng: np.random.Generator, graph: SceneGraph) -> list[int]:
    # Random, but entities related to drawn ones come first, so that each subgraph is connected if possible.
    waiting = [e.id for e in graph.entities]
    drawn: list[int] = []
    while waiting:
        ends = {end for r in graph.relations for end in (r.subject, r.reference) if {r.subject, r.reference} & {*drawn}}
        candidates = [e for e in waiting if e in ends] or waiting
        drawn.append(candidates[rng.integers(len(candidates))])
        waiting.remove(drawn[-1])
    return drawn


def _draw_step_sizes(rng: np.random.Generator, entities: int, max_images: int) -> list[int]:
    # Entities per step: as even as possible, with the larger steps at random positions.
    steps = entities - max(int(rng.binomial(entities // 2, PAIR_RATE)), entities - max_images)
    each, left = divmod(entities, steps)
    return [each + int(i < left) for i in rng.permutation(steps)]


def grow(rng: np.random.Generator, graph: SceneGraph, max_images: int = 5) -> list[Step]:
    """Split a graph into 1 to ``max_images`` "add" steps. The graph after the last one is ``graph``.

    The first step draws the background. A step adds one or two entities, or more if the graph has over twice
    ``max_images``. All things of an entity are drawn in one step. If any remaining entity is related to a drawn one,
    such an entity comes next. Each step's graph implies the one before and keeps the order of ``graph``. Compositions
    of ``sample_graph`` take 3.5 steps on average.

    Raises:
      ValueError: the graph has no entity, or ``max_images`` is below 1.
    """
    if not graph.entities or max_images < 1:
        raise ValueError(f"nothing to draw: {len(graph.entities)} entities in at most {max_images} images")
    order = _draw_order(rng, graph)
    ends = list(itertools.accumulate(_draw_step_sizes(rng, len(order), max_images)))
    steps = [Step("add", tuple(order[a:b]), extract_subgraph(graph, order[:b])) for a, b in zip([0, *ends], ends)]
    return [*steps[:-1], Step("add", steps[-1].entities, graph)]
