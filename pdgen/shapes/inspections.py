"""Inspections of shapes world, written from scene graphs: a plan or a drawing is right, or has a fault.

An inspection that finds a fault ends with the correction in ``<refine>``.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.graph import Entity, Relation, SceneError, SceneGraph, Step, extract_subgraph
from pdgen.shapes.instruction import Instruction, make_instruction, write_instruction
from pdgen.shapes.lexicon import join_words, make_sentence, phrase_place, pick, spell_number
from pdgen.shapes.matching import Difference, find_differences, get_asked_relation
from pdgen.shapes.phrases import (
    collect_relations,
    is_or_are,
    phrase_background,
    phrase_known,
    phrase_look,
    phrase_new,
    phrase_relation,
    refer_to,
    shorten,
    was_or_were,
)
from pdgen.shapes.world import Scene, find_relations

AGREED = ("As planned.", "All is as planned.", "The picture is as planned.")
COMPLETE = ("Nothing is missing.", "The picture is complete.", "All that was asked for is there.")
MANY = 3  # missing things that are named; more are counted


# Inspections that find no fault.


def write_agreement(rng: np.random.Generator, graph: SceneGraph, prompt_graph: SceneGraph) -> str:
    """Write an inspection that finds no fault: the picture is as planned, and what the prompt still asks for.

    ``graph`` is the graph after the step and ``prompt_graph`` that of the prompt, with the ids of ``graph``.
    """
    to_come = _to_come(rng, find_differences(prompt_graph, graph), prompt_graph, graph)
    return format_inspection(" ".join([pick(rng, AGREED), *(to_come or [pick(rng, COMPLETE)])]))


def _to_come(rng: np.random.Generator, left: list[Difference], asked: SceneGraph, there: SceneGraph) -> list[str]:
    """Write sentences on what is missing or will still change; none of it is a fault."""
    said = []
    missing = [asked.find(d.entities[0]) for d in left if d.kind == "missing"]
    if missing:
        names = join_words([phrase_new(shorten(asked, e.id)) for e in missing])
        names = names if len(missing) <= MANY else f"{spell_number(len(missing))} more things"
        subject = f"{names} {is_or_are(missing[0]) if len(missing) == 1 else 'are'}"
        forms = (f"{subject} still to come", f"still to come: {names}", f"{subject} not drawn yet")
        said.append(make_sentence(pick(rng, forms)))
    for d in left:
        if d.kind == "background":
            said.append(f"The background will be {d.asked}.")
        elif d.kind != "missing":
            said.append(make_sentence(f"{refer_to(there, d.entities[0])} will {_future(d, there)}"))
    return said


def _future(d: Difference, there: SceneGraph) -> str:
    if d.kind == "extra":
        return "not stay"
    if d.kind == "relation":
        return f"move {phrase_relation(there, get_asked_relation(d))}"
    return f"move to the {d.asked}" if d.kind == "place" else f"become {d.asked}"


# Inspections that find a fault of the drawing.


def write_fault(
    rng: np.random.Generator,
    kind: str,
    graph: SceneGraph,
    entity: int | None = None,
    wrong: Entity | None = None,
    relation: Relation | None = None,
) -> str:
    """Write an inspection of a drawing that does not match its plan; it ends with ``<refine>``.

    Args:
      kind: a word of ``faults.FAULTS``, "fill", or "extra" for something that was not planned.
      graph: the graph of the plan.
      entity: the id of the faulty entity; None for "extra".
      wrong: what is seen instead; None for "missing". For a wrong place its ``place`` is used.
      relation: for "place", the relation that does not hold; None: the entity's ``place`` is wrong.

    Raises:
      SceneError: the kind is unknown, or ``wrong`` does not have this fault.
    """
    if kind == "extra":
        assert wrong is not None
        return _extra(rng, wrong)
    assert entity is not None
    right = graph.find(entity)
    if kind == "missing":
        return _missing(rng, graph, right)
    assert wrong is not None
    if kind == "place":
        return _misplaced(rng, graph, right, wrong, relation)
    if kind not in ("color", "size", "fill", "shape", "count"):
        raise SceneError(f"there are no words for a fault of {kind!r}")
    if kind == "shape":
        return _misshapen(rng, right, wrong)
    if kind == "count":
        return _miscounted(rng, shorten(graph, entity), wrong.count)
    return _discolored(rng, kind, graph, right, wrong)


def write_draft_fault(rng: np.random.Generator, kind: str, graph: SceneGraph, entity: int, draft: Scene) -> str:
    """Write the inspection of a draft that ``faults.corrupt`` made; ``graph`` is that of the correct scene."""
    seen = draft.objects_of(entity)
    if not seen:
        return write_fault(rng, "missing", graph, entity)
    first = seen[0]
    attributes = {"color": first.color, "size": first.size_word, "fill": first.fill}
    right = graph.find(entity)
    relation = None
    if kind == "place":
        attributes["place"] = next((o.place for o in right.find_misplaced(seen)), first.place)
        others = [e.id for e in graph.entities if e.id != entity]
        relation = next((r for r in collect_relations(graph, entity, others) if not _holds(draft, r)), None)
    wrong = Entity(entity, first.shape, len(seen), attributes)
    return write_fault(rng, kind, graph, entity, wrong, relation)


def _holds(scene: Scene, relation: Relation) -> bool:
    pairs = ((a, b) for a in scene.objects_of(relation.subject) for b in scene.objects_of(relation.reference))
    return all(relation.kind in find_relations(a, b) for a, b in pairs)


def write_background_fault(rng: np.random.Generator, right: str, wrong: str) -> str:
    """Write an inspection of a drawing with a wrong background."""
    forms = (
        f"The background is {wrong}, not {right}.",
        f"The background should be {right}, not {wrong}.",
        f"{make_sentence(phrase_background(right))[:-1]} was planned, not {wrong}.",
    )
    corrections = (f"Make the background {right}.", f"Change the background to {right}.")
    return format_inspection(pick(rng, forms), pick(rng, corrections))


def _extra(rng: np.random.Generator, wrong: Entity) -> str:
    forms = (
        f"there {is_or_are(wrong)} {phrase_new(wrong)} that was not planned",
        f"{phrase_new(wrong)} {is_or_are(wrong)} there, not planned",
        f"nothing in the plan says {phrase_new(wrong)}",
    )
    correction = write_instruction(rng, Instruction("remove", (wrong.id,), SceneGraph((wrong,))))
    return format_inspection(make_sentence(pick(rng, forms)), correction)


def _missing(rng: np.random.Generator, graph: SceneGraph, right: Entity) -> str:
    names, bare = refer_to(graph, right.id), phrase_look(shorten(graph, right.id))
    forms = (
        f"{names} {is_or_are(right)} missing",
        f"there {is_or_are(right)} no {bare}",
        f"{names} {is_or_are(right)} not drawn",
    )
    before = extract_subgraph(graph, {e.id for e in graph.entities} - {right.id})
    correction = write_instruction(rng, make_instruction(before, Step("add", (right.id,), graph)))
    return format_inspection(make_sentence(pick(rng, forms)), correction)


def _misplaced(
    rng: np.random.Generator, graph: SceneGraph, right: Entity, wrong: Entity, relation: Relation | None
) -> str:
    names, verb, each = refer_to(graph, right.id), is_or_are(right), "" if right.count == 1 else "all "
    if relation is not None:
        where = phrase_relation(graph, relation)
        forms = (
            f"{names} {verb} not {each}{where}",
            f"{names} should {each}be {where}",
            f"{names} {verb} in the wrong place, not {each}{where}",
        )
        reference = shorten(graph, relation.reference)
        to = Instruction("move", (right.id,), SceneGraph((shorten(graph, right.id), reference), (relation,)))
        return format_inspection(make_sentence(pick(rng, forms)), write_instruction(rng, to))
    place, seen = right.attributes.get("place"), wrong.attributes.get("place")
    if place is None or seen is None or place == seen:
        raise SceneError(f"entity {right.id}: no place or relation is wrong")
    planned, shown = phrase_place(place), phrase_place(seen)
    here = f"{names} {verb} {shown}" if len({*right.places}) == 1 else f"one of {names} is {shown}"
    forms = (f"{here}, not {planned}", f"{names} should be {planned}", f"{here}, but the plan says {planned}")
    to = Instruction("move", (right.id,), SceneGraph((shorten(graph, right.id),)), {"place": place})
    return format_inspection(make_sentence(pick(rng, forms)), write_instruction(rng, to))


def _of_kind(entity: Entity, keys: tuple[str, ...]) -> Entity:
    return Entity(entity.id, entity.noun, entity.count, {k: v for k, v in entity.attributes.items() if k in keys})


def _discolored(rng: np.random.Generator, kind: str, graph: SceneGraph, right: Entity, wrong: Entity) -> str:
    # An entity without a stated fill is solid. A size that is not stated cannot be wrong.
    value, seen = (e.attributes.get(kind, {"fill": "solid"}.get(kind)) for e in (right, wrong))
    if value == seen or value is None or seen is None:
        raise SceneError(
            f"entity {right.id}: the {kind} of {phrase_look(right)!r} and {phrase_look(wrong)!r} do not differ"
        )
    planned = _of_kind(right, ("color", kind))
    shown = _of_kind(wrong, ("color", kind))
    forms = [
        f"{phrase_known(shown)} should be {value}",
        f"{phrase_new(planned)} {was_or_were(right)} planned, not {seen}",
        f"{phrase_known(shown)} should not be {seen} but {value}",
    ]
    alike = [e for e in graph.entities if e.noun == right.noun]
    if kind != "color" or len(alike) == 1:
        subject = _of_kind(right, () if kind == "color" else ("color",))
        forms.append(f"{phrase_known(subject)} {is_or_are(right)} {seen}, not {value}")
    correction = write_instruction(rng, Instruction("modify", (right.id,), SceneGraph((shown,)), {kind: value}))
    return format_inspection(make_sentence(pick(rng, forms)), correction)


def _misshapen(rng: np.random.Generator, right: Entity, wrong: Entity) -> str:
    if right.noun == wrong.noun:
        raise SceneError(f"entity {right.id}: both are {right.noun!r}")
    planned, shown = _of_kind(right, ("color",)), _of_kind(wrong, ("color",))
    bare = _of_kind(right, ())
    forms = (
        f"there {is_or_are(wrong)} {phrase_new(shown)}, not {phrase_new(bare)}",
        f"{phrase_known(shown)} should be {phrase_new(bare)}",
        f"{phrase_new(planned)} {was_or_were(right)} planned, not {phrase_new(_of_kind(wrong, ()))}",
    )
    new = msgspec.structs.replace(planned, id=right.id + 1)
    correction = write_instruction(rng, Instruction("replace", (right.id, new.id), SceneGraph((shown, new))))
    return format_inspection(make_sentence(pick(rng, forms)), correction)


def _miscounted(rng: np.random.Generator, right: Entity, seen: int) -> str:
    if right.count == seen:
        raise SceneError(f"entity {right.id}: there are {seen}, as planned")
    shown = msgspec.structs.replace(right, count=seen)
    counted = f"{spell_number(seen)} {phrase_look(shown)}"
    forms = (
        f"there {is_or_are(shown)} {counted}, not {spell_number(right.count)}",
        f"{spell_number(right.count)} {phrase_look(right)} {was_or_were(right)} planned, not {spell_number(seen)}",
        f"{counted} {is_or_are(shown)} there, but {spell_number(right.count)} {was_or_were(right)} planned",
    )
    gap = msgspec.structs.replace(right, count=abs(right.count - seen))
    corrections = ("Add {} more {}.", "Draw {} more {}.") if seen < right.count else ("Remove {} {}.", "Erase {} {}.")
    sentence = make_sentence(pick(rng, forms))
    return format_inspection(sentence, pick(rng, corrections).format(spell_number(gap.count), phrase_look(gap)))


# Inspections that find a plan at fault.


def write_conflict(
    rng: np.random.Generator, prompt_graph: SceneGraph, plan_graph: SceneGraph, settled: Sequence[Difference] = ()
) -> str:
    """Write an inspection that names the first contradiction between a plan and its prompt; it ends with ``<refine>``.

    What the plan does not state yet is no contradiction, and neither are the ``settled`` differences of earlier plans.

    Raises:
      SceneError: there is no contradiction.
    """
    found = [d for d in find_differences(prompt_graph, plan_graph) if d.said is not None and d not in settled]
    if not found:
        raise SceneError("the plan does not contradict the prompt")
    d = found[0]
    if d.kind == "extra":
        return _unasked(rng, shorten(plan_graph, d.entities[0]))
    if d.kind == "relation":
        return _misrelated(rng, prompt_graph, d)
    asked, verb = _asked(prompt_graph, d)
    assert d.said is not None  # selected above
    said = phrase_place(d.said) if d.kind == "place" else d.said
    if d.kind == "shape":
        said = phrase_new(_of_kind(plan_graph.find(d.entities[0]), ()))
    forms = (
        f"The prompt asks for {asked}, not {said}.",
        f"The plan says {said}, but the prompt asks for {asked}.",
        f"{make_sentence(asked)[:-1]} {verb} asked for, not {said}.",
    )
    corrections = ("Plan {}.", "The plan should say {}.", "Change the plan to {}.")
    return format_inspection(pick(rng, forms), pick(rng, corrections).format(asked))


def _asked(prompt_graph: SceneGraph, d: Difference) -> tuple[str, str]:
    """Phrase what the prompt asks for where a plan differs; returns it and "was" or "were"."""
    if d.kind == "background":
        return phrase_background(d.asked), "was"
    entity = _of_kind(prompt_graph.find(d.entities[0]), ("color", d.kind))
    words = f"{spell_number(entity.count)} {phrase_look(entity)}" if d.kind == "count" else phrase_new(entity)
    if d.kind == "place":
        words = f"{words} {phrase_place(d.asked)}"
    return words, was_or_were(entity)


def _unasked(rng: np.random.Generator, extra: Entity) -> str:
    forms = (
        f"The prompt does not ask for {phrase_new(extra)}.",
        f"Nobody asked for {phrase_new(extra)}.",
        f"The plan says {phrase_new(extra)}, but the prompt does not.",
    )
    corrections = ("Plan no {}.", "Leave out the {}.", "Take the {} out of the plan.")
    return format_inspection(pick(rng, forms), pick(rng, corrections).format(phrase_look(extra)))


def write_blocked(rng: np.random.Generator, asked: SceneGraph, relation: Relation) -> str:
    """Write an inspection of a plan whose places rule out a relation that the prompt asks for."""
    subject, where = refer_to(asked, relation.subject), phrase_relation(asked, relation)
    forms = (
        f"By the prompt {subject} should be {where}.",
        f"The places do not allow {subject} {where}.",
        f"At these places {subject} cannot be {where}.",
    )
    return format_inspection(pick(rng, forms), _correct_relation(rng, subject, where))


def _correct_relation(rng: np.random.Generator, subject: str, where: str) -> str:
    corrections = ("Plan {} {}.", "The plan should say {} {}.", "Put {} {} in the plan.")
    return pick(rng, corrections).format(subject, where)


def _misrelated(rng: np.random.Generator, asked: SceneGraph, d: Difference) -> str:
    subject = refer_to(asked, d.entities[0])
    where = phrase_relation(asked, get_asked_relation(d))
    forms = (
        f"The prompt wants {subject} {where}, not {d.said} it.",
        f"By the prompt {subject} should be {where}.",
        f"The plan says {d.said}, but the prompt asks for {subject} {where}.",
    )
    return format_inspection(pick(rng, forms), _correct_relation(rng, subject, where))
