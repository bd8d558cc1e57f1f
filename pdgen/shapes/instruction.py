"""The instruction of a step as data: make it from a step, write it as a sentence, apply it to a graph.

``parse.parse_instruction`` is the inverse of ``write_instruction``.
"""

import msgspec
import numpy as np

from pdgen.shapes.graph import Entity, Relation, SceneError, SceneGraph, Step, drop_implied
from pdgen.shapes.lexicon import join_words, make_sentence, phrase_target, pick
from pdgen.shapes.phrases import collect_relations, phrase_known, phrase_new, phrase_scene, shorten, write_statements

EXCHANGED = "exchanged"


class Instruction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The change of one step, without the rest of the scene.

    Attributes:
      operation: one of ``OPERATIONS``.
      entities: ids of the entities concerned; for "replace" the old one and the new one.
      graph: everything that the instruction names. New entities have all their attributes, others only those that
        distinguish them. Relations and background are the stated ones.
      changes: for "modify" the attribute's new value; for "move" the ``place``, if stated; for "swap"
        ``{"color": "exchanged"}`` if colours and not places are exchanged.
      for_now: whether the step contradicts the prompt and a later step corrects it.
    """

    operation: str
    entities: tuple[int, ...]
    graph: SceneGraph
    changes: dict[str, str] = {}
    for_now: bool = False


def make_instruction(before: SceneGraph | None, step: Step) -> Instruction:
    """Make the instruction of a step. Relations that places imply are left out.

    Raises:
      SceneError: the step changes nothing that can be stated.
    """
    before = SceneGraph(()) if before is None else before
    if step.operation == "add":
        return _instruct_add(before, step)
    if step.operation == "replace":
        old, new = step.entities
        entity = step.graph.find(new)
        entity = msgspec.structs.replace(entity, attributes=_drop_place(entity))
        return Instruction("replace", step.entities, SceneGraph((shorten(before, old), entity)))
    named = tuple(shorten(before, i) for i in step.entities)
    if step.operation == "move":
        return _instruct_move(before, step)
    changes = {}
    if step.operation == "modify":
        (entity,) = step.entities
        changes = _find_changed(before.find(entity), step.graph.find(entity))
    elif step.operation == "swap" and swaps_colors(before, step):
        changes = {"color": EXCHANGED}
    return Instruction(step.operation, step.entities, SceneGraph(named), changes)


def swaps_colors(before: SceneGraph, step: Step) -> bool:
    """Return whether a swap exchanges colours; otherwise it exchanges places."""
    return any("color" in _find_changed(before.find(i), step.graph.find(i)) for i in step.entities)


def _drop_place(entity: Entity) -> dict[str, str]:
    return {k: v for k, v in entity.attributes.items() if k != "place"}


def _find_changed(old: Entity, new: Entity) -> dict[str, str]:
    return {k: v for k, v in new.attributes.items() if old.attributes.get(k) != v}


def _instruct_add(before: SceneGraph, step: Step) -> Instruction:
    new = set(step.entities)
    relations = tuple(r for r in drop_implied(step.graph).relations if {r.subject, r.reference} & new)
    named = new | {i for r in relations for i in (r.subject, r.reference)}
    entities = tuple(e if e.id in new else shorten(step.graph, e.id) for e in step.graph.entities if e.id in named)
    background = step.graph.background if step.graph.background != before.background else None
    return Instruction("add", step.entities, SceneGraph(entities, relations, background))


def _instruct_move(before: SceneGraph, step: Step) -> Instruction:
    (entity,) = step.entities
    others = [e.id for e in step.graph.entities if e.id != entity]
    relations = tuple(collect_relations(drop_implied(step.graph), entity, others))
    references = {r.reference for r in relations}
    named = tuple(shorten(before, e.id) for e in before.entities if e.id in references | {entity})
    place = step.graph.find(entity).attributes.get("place")
    if place is None and not relations:
        raise SceneError(f"move of entity {entity}: the graph after it does not say where to")
    return Instruction("move", step.entities, SceneGraph(named, relations), {} if place is None else {"place": place})


def apply_instruction(before: SceneGraph | None, instruction: Instruction) -> SceneGraph:
    """Apply an instruction, which has the ids of ``before``. Returns the graph after it.

    Raises:
      SceneError: the instruction names what is not there, or adds what is there.
    """
    before = SceneGraph(()) if before is None else before
    operations = {"add": _add, "modify": _modify, "swap": _swap, "move": _move, "replace": _replace, "remove": _remove}
    known = {e.id for e in before.entities}
    new = {"add": instruction.entities, "replace": instruction.entities[1:]}.get(instruction.operation, ())
    for entity in instruction.graph.entities:
        if (entity.id in known) == (entity.id in new):
            raise SceneError(
                f"{instruction.operation}: {phrase_known(entity)} is {'' if entity.id in known else 'not '}there"
            )
    return operations[instruction.operation](before, instruction)


def _add(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    new = tuple(e for e in instruction.graph.entities if e.id in instruction.entities)
    relations = before.relations + instruction.graph.relations
    return SceneGraph(before.entities + new, relations, instruction.graph.background or before.background)


def _modify(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    entities = tuple(
        Entity(e.id, e.noun, e.count, e.attributes | instruction.changes) if e.id in instruction.entities else e
        for e in before.entities
    )
    return SceneGraph(entities, before.relations, before.background)


def _swap(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    a, b = instruction.entities
    other = {a: b, b: a}
    key = "color" if instruction.changes else "place"
    entities = []
    for e in before.entities:
        attributes = {k: v for k, v in e.attributes.items() if k != key or e.id not in other}
        if e.id in other and key in before.find(other[e.id]).attributes:
            attributes[key] = before.find(other[e.id]).attributes[key]
        entities.append(Entity(e.id, e.noun, e.count, attributes))
    relations = before.relations
    if not instruction.changes:
        relations = tuple(
            Relation(other.get(r.subject, r.subject), r.kind, other.get(r.reference, r.reference)) for r in relations
        )
    return SceneGraph(tuple(entities), relations, before.background)


def _move(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    (entity,) = instruction.entities
    entities = tuple(
        Entity(e.id, e.noun, e.count, _drop_place(e) | instruction.changes) if e.id == entity else e
        for e in before.entities
    )
    kept = tuple(r for r in before.relations if entity not in (r.subject, r.reference))
    return SceneGraph(entities, kept + instruction.graph.relations, before.background)


def _replace(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    old, new = instruction.entities
    stated = instruction.graph.find(new)
    entities = tuple(
        Entity(new, stated.noun, stated.count, e.attributes | stated.attributes) if e.id == old else e
        for e in before.entities
    )
    ids = {old: new}
    relations = tuple(
        Relation(ids.get(r.subject, r.subject), r.kind, ids.get(r.reference, r.reference)) for r in before.relations
    )
    return SceneGraph(entities, relations, before.background)


def _remove(before: SceneGraph, instruction: Instruction) -> SceneGraph:
    gone = set(instruction.entities)
    return SceneGraph(
        entities=tuple(e for e in before.entities if e.id not in gone),
        relations=tuple(r for r in before.relations if not {r.subject, r.reference} & gone),
        background=before.background,
    )


# Wordings: {x} and {y} are entities, {to} is the new value or the target.
ADD = ("Add {x}", "Draw {x}", "Place {x}")
START = ("Start with {x}", "Draw {x}", "Begin with {x}")
MODIFY = ("Make {x} {to}", "Turn {x} {to}", "Change {x} to {to}")
SWAP = ("Swap {x} and {y}", "Exchange {x} and {y}", "Let {x} and {y} change places")
SWAP_COLORS = (
    "Swap the colours of {x} and {y}",
    "Exchange the colours of {x} and {y}",
    "Let {x} and {y} change colours",
)
MOVE = ("Move {x} {to}", "Shift {x} {to}", "Bring {x} {to}")
REPLACE = ("Replace {x} with {y}", "Turn {x} into {y}", "Exchange {x} for {y}")
REMOVE = ("Remove {x}", "Erase {x}", "Take away {x}")


def write_instruction(rng: np.random.Generator, instruction: Instruction, first: bool = False) -> str:
    """Write an instruction as a sentence; ``first`` means that nothing is drawn yet.

    Relations without an inverse ("on top of") may not fit into the sentence. They follow in sentences of their own.
    """
    graph, concerned = instruction.graph, [instruction.graph.find(i) for i in instruction.entities]
    x, y, to = phrase_known(concerned[0]), phrase_known(concerned[-1]), " and ".join(instruction.changes.values())
    forms = {
        "modify": MODIFY,
        "swap": SWAP_COLORS if instruction.changes else SWAP,
        "move": MOVE,
        "replace": REPLACE,
        "remove": REMOVE,
    }.get(instruction.operation, START if first else ADD)
    left: list[Relation] = []
    if instruction.operation == "add":
        x, left = phrase_scene(graph, instruction.entities)
    elif instruction.operation == "replace":
        y = phrase_new(concerned[1])
    elif instruction.operation == "remove":
        x = join_words([phrase_known(e) for e in concerned])
    elif instruction.operation == "move":
        place = instruction.changes.get("place")
        where = [] if place is None else [phrase_target(place)]
        to = " and ".join([*where, *(f"{r.kind} {phrase_known(graph.find(r.reference))}" for r in graph.relations)])
    words = pick(rng, forms).format(x=x, y=y, to=to)
    return " ".join(
        [make_sentence(f"{words} for now" if instruction.for_now else words), *write_statements(graph, left)]
    )
