"""Scene graphs: what a picture shows, in words and not in pixels.

A graph holds entities (a noun, how many, attributes), relations between them and a background. It knows
nothing of layout: the same type carries a GenEval prompt, the plan of a real teacher and a scene of shapes
world (``pdgen.shapes.world`` places one). As JSON it is validated by ``decode_graph``; ``GRAPH_SCHEMA`` is the JSON
schema that a language teacher gets.

Attributes are pairs of lower-case words. Shapes world uses ``color``, ``size`` ("small", "large"), ``fill``
("outlined") and ``place`` (a word of ``PLACES``, or of several things one for each: "top left, right"); any other is
carried along.
"""

import collections
import itertools
from collections.abc import Collection, Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
MAX_COUNT = 20
SEPARATOR = ", "  # of the places of several things


class SceneError(ValueError):
    """A scene contradicts itself; the message names the entity, object or relation at fault."""


@runtime_checkable
class Placed(Protocol):
    """An object of a scene or one that is seen."""

    @property
    def place(self) -> str: ...


_Placed = TypeVar("_Placed", bound=Placed)


def words_of_place(place: str) -> tuple[str, ...]:
    """The words of ``PLACES`` that the attribute ``place`` holds."""
    return tuple(place.split(SEPARATOR))


def place_of_all(places: Iterable[str]) -> str:
    """The attribute ``place`` of things at these places: the word, if they share it, else one for each in order."""
    order = {place: number for number, place in enumerate(PLACES)}
    said = sorted(places, key=lambda place: order.get(place, len(order)))
    return said[0] if len(set(said)) == 1 else SEPARATOR.join(said)


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``count`` things of one noun (singular) that share all ``attributes``; ``id`` is unique in the graph."""

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
        number = self.attributes.get("place", "").count(SEPARATOR) + 1
        if number not in (1, self.count):
            raise SceneError(f"entity {self.id}: {number} places for {self.count} things: {self.attributes['place']!r}")

    @property
    def places(self) -> tuple[str, ...]:
        """The place of each of its things; none where it is not stated."""
        if "place" not in self.attributes:
            return ()
        stated = words_of_place(self.attributes["place"])
        return stated * self.count if len(stated) == 1 else stated

    def misplaced(self, things: Iterable[_Placed]) -> list[_Placed]:
        """Those of its things that are where ``place`` has none left; none where no place is stated."""
        free, wrong = collections.Counter(self.places), []
        for thing in things if self.places else ():
            if free[thing.place]:
                free[thing.place] -= 1
            else:
                wrong.append(thing)
        return wrong


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``subject`` stands in relation ``kind`` to ``reference``; both are ids of entities."""

    subject: int
    kind: str
    reference: int

    def seen_from(self, entity: int) -> "Relation":
        """The same fact with ``entity``, one of the two, as the subject. KeyError where the kind has no inverse."""
        if self.subject == entity:
            return self
        return Relation(subject=self.reference, kind=INVERSE[self.kind], reference=self.subject)


class SceneGraph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a picture shows. Entities stand in the order in which they are named or drawn.

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
        """The entity of that id. Raises KeyError if there is none."""
        for candidate in self.entities:
            if candidate.id == entity:
                return candidate
        raise KeyError(entity)


def _refuse_cycle(relations: tuple[Relation, ...], kind: str) -> None:
    # Kahn's algorithm on "comes before along this axis": what remains when no first one is left is a cycle.
    edges = {(r.subject, r.reference) for r in relations if r.kind == kind}
    edges |= {(r.reference, r.subject) for r in relations if r.kind == INVERSE[kind]}
    while edges:
        firsts = {a for a, _ in edges} - {b for _, b in edges}
        if not firsts:
            raise SceneError(f"the relations '{kind}' and '{INVERSE[kind]}' contradict each other: {sorted(edges)}")
        edges = {(a, b) for a, b in edges if a not in firsts}


def implies(later: SceneGraph, earlier: SceneGraph) -> bool:
    """Whether all that ``earlier`` says, ``later`` says too (ids tell which entity is which)."""
    entities = {e.id: e for e in later.entities}
    for e in earlier.entities:
        same = entities.get(e.id)
        if same is None or (same.noun, same.count) != (e.noun, e.count):
            return False
        if not e.attributes.items() <= same.attributes.items():
            return False
    background = earlier.background in (None, later.background)
    return background and set(earlier.relations) <= set(later.relations)


def subgraph(graph: SceneGraph, ids: Collection[int]) -> SceneGraph:
    """The entities of those ids in the graph's order, the relations among them, and the background."""
    return SceneGraph(
        entities=tuple(e for e in graph.entities if e.id in ids),
        relations=tuple(r for r in graph.relations if r.subject in ids and r.reference in ids),
        background=graph.background,
    )


GRAPH_SCHEMA: dict[str, Any] = msgspec.json.schema(SceneGraph)


def decode_graph(data: bytes | str) -> SceneGraph:
    """A graph from JSON. Raises SceneError naming the key or the contradiction."""
    try:
        return msgspec.json.decode(data, type=SceneGraph)
    except msgspec.DecodeError as fault:
        raise SceneError(f"scene graph: {fault}") from None


OPERATIONS = ("add", "modify", "swap", "move", "replace", "remove")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a trajectory: what was done to which entities, and the whole graph after it.

    ``operation``, ``entities`` and ``graph`` together with the graph before say all there is to say of a step:

    - ``add``: ``entities`` are new, with their relations to what is there. The only one that adds entities, and
      the only one of a first step, whose graph before is None.
    - ``modify``: one attribute of one entity other than ``place`` has another value, or is stated for the first
      time (``outlined`` where nothing was said before means that it was filled).
    - ``swap``: two entities exchange places: each takes the other's relations and ``place``. Or, where none of
      these changes, their ``color``; ``exchanges_places`` says which.
    - ``move``: one entity's relations or its ``place`` change; it stands where the graph after says.
    - ``replace``: ``entities`` is the old id, then the new one, which has another noun and takes over the old
      one's count, attributes and relations.
    - ``remove``: ``entities`` (ids of the graph before) are gone, with their relations.

    Whatever an operation does not concern stays: entities, attributes and relations of all others, background.

    Raises:
      SceneError: the operation is unknown, or ``entities`` do not fit the graph.
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


def exchanges_places(before: SceneGraph, step: Step) -> bool:
    """Whether a "swap" exchanges the places of its two entities, and not their colours."""
    places = [[graph.find(e).attributes.get("place") for e in step.entities] for graph in (before, step.graph)]
    return set(before.relations) != set(step.graph.relations) or places[0] != places[1]
