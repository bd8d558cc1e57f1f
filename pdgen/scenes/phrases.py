"""Scene graphs as phrases: "a large red circle left of a blue square, and two green stars above the red circle"."""

from collections.abc import Collection, Mapping

from pdgen.scenes.graph import INVERSE, Entity, Relation, SceneGraph
from pdgen.scenes.lexicon import ADJECTIVES, RELATIONS, join, number, place_phrase, plural, sentence, with_article

USUAL: Mapping[str, str] = {kind: wordings[0] for kind, wordings in RELATIONS.items()}


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


def name(graph: SceneGraph, entity: int) -> Entity:
    """The entity with no more attributes than tell it from the others of its noun; the colour is always kept."""
    whole = graph.find(entity)
    others = [e for e in graph.entities if e.noun == whole.noun and e.id != entity]
    for kept in (("color",), tuple(k for k in whole.attributes if k != "place")):
        attributes = {k: v for k, v in whole.attributes.items() if k in kept}
        if not any(attributes.items() <= e.attributes.items() for e in others):
            return Entity(whole.id, whole.noun, whole.count, attributes)
    return whole


def known(graph: SceneGraph, entity: int) -> str:
    """"the" and the shortest clear name: "the red circle"."""
    return the(name(graph, entity))


def fact(graph: SceneGraph, relation: Relation, words: Mapping[str, str] = USUAL) -> str:
    """The relation as said of its subject: "left of the blue square"."""
    return f"{words.get(relation.kind, relation.kind)} {known(graph, relation.reference)}"


def facts(graph: SceneGraph, entity: int, among: Collection[int], words: Mapping[str, str] = USUAL) -> list[str]:
    """All relations of the entity to those in ``among``, said of it."""
    return [fact(graph, r, words) for r in relations_to(graph, entity, among)]


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


def clauses(
    graph: SceneGraph, new: Collection[int], words: Mapping[str, str] = USUAL
) -> tuple[list[str], list[Relation]]:
    """A clause for each entity of ``new``, in order, and the relations of these that the clauses leave out.

    An entity is named in full, then come its place and its relations to what is named before or not in ``new``.
    One that is related to the next alone takes it into its clause: "a circle left of a square".
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
        if not told and waiting:
            told = relations_to(graph, entity.id, [waiting[0].id])
            if len(told) == 1 and not relations_to(graph, waiting[0].id, there - {entity.id}):
                other = waiting.pop(0)
                there.add(other.id)
                where = [f"{words.get(told[0].kind, told[0].kind)} {_placed(other, [])}"]
            else:
                told = []
        said.append(_placed(entity, where))
        left -= {r for r in left if r in told or (r.kind in INVERSE and r.seen_from(r.reference) in told)}
    return said, [r for r in graph.relations if r in left]


def _placed(entity: Entity, where: list[str]) -> str:
    place = entity.attributes.get("place")
    return " ".join([some(entity), " and ".join([*([] if place is None else [place_phrase(place)]), *where])]).strip()


def scene(graph: SceneGraph, new: Collection[int], words: Mapping[str, str] = USUAL) -> tuple[str, list[Relation]]:
    """``clauses`` as one phrase with the background, if the graph states one, and the relations that it leaves out."""
    parts, left = clauses(graph, new, words)
    if not parts:
        return background_phrase(graph.background), left
    several = len(parts) > 1 and len(left) < len(graph.relations)  # clauses hold more than names
    text = f"{', '.join(parts[:-1])}, and {parts[-1]}" if several else join(parts)
    if graph.background is None:
        return text, left
    return f"{text}{',' * several} on {background_phrase(graph.background)}", left


def background_phrase(background: str) -> str:
    """ "a light grey background"."""
    return with_article(f"{background} background")


def statements(graph: SceneGraph, relations: Collection[Relation], words: Mapping[str, str] = USUAL) -> list[str]:
    """Relations as sentences: "The red circle is left of the blue square."."""
    said = []
    for r in relations:
        verb = "is" if graph.find(r.subject).count == 1 else "are"
        said.append(sentence(f"{known(graph, r.subject)} {verb} {fact(graph, r, words)}"))
    return said
