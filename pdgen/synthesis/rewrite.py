"""Rewriting of steps: detours to the same final scene, with steps that modify, swap, move, replace and remove.

A detour is constructed backwards. A step's graph is changed to what might have been drawn first: an entity in another
colour, two entities in each other's places, something extra. The steps from the first one with these entities show the
changed graph, and one more step corrects it. The steps after that are the original ones.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace

from pdgen.shapes.graph import (
    COLORS,
    INVERSE,
    OPERATIONS,
    PLACES,
    Entity,
    Relation,
    SceneError,
    SceneGraph,
    Step,
    extract_subgraph,
)
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.world import SHAPES, find_unpaintable
from pdgen.synthesis.sample import has_room

T = TypeVar("T")
SECOND_RATE = 0.2  # probability of a second detour, if there is room for its step
TRIES = 12  # random detours tried per operation before the next operation
DEFAULT_WEIGHTS: Mapping[str, float] = types.MappingProxyType(
    {"modify": 3.0, "swap": 2.0, "move": 3.0, "replace": 2.0, "remove": 2.0}
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words for detours.

    Attributes:
      nouns: nouns of things that are replaced or removed later; empty: no such detours.
      attributes: the values of each attribute; an attribute that is not listed is at first omitted.
      refuse: returns whether a graph must not be shown, not even temporarily.
    """

    nouns: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    refuse: Callable[[SceneGraph], bool] = lambda graph: False


def _refuse_shapes(graph: SceneGraph) -> bool:
    return is_held_out(graph) or not has_room(graph) or bool(find_unpaintable(graph))


SHAPES_VOCABULARY = Vocabulary(SHAPES, {"color": COLORS, "size": ("small", "large")}, _refuse_shapes)


class _Detour(NamedTuple):
    entities: tuple[int, ...]  # as in Step
    graph: SceneGraph  # before the step


_Proposer = Callable[[np.random.Generator, SceneGraph, Vocabulary, int], _Detour | None]


def _pick(rng: np.random.Generator, values: Sequence[T]) -> T | None:
    return values[int(rng.integers(len(values)))] if values else None


def _pick_one(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _replace_entities(graph: SceneGraph, *changed: Entity) -> SceneGraph:
    new = {e.id: e for e in changed}
    return replace(graph, entities=tuple(new.get(e.id, e) for e in graph.entities))


def _set_attribute(entity: Entity, name: str, value: str | None) -> Entity:
    if value is None:
        return replace(entity, attributes={k: v for k, v in entity.attributes.items() if k != name})
    return replace(entity, attributes=entity.attributes | {name: value})


def _rename(relations: Sequence[Relation], names: Mapping[int, int]) -> tuple[Relation, ...]:
    return tuple(
        Relation(names.get(r.subject, r.subject), r.kind, names.get(r.reference, r.reference)) for r in relations
    )


def _find_touching(graph: SceneGraph, *ids: int) -> list[Relation]:
    return [r for r in graph.relations if {r.subject, r.reference} & {*ids}]


def _find_only_relation(graph: SceneGraph, entity: int) -> Relation | None:
    # The entity's only relation, if it is spatial and the other entity has no stated place.
    own = _find_touching(graph, entity)
    if len(own) != 1 or own[0].kind not in INVERSE:
        return None
    other = own[0].reference if own[0].subject == entity else own[0].subject
    return None if "place" in graph.find(other).attributes else own[0]


def _propose_modify(rng: np.random.Generator, graph: SceneGraph, vocabulary: Vocabulary, fresh: int) -> _Detour | None:
    entity = _pick_one(rng, graph.entities)
    name = _pick(rng, [name for name in entity.attributes if name != "place"])
    if name is None:
        return None
    values = [v for v in vocabulary.attributes.get(name, ()) if v != entity.attributes[name]]
    return _Detour((entity.id,), _replace_entities(graph, _set_attribute(entity, name, _pick(rng, values))))


def _propose_swap(rng: np.random.Generator, graph: SceneGraph, vocabulary: Vocabulary, fresh: int) -> _Detour | None:
    if len(graph.entities) < 2:
        return None
    a, b = (graph.entities[i] for i in rng.permutation(len(graph.entities))[:2])
    name = _pick_one(rng, ("color", "place"))
    mine, theirs = a.attributes.get(name), b.attributes.get(name)
    exchanged = _replace_entities(graph, _set_attribute(a, name, theirs), _set_attribute(b, name, mine))
    if name == "color":
        return None if a.noun == b.noun or None in (mine, theirs) else _Detour((a.id, b.id), exchanged)
    if a.count != b.count or any(r.kind not in INVERSE for r in _find_touching(graph, a.id, b.id)):
        return None
    return _Detour((a.id, b.id), replace(exchanged, relations=_rename(graph.relations, {a.id: b.id, b.id: a.id})))


def _propose_move(rng: np.random.Generator, graph: SceneGraph, vocabulary: Vocabulary, fresh: int) -> _Detour | None:
    # Only an entity with a single fact about its position: further facts would have to hold at both positions.
    entity = _pick_one(rng, graph.entities)
    place, relation = entity.attributes.get("place"), _find_only_relation(graph, entity.id)
    if place is not None and not _find_touching(graph, entity.id):
        other = _pick(rng, [p for p in PLACES if p != place])
        return _Detour((entity.id,), _replace_entities(graph, _set_attribute(entity, "place", other)))
    if place is None and relation is not None:
        other = replace(relation, kind=_pick_one(rng, [k for k in INVERSE if k != relation.kind]))
        relations = tuple(other if r == relation else r for r in graph.relations)
        return _Detour((entity.id,), replace(graph, relations=relations))
    return None


def _propose_replace(rng: np.random.Generator, graph: SceneGraph, vocabulary: Vocabulary, fresh: int) -> _Detour | None:
    entity = _pick_one(rng, graph.entities)
    noun = _pick(rng, sorted(set(vocabulary.nouns) - {e.noun for e in graph.entities}))
    if noun is None:
        return None
    first = replace(entity, id=fresh, noun=noun)
    entities = tuple(first if e is entity else e for e in graph.entities)
    relations = _rename(graph.relations, {entity.id: fresh})
    return _Detour((fresh, entity.id), replace(graph, entities=entities, relations=relations))


def _propose_remove(rng: np.random.Generator, graph: SceneGraph, vocabulary: Vocabulary, fresh: int) -> _Detour | None:
    # The extra has the attributes that all other entities have, and a relation if the graph has any.
    noun = _pick(rng, sorted(set(vocabulary.nouns) - {e.noun for e in graph.entities}))
    if noun is None:
        return None
    names = [n for n in vocabulary.attributes if all(n in e.attributes for e in graph.entities)]
    extra = Entity(id=fresh, noun=noun, attributes={n: _pick_one(rng, vocabulary.attributes[n]) for n in names})
    relations = graph.relations
    reference = _pick(rng, [e for e in graph.entities if "place" not in e.attributes])
    if reference is not None and any(r.kind in INVERSE for r in relations):
        relations += (Relation(fresh, _pick_one(rng, tuple(INVERSE)), reference.id),)
    return _Detour((fresh,), replace(graph, entities=(*graph.entities, extra), relations=relations))


_PROPOSERS: Mapping[str, _Proposer] = {
    "modify": _propose_modify,
    "swap": _propose_swap,
    "move": _propose_move,
    "replace": _propose_replace,
    "remove": _propose_remove,
}


def _count_duplicates(graph: SceneGraph) -> int:
    # The number of entities with noun and colour of an earlier one, which a detector cannot distinguish.
    return len(graph.entities) - len({(e.noun, e.attributes.get("color")) for e in graph.entities})


def _are_equal(a: SceneGraph, b: SceneGraph) -> bool:
    # Entities have the same order in both; relations may not.
    return a.entities == b.entities and set(a.relations) == set(b.relations)


def _find_start(rng: np.random.Generator, steps: Sequence[Step], stop: int, concerned: set[int]) -> int | None:
    # The step where the detour begins; only adds may lie between it and ``stop``. An extra may begin at any such step.
    run = next((i for i in range(stop, -1, -1) if steps[i].operation != "add"), -1) + 1
    if run > stop:
        return None
    first = next((i for i in range(stop + 1) if any(e.id in concerned for e in steps[i].graph.entities)), None)
    if first is None:
        return int(rng.integers(run, stop + 1))
    return first if first >= run else None


def _insert_detour(steps: Sequence[Step], start: int, stop: int, operation: str, detour: _Detour) -> list[Step]:
    names = {detour.entities[1]: detour.entities[0]} if operation == "replace" else {}
    extra = detour.entities if operation == "remove" else ()
    first = []
    for i, step in enumerate(steps[start : stop + 1]):
        drawn = tuple(names.get(e, e) for e in step.entities) + (extra if i == 0 else ())
        present = {names.get(e.id, e.id) for e in step.graph.entities} | {*extra}
        first.append(Step("add", drawn, extract_subgraph(detour.graph, present)))
    return [*steps[:start], *first, Step(operation, detour.entities, steps[stop].graph), *steps[stop + 1 :]]


def _add_detour(
    rng: np.random.Generator, steps: list[Step], operation: str, vocabulary: Vocabulary
) -> list[Step] | None:
    fresh = 1 + max(e.id for step in steps for e in step.graph.entities)
    for _ in range(TRIES):
        stop = int(rng.integers(len(steps)))
        graph = steps[stop].graph
        try:
            detour = _PROPOSERS[operation](rng, graph, vocabulary, fresh)
        except SceneError:  # two equal entities, or a cycle of relations
            continue
        if detour is None or _are_equal(detour.graph, graph):
            continue
        if _count_duplicates(detour.graph) > _count_duplicates(graph):
            continue
        start = _find_start(rng, steps, stop, set(detour.entities))
        if start is not None and not vocabulary.refuse(detour.graph):
            return _insert_detour(steps, start, stop, operation, detour)
    return None


def _merge_adds(rng: np.random.Generator, steps: list[Step]) -> list[Step]:
    # Merges two consecutive adds.
    pairs = [i for i in range(len(steps) - 1) if steps[i].operation == steps[i + 1].operation == "add"]
    i = _pick(rng, pairs)
    if i is None:
        return steps
    both = Step("add", steps[i].entities + steps[i + 1].entities, steps[i + 1].graph)
    return [*steps[:i], both, *steps[i + 2 :]]


def rewrite(
    rng: np.random.Generator,
    steps: Sequence[Step],
    share: float,
    vocabulary: Vocabulary = SHAPES_VOCABULARY,
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    max_images: int = 5,
) -> list[Step]:
    """Add a detour to the steps of ``grow`` with probability ``share``. The final graph stays the same.

    A detour adds one step, sometimes two, with an operation other than "add". It is drawn by ``weights`` among the
    operations that the graph allows; if it allows none, the steps are unchanged. Two consecutive adds are merged if
    there would be more than ``max_images`` steps. Ids that are not in the final graph belong to replaced or removed
    entities. ``Step`` defines what each operation changes.

    Before the correcting step, the picture shows:

    - modify: an attribute with another value of the vocabulary, or without a value;
    - swap: two entities in each other's places (relations and ``place``), or with each other's colours;
    - move: an entity whose only relation, or whose ``place``, is another one;
    - replace: another noun;
    - remove: one more thing, with a relation if the graph has spatial ones.

    Args:
      rng: the only source of randomness.
      steps: "add" steps, as ``grow`` makes them.
      share: probability of a detour, 0 to 1.
      vocabulary: the words for detours; the default is that of shapes world, which refuses held-out combinations and
        crowded scenes.
      weights: weights of the operations other than "add"; those not listed have weight 0.
      max_images: maximum number of steps.

    Raises:
      ValueError: ``share`` or a weight is out of range, or an operation is unknown.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is no probability")
    for operation, weight in weights.items():
        if operation not in OPERATIONS[1:] or weight < 0:
            raise ValueError(f"weight {operation!r}: {weight} is not one of {OPERATIONS[1:]} with at least 0")
    chosen = list(steps)
    names = [name for name, weight in weights.items() if weight > 0]
    if rng.random() >= share or not names:
        return chosen
    p = np.array([weights[name] for name in names])
    rounds = 1 + int(rng.random() < SECOND_RATE)
    for number in range(rounds):
        base = _merge_adds(rng, chosen) if number == 0 and len(chosen) >= max_images else chosen
        if len(base) >= max_images:
            break
        order = rng.choice(names, size=len(names), replace=False, p=p / p.sum())
        found = (_add_detour(rng, base, str(name), vocabulary) for name in order)
        chosen = next((new for new in found if new is not None), chosen)
    return chosen
