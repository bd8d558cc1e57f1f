"""Checks of a plan against its prompt, the plan before it and itself, on graphs parsed from their texts."""

import itertools

import numpy as np

from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.graph import INVERSE, PLACES, Entity, Relation, SceneGraph, all_imply, places_imply
from pdgen.shapes.inspections import write_blocked, write_conflict
from pdgen.shapes.instruction import Instruction, apply_instruction
from pdgen.shapes.lexicon import join_words, make_sentence, phrase_place
from pdgen.shapes.matching import Difference, align, find_differences, get_asked_relation, get_words, renumber
from pdgen.shapes.phrases import (
    is_or_are,
    phrase_background,
    phrase_look,
    phrase_new,
    phrase_relation,
    refer_to,
    shorten,
)

_NOTHING = SceneGraph(())


def check_prompt(
    rng: np.random.Generator, asked: SceneGraph, plan: SceneGraph, before: SceneGraph = _NOTHING
) -> str | None:
    """Write an inspection if a plan contradicts its prompt; return None otherwise.

    What the prompt leaves open or the plan does not state yet is no contradiction, unless the stated places rule it
    out: what lies on the right cannot be left of anything.

    Args:
      rng: determines the wording.
      asked: graph of the prompt.
      plan: graph of the plan's description, or after its instruction, with the ids of ``asked``.
      before: graph of the description before, with the same ids. Its contradictions are not reported again: they are
        intended for now, or were reported then.
    """
    old = {_normalise_difference(d) for d in find_differences(asked, _add_implied(asked, before))}
    plan = _add_implied(asked, plan)
    found = find_differences(asked, plan)
    if all(d.said is None or _normalise_difference(d) in old for d in found):
        blocked = [r for r in asked.relations if _is_blocked(plan, r) and not _is_blocked(before, r)]
        return write_blocked(rng, asked, blocked[0]) if blocked else None
    return write_conflict(rng, asked, plan, settled=[d for d in found if _normalise_difference(d) in old])


def _normalise_difference(d: Difference) -> Difference:
    # The same unwanted thing is "extra" or a wrong "shape", depending on the other entities.
    return Difference("extra", (), "", d.said) if d.kind in ("extra", "shape") else d


def _is_blocked(plan: SceneGraph, relation: Relation) -> bool:
    """Return whether the stated places rule out a spatial relation that the plan does not state itself."""
    ends = relation.subject, relation.reference
    if relation.kind not in INVERSE or any({r.subject, r.reference} == {*ends} for r in plan.relations):
        return False
    stated = [next((e.places for e in plan.entities if e.id == end), []) for end in ends]
    mine, theirs = ([place for place in places if place in PLACES] for places in stated)
    if mine and theirs:
        return not all_imply(relation.kind, mine, theirs)
    if not (mine or theirs):
        return False
    # Where one end is not placed yet, all its things could be at one place.
    return not any(all_imply(relation.kind, mine or [place], theirs or [place]) for place in PLACES)


def _add_implied(asked: SceneGraph, plan: SceneGraph) -> SceneGraph:
    # Other relations or places can imply the opposite of a relation that the prompt asks for. State it, to compare it.
    there = {e.id for e in plan.entities}
    said = {frozenset((r.subject, r.reference)) for r in plan.relations}
    more = []
    for relation in asked.relations:
        ends = frozenset((relation.subject, relation.reference))
        if ends <= there and ends not in said and relation.kind in INVERSE:
            opposite = INVERSE[relation.kind]
            if _implies(plan, Relation(relation.subject, opposite, relation.reference)):
                more.append(Relation(relation.subject, opposite, relation.reference))
    return SceneGraph(plan.entities, (*plan.relations, *more), plan.background)


def _implies(plan: SceneGraph, relation: Relation) -> bool:
    # Search for a chain from one entity to the other of stated relations along the axis or of places that imply one.
    kind = relation.kind if relation.kind in ("left of", "above") else INVERSE[relation.kind]
    start, end = (relation.subject, relation.reference)[:: 1 if kind == relation.kind else -1]
    after = {(r.subject, r.reference) for r in plan.relations if r.kind == kind}
    after |= {(r.reference, r.subject) for r in plan.relations if r.kind == INVERSE[kind]}
    pairs = itertools.permutations([e.id for e in plan.entities], 2)
    after |= {(a, b) for a, b in pairs if places_imply(plan, Relation(a, kind, b))}
    reached, waiting = set(), [start]
    while waiting:
        here = waiting.pop()
        new = {b for a, b in after if a == here} - reached
        reached |= new
        waiting += new
    return end in reached


class UnknownEntityError(Exception):
    """An instruction that names something that does not exist. The argument is its name."""


def resolve_instruction(before: SceneGraph, instruction: Instruction) -> Instruction:
    """Replace the instruction's ids by those of ``before`` for existing entities, and by unused ids for new ones.

    Raises:
      UnknownEntityError: the instruction names an entity that does not exist.
    """
    new = {"add": instruction.entities, "replace": instruction.entities[1:]}.get(instruction.operation, ())
    ids: dict[int, int] = {}
    fresh = 1 + max((e.id for e in before.entities), default=-1)
    for entity in instruction.graph.entities:
        words = get_words(entity).items()
        found = [e for e in before.entities if words <= get_words(e).items()]
        if entity.id in new:
            ids[entity.id] = fresh + len(ids)
        elif found:
            ids[entity.id] = min(found, key=lambda e: len(e.attributes)).id  # prefer an exact match
        else:
            raise UnknownEntityError(refer_to(instruction.graph, entity.id))
    entities = tuple(ids[i] for i in instruction.entities)
    return Instruction(instruction.operation, entities, renumber(instruction.graph, ids), instruction.changes)


def check_removal(asked: SceneGraph, before: SceneGraph, instruction: Instruction) -> str | None:
    """Write an inspection if an instruction removes something correct that the prompt asks for; else return None.

    The graph ``before`` the step and the instruction have the ids of ``asked``.
    """
    gone = {"remove": instruction.entities, "replace": instruction.entities[:1]}.get(instruction.operation, ())
    wrong = {i for d in find_differences(asked, before) if d.said is not None for i in d.entities}
    for entity in asked.entities:
        if entity.id in gone and entity.id not in wrong:
            named = shorten(asked, entity.id)
            analysis = f"The prompt asks for {phrase_new(named)}, but the plan takes {_choose_pronoun(entity)} away."
            return format_inspection(analysis, f"Keep the {phrase_look(named)}.")
    return None


def check_consistency(after: SceneGraph, description: SceneGraph) -> str | None:
    """Write an inspection if the graph after a plan's instruction and that of its description disagree, or return None.

    The description, with the ids of ``after``, must have all entities but may omit attributes, relations and the
    background.
    """
    for d in find_differences(after, description):
        if d.said is not None or d.kind == "missing":
            analysis, correction = _describe_difference(after, description, d)
            return format_inspection(make_sentence(analysis), make_sentence(correction))
    return None


def _describe_difference(after: SceneGraph, description: SceneGraph, d: Difference) -> tuple[str, str]:
    if d.kind == "missing":
        entity, names = after.find(d.entities[0]), refer_to(after, d.entities[0])
        verb, it = is_or_are(entity), _choose_pronoun(entity)
        return f"{names} {verb} there, but the description leaves {it} out", f"Describe {names} too"
    if d.kind == "extra":
        extra = shorten(description, d.entities[0])
        return (
            f"the description says {phrase_new(extra)}, but no step draws {_choose_pronoun(extra)}",
            f"Describe no {phrase_look(extra)}",
        )
    if d.kind == "relation":
        where = f"{refer_to(after, d.entities[0])} {phrase_relation(after, get_asked_relation(d))}"
        return f"the step leaves {where}, but the description says {d.said} it", f"Describe {where}"
    right, wrong = _phrase_difference(after, d)
    return f"after the step there should be {right}, but the description says {wrong}", f"Describe {right}"


def _phrase_difference(after: SceneGraph, d: Difference) -> tuple[str, str]:
    assert d.said is not None  # missing things are described above
    if d.kind == "background":
        return phrase_background(d.asked), d.said
    entity = after.find(d.entities[0])
    kept = {k: v for k, v in entity.attributes.items() if k in ("color", d.kind) and k != "place"}
    right = phrase_new(Entity(entity.id, entity.noun, entity.count, kept))
    return (f"{right} {phrase_place(d.asked)}", phrase_place(d.said)) if d.kind == "place" else (right, d.said)


def _choose_pronoun(entity: Entity) -> str:
    return "it" if entity.count == 1 else "them"


def describe_missing(asked: SceneGraph, plan: SceneGraph) -> str:
    """Write a clause on what the prompt asks for and the plan does not name yet. ``plan`` has the ids of ``asked``."""
    missing = [asked.find(d.entities[0]) for d in find_differences(asked, plan) if d.kind == "missing"]
    if not missing:
        return "nothing is missing"
    verb = is_or_are(missing[0]) if len(missing) == 1 else "are"
    return f"{join_words([phrase_new(shorten(asked, e.id)) for e in missing])} {verb} still to come"


def check_plan(
    rng: np.random.Generator,
    asked: SceneGraph,
    before: SceneGraph | None,
    instruction: Instruction,
    description: SceneGraph,
) -> str | None:
    """Write an inspection if a plan has a fault; return None otherwise.

    Neither the description nor the graph after the instruction may contradict the prompt in a new way, unless the
    instruction is "for now". The instruction must not remove anything correct that the prompt asks for. Description and
    instruction must agree.

    Args:
      rng: determines the wording.
      asked: graph of the prompt.
      before: graph of the description before; None at the first step.
      instruction, description: the parts of the plan, with their own ids.

    Raises:
      SceneError: the instruction gives two entities that cannot be distinguished, or contradictory relations.
    """
    before = _NOTHING if before is None else align(asked, before)
    for_now = instruction.for_now
    if not for_now and (text := check_prompt(rng, asked, align(asked, description), before)) is not None:
        return text
    try:
        instruction = resolve_instruction(before, instruction)
    except UnknownEntityError as names:
        return format_inspection(f"The instruction names {names}, which is not there.", "Name only what is there.")
    after = apply_instruction(before, instruction)
    return (
        check_removal(asked, before, instruction)
        or (None if for_now else check_prompt(rng, asked, align(asked, after), before))
        or check_consistency(after, align(after, description))
    )
