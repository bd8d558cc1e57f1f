"""Rewriting: the same final scene by other ways, so that steps also modify, swap, move, replace and remove.

A way round is made backwards. From a step's graph follows what might have stood there first: an entity in another
colour, two that stand in each other's places, something extra. All steps since the first of the entities concerned
show that instead, and one more step puts it right. What is right thereafter is the old sequence.
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
SECOND_RATE = 0.2  # of a second way round in the same trajectory, where there is room for its step
TRIES = 12  # random ways per operation before another operation has its turn
DEFAULT_WEIGHTS: Mapping[str, float] = types.MappingProxyType(
    {"modify": 3.0, "swap": 2.0, "move": 3.0, "replace": 2.0, "remove": 2.0}
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words that may stand in a picture for a while.

    Attributes:
      nouns: of things to replace or remove later; without any, nothing is.
      attributes: the values of each attribute; an attribute that is not here is at first left out altogether.
      refuse: whether a graph must not be shown, not even for a while.
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
    # A spatial relation, the only one of the entity, to something that may stand anywhere.
    held = _find_touching(graph, entity)
    if len(held) != 1 or held[0].kind not in INVERSE:
        return None
    other = held[0].reference if held[0].subject == entity else held[0].subject
    return None if "place" in graph.find(other).attributes else held[0]


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
    # Only an entity that a single fact holds in its place: others would have to be true at both places.
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
    # The extra has the attributes that all others have too, and a relation where such are stated.
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
    # Entities that noun and colour do not tell from an earlier one: a detector cannot either.
    return len(graph.entities) - len({(e.noun, e.attributes.get("color")) for e in graph.entities})


def _are_equal(a: SceneGraph, b: SceneGraph) -> bool:
    # Their entities stand in the same order, their relations perhaps not.
    return a.entities == b.entities and set(a.relations) == set(b.relations)


def _find_start(rng: np.random.Generator, steps: Sequence[Step], stop: int, concerned: set[int]) -> int | None:
    # The step from which the way round shows, if only adds lie between it and ``stop``; any such one for an extra.
    run = next((i for i in range(stop, -1, -1) if steps[i].operation != "add"), -1) + 1
    if run > stop:
        return None
    first = next((i for i in range(stop + 1) if any(e.id in concerned for e in steps[i].graph.entities)), None)
    if first is None:
        return int(rng.integers(run, stop + 1))
    return first if first >= run else None


def _insert_detour(steps: Sequence[Step], start: int, stop: int, operation: str, way: _Detour) -> list[Step]:
    names = {way.entities[1]: way.entities[0]} if operation == "replace" else {}
    extra = way.entities if operation == "remove" else ()
    first = []
    for i, step in enumerate(steps[start : stop + 1]):
        drawn = tuple(names.get(e, e) for e in step.entities) + (extra if i == 0 else ())
        present = {names.get(e.id, e.id) for e in step.graph.entities} | {*extra}
        first.append(Step("add", drawn, extract_subgraph(way.graph, present)))
    return [*steps[:start], *first, Step(operation, way.entities, steps[stop].graph), *steps[stop + 1 :]]


def _add_detour(
    rng: np.random.Generator, steps: list[Step], operation: str, vocabulary: Vocabulary
) -> list[Step] | None:
    fresh = 1 + max(e.id for step in steps for e in step.graph.entities)
    for _ in range(TRIES):
        stop = int(rng.integers(len(steps)))
        graph = steps[stop].graph
        try:
            way = _PROPOSERS[operation](rng, graph, vocabulary, fresh)
        except SceneError:  # Two entities alike, or relations in a circle.
            continue
        if way is None or _are_equal(way.graph, graph) or _count_duplicates(way.graph) > _count_duplicates(graph):
            continue
        start = _find_start(rng, steps, stop, set(way.entities))
        if start is not None and not vocabulary.refuse(way.graph):
            return _insert_detour(steps, start, stop, operation, way)
    return None


def _merge_adds(rng: np.random.Generator, steps: list[Step]) -> list[Step]:
    # Two adds in a row become one.
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
    """The steps of ``grow``, or with probability ``share`` others that end in the same graph.

    Then one step, now and then two, is none of "add": an operation drawn by ``weights`` among those that the graph
    allows; where it allows none of them the steps stay as they are. Two consecutive adds are merged where there
    would be more than ``max_images`` steps. Ids that the final graph lacks stand for what is replaced or removed.
    ``Step`` says what each operation changes; nothing else ever does, and adds only add.

    The operations, by what is seen first: modify: one attribute has another value of the vocabulary, or is not
    there. swap: two entities stand in each other's places (their relations and ``place`` are exchanged) or have
    each other's colours. move: an entity's only relation is another one, or its ``place``. replace: another noun.
    remove: one thing more, related to something if any relation is spatial.

    Args:
      share: 0 to 1; 0 is growing alone.
      vocabulary: by default shapes world's, in which nothing held out is shown for a while, nor more than there
        is room for.
      weights: of operations apart from "add"; those not named have none.

    Raises:
      ValueError: ``share`` or a weight is out of range or names no operation.
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
