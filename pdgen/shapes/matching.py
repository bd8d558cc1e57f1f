"""Matching of two graphs: corresponding entities, and the differences between a plan and its prompt.

Graphs that were read from text number their entities in the order of naming, so their ids do not correspond. Entities,
or entities and detected objects, are matched by the cheapest assignment: different nouns cost most, then colours, then
counts, then sizes, fills and places.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from msgspec.structs import replace
from scipy.optimize import linear_sum_assignment

from pdgen.shapes.graph import INVERSE, Entity, HasPlace, Relation, SceneGraph, places_imply, split_places
from pdgen.shapes.lexicon import spell_number
from pdgen.shapes.world import HasLook, find_relations

NOUN, COLOR, COUNT, OTHER, UNSAID = 4.0, 3.0, 2.0, 1.0, 0.1
TIE = 0.01  # breaks ties: prefers the same relations and the same stated attributes
UNMATCHED = 4.5  # below the cost of another noun and another colour together


def compute_look_cost(asked: Mapping[str, str], said: Mapping[str, str]) -> float:
    """Compute the cost of matching two descriptions, each a noun (key "noun") and attributes.

    Keys that ``said`` lacks cost little.
    """
    cost = 0.0
    for key, value in asked.items():
        price = {"noun": NOUN, "color": COLOR}.get(key, OTHER)
        cost += UNSAID if key not in said else price * (not _agrees(key, value, said[key]))
    return cost


def _agrees(key: str, stated: str, seen: str) -> bool:
    # A place may list one word for each of several things; each thing is at one of them.
    return seen == stated or (key == "place" and seen in split_places(stated))


def matches_words(words: Mapping[str, str], looks: Mapping[str, str]) -> bool:
    """Return whether ``looks`` agree with all ``words`` (an entity's noun and attributes)."""
    return all(key in looks and _agrees(key, value, looks[key]) for key, value in words.items())


def get_words(entity: Entity) -> dict[str, str]:
    """Return noun and attributes as one dictionary."""
    return {"noun": entity.noun, **entity.attributes}


def assign(costs: Float[np.ndarray, "rows columns"]) -> dict[int, int]:
    """Find the cheapest assignment, as column by row.

    Args:
      costs: [rows, columns]. A row may stay unmatched at the cost ``UNMATCHED``.
    """
    rows, columns = costs.shape
    alone = np.full((rows, rows), UNMATCHED)
    pairs = zip(*linear_sum_assignment(np.concatenate([costs, alone], axis=1)))
    return {int(row): int(column) for row, column in pairs if column < columns}


def _make_signature(graph: SceneGraph, entity: int) -> set[tuple[str, str]]:
    # The entity's relations with the entity as subject, by the other entity's noun.
    both_ways = [(r.subject, r.kind, r.reference) for r in graph.relations]
    both_ways += [(r.reference, INVERSE[r.kind], r.subject) for r in graph.relations if r.kind in INVERSE]
    return {(kind, graph.find(other).noun) for subject, kind, other in both_ways if subject == entity}


def _compute_relation_cost(asked: set[tuple[str, str]], said: set[tuple[str, str]]) -> float:
    opposed = asked & {(INVERSE[kind], noun) for kind, noun in said if kind in INVERSE}
    return OTHER * len(opposed) + TIE * len(asked ^ said)


def align(asked: SceneGraph, said: SceneGraph) -> SceneGraph:
    """Return ``said`` with the ids of the matching entities of ``asked``; entities without a match get new ids."""
    costs = np.zeros((len(said.entities), len(asked.entities)))
    for i, mine in enumerate(said.entities):
        for j, theirs in enumerate(asked.entities):
            costs[i, j] = compute_look_cost(get_words(theirs), get_words(mine)) + COUNT * (mine.count != theirs.count)
            costs[i, j] += _compute_relation_cost(_make_signature(asked, theirs.id), _make_signature(said, mine.id))
            costs[i, j] += TIE * len(mine.attributes.keys() - theirs.attributes.keys())
    matches = assign(costs)
    fresh = 1 + max((e.id for e in asked.entities), default=-1)
    ids = {e.id: asked.entities[matches[i]].id if i in matches else fresh + i for i, e in enumerate(said.entities)}
    return renumber(said, ids)


def renumber(graph: SceneGraph, ids: Mapping[int, int]) -> SceneGraph:
    """Return the graph with other ids."""
    return SceneGraph(
        entities=tuple(replace(e, id=ids[e.id]) for e in graph.entities),
        relations=tuple(Relation(ids[r.subject], r.kind, ids[r.reference]) for r in graph.relations),
        background=graph.background,
    )


class Difference(NamedTuple):
    """One difference between a prompt and a plan.

    Attributes:
      kind: "missing", "extra", "shape" (another noun), "count", "relation", "background", or an attribute's name.
      entities: the ids concerned; subject and reference of a relation.
      asked: the prompt's word; "" for something extra.
      said: the plan's word; None if the plan states nothing, so that a later step may still add it.
    """

    kind: str
    entities: tuple[int, ...]
    asked: str
    said: str | None


def find_differences(asked: SceneGraph, said: SceneGraph) -> list[Difference]:
    """List where a plan (``said``) differs from a prompt (``asked``). What the prompt leaves open is no difference."""
    plan = {e.id: e for e in said.entities}
    found: list[Difference] = []
    for entity in asked.entities:
        if entity.id in plan:
            found.extend(_compare_looks(entity, plan[entity.id]))
        else:
            found.append(Difference("missing", (entity.id,), entity.noun, None))
    prompted = {e.id for e in asked.entities}
    found.extend(Difference("extra", (e.id,), "", e.noun) for e in said.entities if e.id not in prompted)
    for relation in asked.relations:
        pair = (relation.subject, relation.reference)
        kinds = _find_kinds(said, relation) if plan.keys() >= {*pair} else [relation.kind]
        if relation.kind not in kinds:
            found.append(Difference("relation", pair, relation.kind, kinds[0] if kinds else None))
    if asked.background not in (None, said.background):
        found.append(Difference("background", (), asked.background, said.background))
    return found


def _compare_looks(asked: Entity, said: Entity) -> list[Difference]:
    found = []
    if asked.noun != said.noun:
        found.append(Difference("shape", (asked.id,), asked.noun, said.noun))
    if asked.count != said.count:
        found.append(Difference("count", (asked.id,), spell_number(asked.count), spell_number(said.count)))
    for key, value in asked.attributes.items():
        if said.attributes.get(key) != value:
            found.append(Difference(key, (asked.id,), value, said.attributes.get(key)))
    return found


def _find_kinds(graph: SceneGraph, asked: Relation) -> list[str]:
    """Return the kinds of relation between the ends of ``asked``, with its subject: stated ones, then implied ones.

    Places imply only the asked kind or its inverse here: things above each other may also be left of each other.
    """
    subject, reference = asked.subject, asked.reference
    same = [r.kind for r in graph.relations if (r.subject, r.reference) == (subject, reference)]
    turned = [r for r in graph.relations if (r.reference, r.subject) == (subject, reference) and r.kind in INVERSE]
    both = [replace(asked, kind=kind) for kind in (asked.kind, INVERSE.get(asked.kind, asked.kind))]
    implied = [r.kind for r in both if places_imply(graph, r)]
    return same + [r.with_subject(subject).kind for r in turned] + implied


def get_asked_relation(difference: Difference) -> Relation:
    """Return the relation that the prompt asks for in a difference of kind "relation"."""
    return Relation(difference.entities[0], difference.asked, difference.entities[1])


# A picture against its graph.


@runtime_checkable
class ShownObject(HasLook, HasPlace, Protocol):
    """An object of a scene, or a detected shape that is matched to an entity."""

    @property
    def id(self) -> int:
        """The object's own id."""

    @property
    def entity(self) -> int:
        """Id of the entity that the object is an instance of."""

    @property
    def fill(self) -> str:
        """A word of ``FILLS``."""

    @property
    def size_word(self) -> str:
        """A key of ``SIZES``."""


@runtime_checkable
class ShownScene(Protocol):
    """A scene, or a picture whose detected shapes are matched to entities."""

    @property
    def objects(self) -> Sequence[ShownObject]:
        """All objects."""

    @property
    def background(self) -> str:
        """A word of ``BACKGROUNDS``."""

    def objects_of(self, entity: int) -> Sequence[ShownObject]:
        """Return the instances of an entity."""


class Violation(NamedTuple):
    """A difference between a scene and its graph.

    Attributes:
      kind: a word of ``faults.FAULTS``, "fill" or "background".
      entities: the ids concerned.
      text: the difference in words.
    """

    kind: str
    entities: tuple[int, ...]
    text: str


def _check_looks(entity: Entity, objects: Sequence[ShownObject]) -> Iterator[Violation]:
    stated = {"shape": entity.noun, **entity.attributes}
    places = stated.pop("place", "")
    for item in objects:
        shown = {"shape": item.shape, "color": item.color, "size": item.size_word, "fill": item.fill}
        for kind, value in stated.items():
            if shown.get(kind) != value:
                text = f"entity {entity.id}: {kind} of object {item.id} is {shown.get(kind)}, not {value}"
                yield Violation(kind, (entity.id,), text)
    wrong = entity.find_misplaced(objects)
    if len(wrong) > max(len(objects) - entity.count, 0):  # a surplus object is a wrong count, not a wrong place
        for item in wrong:
            text = f"entity {entity.id}: place of object {item.id} is {item.place}, not {places}"
            yield Violation("place", (entity.id,), text)


def find_violations(scene: ShownScene, graph: SceneGraph) -> list[Violation]:
    """List where a scene differs from its graph. What the graph leaves open cannot be wrong.

    Each entity must have as many objects as its count, and no objects may belong to other entities. Each object must
    have the entity's shape and attributes, and the objects' places must be the stated ones. A relation must hold
    between every instance of its subject and every instance of its reference. A stated background must be the scene's.
    """
    found = []
    for entity in graph.entities:
        objects = scene.objects_of(entity.id)
        if len(objects) != entity.count:
            text = f"entity {entity.id}: {len(objects)} of {entity.count} {entity.noun}"
            found.append(Violation("count" if objects else "missing", (entity.id,), text))
        found.extend(_check_looks(entity, objects))
    for other in sorted({o.entity for o in scene.objects} - {e.id for e in graph.entities}):
        found.append(Violation("count", (other,), f"entity {other} is not in the graph"))
    for r in graph.relations:
        for a, b in itertools.product(scene.objects_of(r.subject), scene.objects_of(r.reference)):
            if r.kind not in find_relations(a, b):
                text = f"entity {r.subject}: object {a.id} is not {r.kind} object {b.id} of entity {r.reference}"
                found.append(Violation("place", (r.subject, r.reference), text))
    if graph.background not in (None, scene.background):
        text = f"background is {scene.background}, not {graph.background}"
        found.append(Violation("background", (), text))
    return found
