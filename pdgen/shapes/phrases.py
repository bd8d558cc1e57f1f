"""Scene graphs as phrases: "a large red circle left of a blue square, and two green stars above the red circle"."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from pdgen.shapes.graph import INVERSE, Entity, Relation, SceneGraph
from pdgen.shapes.lexicon import ADJECTIVES, RELATIONS, join, number, place_phrase, plural, sentence, with_article


class Wording(NamedTuple):
    """How things are said in one text.

    Attributes:
      relations: the words of each relation.
      bare: things named before are named by noun alone where that is clear, else by colour and noun.
    """

    relations: Mapping[str, str] = {kind: wordings[0] for kind, wordings in RELATIONS.items()}
    bare: bool = False


USUAL = Wording()
INLINE = 2  # new things that a clause may name beside its own


def look(entity: Entity) -> str:
    """Adjectives and noun, in the plural for more than one: "large red circle", "outlined stars"."""
    names = [*ADJECTIVES, *(k for k in entity.attributes if k not in ADJECTIVES and k != "place")]
    words = [entity.attributes[k] for k in names if k in entity.attributes]
    return " ".join([*words, entity.noun if entity.count == 1 else plural(entity.noun)])


def some(entity: Entity) -> str:
    """As something new: "a red circle", "two stars". Without its place."""
    return with_article(look(entity)) if entity.count == 1 else f"{number(entity.count)} {look(entity)}"


def the(entity: Entity) -> str:
    """As something known: "the red circle on the left", "the two stars"."""
    count = "" if entity.count == 1 else f"{number(entity.count)} "
    place = f" {place_phrase(entity.attributes['place'])}" if "place" in entity.attributes else ""
    return f"the {count}{look(entity)}{place}"


def name(graph: SceneGraph, entity: int, bare: bool = False) -> Entity:
    """The entity with no more attributes than tell it from the others: none (if ``bare``), the colour, more."""
    whole = graph.find(entity)
    others = [e for e in graph.entities if e.noun == whole.noun and e.id != entity]
    for kept in ((), ("color",), tuple(k for k in whole.attributes if k != "place"))[not bare :]:
        attributes = {k: v for k, v in whole.attributes.items() if k in kept}
        if not any(attributes.items() <= e.attributes.items() for e in others):
            return Entity(whole.id, whole.noun, whole.count, attributes)
    return whole


def known(graph: SceneGraph, entity: int, bare: bool = False) -> str:
    """ "the" and the shortest clear name: "the red circle"."""
    return the(name(graph, entity, bare))


def fact(graph: SceneGraph, relation: Relation, words: Wording = USUAL) -> str:
    """The relation as said of its subject: "left of the blue square"."""
    return f"{words.relations.get(relation.kind, relation.kind)} {known(graph, relation.reference, words.bare)}"


def relations_to(graph: SceneGraph, entity: int, among: Collection[int]) -> list[Relation]:
    """The entity's relations to those in ``among``, turned so that it is the subject.

    A relation without inverse of which it is the reference is left out.
    """
    return [
        r.seen_from(entity)
        for r in graph.relations
        if (r.subject == entity and r.reference in among)
        or (r.reference == entity and r.subject in among and r.kind in INVERSE)
    ]


def clauses(graph: SceneGraph, new: Collection[int], words: Wording = USUAL) -> tuple[list[str], list[Relation]]:
    """Clauses that name each entity of ``new`` in full, and the relations of these that the clauses leave out.

    After an entity come its place and its relations: to what is named before or not in ``new``, and to one or two
    others that are then named within its clause ("a circle left of a square") unless they have more to say.
    """
    said: list[str] = []
    there = {e.id for e in graph.entities} - set(new)
    waiting = [e for e in graph.entities if e.id in new]
    left = {r for r in graph.relations if {r.subject, r.reference} & set(new)}
    while waiting:
        entity = waiting.pop(0)
        told = relations_to(graph, entity.id, there)
        where = [fact(graph, r, words) for r in told]
        there.add(entity.id)
        inline = [e for e in waiting if [r.reference for r in relations_to(graph, e.id, there)] == [entity.id]]
        for other in inline[:INLINE]:
            said_here = relations_to(graph, entity.id, [other.id])
            if not said_here or relations_to(graph, other.id, there - {entity.id}):
                continue
            waiting.remove(other)
            there.add(other.id)
            told += said_here
            kind = said_here[0].kind
            where.append(f"{words.relations.get(kind, kind)} {_placed(other, [])}")
        said.append(_placed(entity, where))
        left -= {r for r in left if r in told or (r.kind in INVERSE and r.seen_from(r.reference) in told)}
    return said, [r for r in graph.relations if r in left]


def _placed(entity: Entity, where: list[str]) -> str:
    place = entity.attributes.get("place")
    where = where if place is None else [place_phrase(place), *where]
    return " ".join([some(entity), " and ".join(where)]).strip()


def scene(graph: SceneGraph, new: Collection[int], words: Wording = USUAL) -> tuple[str, list[Relation]]:
    """``clauses`` and the background as one phrase, and the relations that it leaves out."""
    parts, left = clauses(graph, new, words)
    if not parts:
        assert graph.background is not None  # a graph of nothing at all is never put into words
        return background_phrase(graph.background), left
    listed = any("place" in e.attributes and len({*e.places}) > 1 for e in graph.entities)
    several = len(parts) > 1 and (len(left) < len(graph.relations) or listed)  # clauses hold more than names
    text = f"{', '.join(parts[:-1])}, and {parts[-1]}" if several else join(parts)
    if graph.background is None:
        return text, left
    return f"{text}{',' * several} on {background_phrase(graph.background)}", left


def background_phrase(background: str) -> str:
    """ "a light grey background"."""
    return with_article(f"{background} background")


def statements(graph: SceneGraph, relations: Collection[Relation], words: Wording = USUAL) -> list[str]:
    """Relations as sentences, one for each subject: "The red circle is left of the blue square."."""
    said = []
    for subject in dict.fromkeys(r.subject for r in relations):
        where = " and ".join(fact(graph, r, words) for r in relations if r.subject == subject)
        said.append(sentence(f"{known(graph, subject, words.bare)} {be(graph.find(subject))} {where}"))
    return said


def be(entity: Entity) -> str:
    """ "is" or "are"."""
    return "is" if entity.count == 1 else "are"


def was(entity: Entity) -> str:
    """ "was" or "were"."""
    return "was" if entity.count == 1 else "were"
