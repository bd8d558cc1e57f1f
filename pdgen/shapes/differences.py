"""In what a plan's graph differs from its prompt's, where ids tell which entity is which."""

from typing import NamedTuple

from pdgen.shapes.graph import INVERSE, Entity, Relation, SceneGraph
from pdgen.shapes.lexicon import number


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


def differences(asked: SceneGraph, said: SceneGraph) -> list[Difference]:
    """In what ``said``, a plan, is not what ``asked``, a prompt, asks for. Nothing that the prompt leaves open."""
    plan = {e.id: e for e in said.entities}
    found: list[Difference] = []
    for entity in asked.entities:
        if entity.id in plan:
            found.extend(_of_looks(entity, plan[entity.id]))
        else:
            found.append(Difference("missing", (entity.id,), entity.noun, None))
    prompted = {e.id for e in asked.entities}
    found.extend(Difference("extra", (e.id,), "", e.noun) for e in said.entities if e.id not in prompted)
    for relation in asked.relations:
        pair = (relation.subject, relation.reference)
        kinds = _kinds(said, *pair)
        if relation.kind not in kinds and plan.keys() >= {*pair}:
            found.append(Difference("relation", pair, relation.kind, kinds[0] if kinds else None))
    if asked.background not in (None, said.background):
        found.append(Difference("background", (), asked.background, said.background))
    return found


def _of_looks(asked: Entity, said: Entity) -> list[Difference]:
    found = []
    if asked.noun != said.noun:
        found.append(Difference("shape", (asked.id,), asked.noun, said.noun))
    if asked.count != said.count:
        found.append(Difference("count", (asked.id,), number(asked.count), number(said.count)))
    for key, value in asked.attributes.items():
        if said.attributes.get(key) != value:
            found.append(Difference(key, (asked.id,), value, said.attributes.get(key)))
    return found


def _kinds(graph: SceneGraph, subject: int, reference: int) -> list[str]:
    """All relations stated of the pair, as seen from ``subject``."""
    same = [r.kind for r in graph.relations if (r.subject, r.reference) == (subject, reference)]
    turned = [r for r in graph.relations if (r.reference, r.subject) == (subject, reference) and r.kind in INVERSE]
    return same + [r.seen_from(subject).kind for r in turned]


def relation_of(difference: Difference) -> Relation:
    """The relation that a difference of kind "relation" asks for."""
    return Relation(difference.entities[0], difference.asked, difference.entities[1])
