"""Scene graphs as phrases: "a large red circle left of a blue square, and two green stars above the red circle"."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pdgen.shapes.graph import INVERSE, Entity, Relation, SceneGraph
from pdgen.shapes.lexicon import (
    ADJECTIVES,
    RELATIONS,
    add_article,
    make_sentence,
    phrase_place,
    pluralize,
    spell_number,
)


class Wording(NamedTuple):
    """The wording of one text.

    Attributes:
      relations: the words for each relation.
      bare: whether a known thing is named by its noun alone where that is clear; otherwise the colour is added.
    """

    relations: Mapping[str, str] = {kind: wordings[0] for kind, wordings in RELATIONS.items()}
    bare: bool = False


USUAL = Wording()
INLINE = 2  # further new things that a clause may name


def phrase_look(entity: Entity) -> str:
    """Phrase adjectives and noun, plural if there are several: "large red circle", "outlined stars"."""
    names = [*ADJECTIVES, *(k for k in entity.attributes if k not in ADJECTIVES and k != "place")]
    words = [entity.attributes[k] for k in names if k in entity.attributes]
    return " ".join([*words, entity.noun if entity.count == 1 else pluralize(entity.noun)])


def phrase_new(entity: Entity) -> str:
    """Phrase an entity named for the first time, without its place: "a red circle", "two stars"."""
    look = phrase_look(entity)
    return add_article(look) if entity.count == 1 else f"{spell_number(entity.count)} {look}"


def phrase_known(entity: Entity) -> str:
    """Phrase an entity named before: "the red circle on the left", "the two stars"."""
    count = "" if entity.count == 1 else f"{spell_number(entity.count)} "
    place = f" {phrase_place(entity.attributes['place'])}" if "place" in entity.attributes else ""
    return f"the {count}{phrase_look(entity)}{place}"


def shorten(graph: SceneGraph, entity: int, bare: bool = False) -> Entity:
    """Drop the attributes that are not needed to tell an entity from the others.

    The result has the first of these that is unique: no attributes (only if ``bare``), the colour, all but the place,
    all.
    """
    whole = graph.find(entity)
    others = [e for e in graph.entities if e.noun == whole.noun and e.id != entity]
    for kept in ((), ("color",), tuple(k for k in whole.attributes if k != "place"))[not bare :]:
        attributes = {k: v for k, v in whole.attributes.items() if k in kept}
        if not any(attributes.items() <= e.attributes.items() for e in others):
            return Entity(whole.id, whole.noun, whole.count, attributes)
    return whole


def refer_to(graph: SceneGraph, entity: int, bare: bool = False) -> str:
    """Phrase the shortest unambiguous name of an entity: "the red circle"."""
    return phrase_known(shorten(graph, entity, bare))


def phrase_relation(graph: SceneGraph, relation: Relation, words: Wording = USUAL) -> str:
    """Phrase a relation without its subject: "left of the blue square"."""
    return f"{words.relations.get(relation.kind, relation.kind)} {refer_to(graph, relation.reference, words.bare)}"


def collect_relations(graph: SceneGraph, entity: int, among: Collection[int]) -> list[Relation]:
    """Return the entity's relations to those in ``among``, each with the entity as its subject.

    Relations without an inverse are left out where the entity is the reference.
    """
    return [
        r.with_subject(entity)
        for r in graph.relations
        if (r.subject == entity and r.reference in among)
        or (r.reference == entity and r.subject in among and r.kind in INVERSE)
    ]


def write_clauses(graph: SceneGraph, new: Collection[int], words: Wording) -> tuple[list[str], list[Relation]]:
    """Write clauses that name each entity of ``new`` in full.

    An entity is followed by its place and its relations to entities that are known already. Up to ``INLINE`` new
    entities that have no other relations are named in the same clause: "a circle left of a square".

    Returns:
      The clauses, and the relations of the new entities that the clauses do not state.
    """
    said: list[str] = []
    there = {e.id for e in graph.entities} - set(new)
    waiting = [e for e in graph.entities if e.id in new]
    left = {r for r in graph.relations if {r.subject, r.reference} & set(new)}
    while waiting:
        entity = waiting.pop(0)
        told = collect_relations(graph, entity.id, there)
        where = [phrase_relation(graph, r, words) for r in told]
        there.add(entity.id)
        inline = [e for e in waiting if [r.reference for r in collect_relations(graph, e.id, there)] == [entity.id]]
        for other in inline[:INLINE]:
            said_here = collect_relations(graph, entity.id, [other.id])
            if not said_here or collect_relations(graph, other.id, there - {entity.id}):
                continue
            waiting.remove(other)
            there.add(other.id)
            told += said_here
            kind = said_here[0].kind
            where.append(f"{words.relations.get(kind, kind)} {phrase_placed(other)}")
        said.append(phrase_placed(entity, where))
        left -= {r for r in left if r in told or (r.kind in INVERSE and r.with_subject(r.reference) in told)}
    return said, [r for r in graph.relations if r in left]


def phrase_placed(entity: Entity, where: Sequence[str] = ()) -> str:
    """Phrase an entity named for the first time, with its place and then ``where``: "a red circle on the left"."""
    place = entity.attributes.get("place")
    where = [*where] if place is None else [phrase_place(place), *where]
    return " ".join([phrase_new(entity), " and ".join(where)]).strip()


def phrase_scene(graph: SceneGraph, new: Collection[int], words: Wording = USUAL) -> tuple[str, list[Relation]]:
    """Join ``write_clauses`` and the background to one phrase. Returns it and the relations that it does not state."""
    parts, left = write_clauses(graph, new, words)
    listed = any("place" in e.attributes and len({*e.places}) > 1 for e in graph.entities)
    return join_clauses(parts, graph.background, listed or len(left) < len(graph.relations)), left


def join_clauses(clauses: list[str], background: str | None, long: bool) -> str:
    """Join clauses and a background to one phrase; ``long``: some clauses hold more than a look and a place."""
    if not clauses:
        assert background is not None  # a graph of nothing at all is never put into words
        return phrase_background(background)
    # Long clauses are separated by commas, so that it is clear what "and" joins.
    commas = "," * (len(clauses) > 1 and long)
    text = f"{', '.join(clauses[:-1])}{commas} and {clauses[-1]}" if len(clauses) > 1 else clauses[0]
    return text if background is None else f"{text}{commas} on {phrase_background(background)}"


def phrase_background(background: str) -> str:
    """Phrase a background: "a light grey background"."""
    return add_article(f"{background} background")


def write_statements(graph: SceneGraph, relations: Collection[Relation], words: Wording = USUAL) -> list[str]:
    """Write relations as sentences, one for each subject: "The red circle is left of the blue square."."""
    said = []
    for subject in dict.fromkeys(r.subject for r in relations):
        where = " and ".join(phrase_relation(graph, r, words) for r in relations if r.subject == subject)
        said.append(make_sentence(f"{refer_to(graph, subject, words.bare)} {is_or_are(graph.find(subject))} {where}"))
    return said


def is_or_are(entity: Entity) -> str:
    """Return "is" or "are", to agree with the entity's count."""
    return "is" if entity.count == 1 else "are"


def was_or_were(entity: Entity) -> str:
    """Return "was" or "were", to agree with the entity's count."""
    return "was" if entity.count == 1 else "were"
