"""Two graphs: which entity of one is which of the other, and in what a plan's differs from its prompt's.

Graphs that were read from text number their entities in the order of naming, so ids say nothing. The cheapest
assignment decides, also of seen objects to entities: a mismatch of nouns costs most, then colour, then count, then
size, fill and place.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from scipy.optimize import linear_sum_assignment

from pdgen.shapes.graph import INVERSE, Entity, Relation, SceneGraph, split_places
from pdgen.shapes.lexicon import spell_number

NOUN, COLOR, COUNT, OTHER, UNSAID = 4.0, 3.0, 2.0, 1.0, 0.1
TIE = 0.01  # of two that would do, the one with the same relations and of which the same attributes are said
UNMATCHED = 4.5  # with another noun and another colour it is another thing


def compute_look_cost(asked: Mapping[str, str], said: Mapping[str, str]) -> float:
    """How much two descriptions differ: nouns (key "noun") and attributes; what ``said`` leaves open costs little."""
    cost = 0.0
    for key, value in asked.items():
        price = {"noun": NOUN, "color": COLOR}.get(key, OTHER)
        cost += UNSAID if key not in said else price * (not _agrees(key, value, said[key]))
    return cost


def _agrees(key: str, stated: str, seen: str) -> bool:
    # One of several things is at one of their places.
    return seen == stated or (key == "place" and seen in split_places(stated))


def matches_words(words: Mapping[str, str], looks: Mapping[str, str]) -> bool:
    """Whether all that ``words`` say (noun and attributes of an entity) is so of something with these ``looks``."""
    return all(key in looks and _agrees(key, value, looks[key]) for key, value in words.items())


def get_words(entity: Entity) -> dict[str, str]:
    """Noun and attributes."""
    return {"noun": entity.noun, **entity.attributes}


def assign(costs: np.ndarray) -> dict[int, int]:
    """Column by row of the cheapest assignment; a pair that costs more than ``UNMATCHED`` is none.

    Args:
      costs: [rows, columns]. Every row has the choice of staying alone at ``UNMATCHED``.
    """
    rows, columns = costs.shape
    alone = np.full((rows, rows), UNMATCHED)
    pairs = zip(*linear_sum_assignment(np.concatenate([costs, alone], axis=1)))
    return {int(row): int(column) for row, column in pairs if column < columns}


def _make_signature(graph: SceneGraph, entity: int) -> set[tuple[str, str]]:
    # Its relations by the other one's noun, as seen from the entity.
    both_ways = [(r.subject, r.kind, r.reference) for r in graph.relations]
    both_ways += [(r.reference, INVERSE[r.kind], r.subject) for r in graph.relations if r.kind in INVERSE]
    return {(kind, graph.find(other).noun) for subject, kind, other in both_ways if subject == entity}


def _compute_relation_cost(asked: set[tuple[str, str]], said: set[tuple[str, str]]) -> float:
    opposed = asked & {(INVERSE[kind], noun) for kind, noun in said if kind in INVERSE}
    return OTHER * len(opposed) + TIE * len(asked ^ said)


def align(asked: SceneGraph, said: SceneGraph) -> SceneGraph:
    """``said`` with the ids of ``asked`` where an entity is the same one; those of its own get new ids."""
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
    """The graph with other ids."""
    return SceneGraph(
        entities=tuple(replace(e, id=ids[e.id]) for e in graph.entities),
        relations=tuple(Relation(ids[r.subject], r.kind, ids[r.reference]) for r in graph.relations),
        background=graph.background,
    )


class Difference(NamedTuple):
    """One difference.

    Attributes:
      kind: "missing", "extra", "shape" (another noun), "count", "relation", "background", or an attribute's name.
      entities: the ids concerned; subject and reference of a relation.
      asked: the prompt's word; "" for something extra.
      said: the plan's word, None where the plan does not say: then it may be still to come.
    """

    kind: str
    entities: tuple[int, ...]
    asked: str
    said: str | None


def find_differences(asked: SceneGraph, said: SceneGraph) -> list[Difference]:
    """In what ``said``, a plan, is not what ``asked``, a prompt, asks for. Nothing that the prompt leaves open."""
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
        kinds = _find_kinds(said, *pair)
        if relation.kind not in kinds and plan.keys() >= {*pair}:
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


def _find_kinds(graph: SceneGraph, subject: int, reference: int) -> list[str]:
    """All relations stated of the pair, as seen from ``subject``."""
    same = [r.kind for r in graph.relations if (r.subject, r.reference) == (subject, reference)]
    turned = [r for r in graph.relations if (r.reference, r.subject) == (subject, reference) and r.kind in INVERSE]
    return same + [r.with_subject(subject).kind for r in turned]


def get_asked_relation(difference: Difference) -> Relation:
    """The relation that a difference of kind "relation" asks for."""
    return Relation(difference.entities[0], difference.asked, difference.entities[1])
