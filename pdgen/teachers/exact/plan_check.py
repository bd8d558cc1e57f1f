"""Whether a plan agrees with its prompt, with the plan before it and with itself, on graphs read from their words."""

import numpy as np

from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.graph import INVERSE, PLACES, Entity, Relation, SceneGraph
from pdgen.shapes.instruction import Instruction, carry_out
from pdgen.shapes.language import conflict
from pdgen.shapes.lexicon import join, place_phrase, sentence
from pdgen.shapes.matching import Difference, aligned, differences, relation_of, renamed, words_of
from pdgen.shapes.phrases import background_phrase, be, fact, known, look, name, some

_NOTHING = SceneGraph(())


def contradiction(
    rng: np.random.Generator, asked: SceneGraph, plan: SceneGraph, before: SceneGraph = _NOTHING
) -> str | None:
    """The inspection of a plan that contradicts its prompt, None where it does not.

    Args:
      asked: of the prompt; what it leaves open, and what the plan does not say yet, contradicts nothing.
      plan: of its description or instruction, with the ids of ``asked``.
      before: of the description before, likewise. What contradicted the prompt there already is no news: it is
        there for now, or was found at fault then.
    """
    old = {_news(d) for d in differences(asked, _with_implied(asked, before))}
    plan = _with_implied(asked, plan)
    found = differences(asked, plan)
    if all(d.said is None or _news(d) in old for d in found):
        return None
    return conflict(rng, asked, plan, settled=[d for d in found if _news(d) in old])


def _news(d: Difference) -> Difference:
    # Whether what nobody asked for is something extra or stands for something else depends on what else is there.
    return Difference("extra", (), "", d.said) if d.kind in ("extra", "shape") else d


def _with_implied(asked: SceneGraph, plan: SceneGraph) -> SceneGraph:
    # With the opposite of each relation asked for that the plan rules out by several others, or by places.
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
    # A chain of relations along the axis, or of thirds of the picture, leads from one to the other.
    kind = relation.kind if relation.kind in ("left of", "above") else INVERSE[relation.kind]
    start, end = (relation.subject, relation.reference)[:: 1 if kind == relation.kind else -1]
    after = {(r.subject, r.reference) for r in plan.relations if r.kind == kind}
    after |= {(r.reference, r.subject) for r in plan.relations if r.kind == INVERSE[kind]}
    cells = {e.id: [PLACES.index(p) for p in e.places] for e in plan.entities if e.places and {*e.places} <= {*PLACES}}
    thirds = {i: [cell % 3 if kind == "left of" else cell // 3 for cell in own] for i, own in cells.items()}
    after |= {(a, b) for a in thirds for b in thirds if max(thirds[a]) < min(thirds[b])}
    reached, waiting = set(), [start]
    while waiting:
        here = waiting.pop()
        new = {b for a, b in after if a == here} - reached
        reached |= new
        waiting += new
    return end in reached


class NotThere(Exception):
    """An instruction names something that is not there; the argument is its name."""


def in_terms_of(before: SceneGraph, instruction: Instruction) -> Instruction:
    """The instruction with the ids of ``before`` for what is there and others for what is new. Raises NotThere."""
    new = {"add": instruction.entities, "replace": instruction.entities[1:]}.get(instruction.operation, ())
    ids: dict[int, int] = {}
    fresh = 1 + max((e.id for e in before.entities), default=-1)
    for entity in instruction.graph.entities:
        words = words_of(entity).items()
        found = [e for e in before.entities if words <= words_of(e).items()]
        if entity.id in new:
            ids[entity.id] = fresh + len(ids)
        elif found:
            ids[entity.id] = min(found, key=lambda e: len(e.attributes)).id  # the one of which no more is said
        else:
            raise NotThere(known(instruction.graph, entity.id))
    entities = tuple(ids[i] for i in instruction.entities)
    return Instruction(instruction.operation, entities, renamed(instruction.graph, ids), instruction.changes)


def removal(asked: SceneGraph, before: SceneGraph, instruction: Instruction) -> str | None:
    """The inspection of an instruction that removes what the prompt asks for and what is right, else None.

    Args:
      before: the graph before the step, with the ids of ``asked``.
      instruction: in the same ids.
    """
    gone = {"remove": instruction.entities, "replace": instruction.entities[:1]}.get(instruction.operation, ())
    wrong = {i for d in differences(asked, before) if d.said is not None for i in d.entities}
    for entity in asked.entities:
        if entity.id in gone and entity.id not in wrong:
            named = name(asked, entity.id)
            analysis = f"The prompt asks for {some(named)}, but the plan takes {_it(entity)} away."
            return format_inspection(analysis, f"Keep the {look(named)}.")
    return None


def inconsistency(after: SceneGraph, description: SceneGraph) -> str | None:
    """The inspection of a plan whose two parts do not agree, None where they do.

    Args:
      after: the instruction carried out on the graph before.
      description: with the ids of ``after``. It names all that is there then; it may leave out attributes, relations
        and the background.
    """
    for d in differences(after, description):
        if d.said is not None or d.kind == "missing":
            analysis, correction = _told_apart(after, description, d)
            return format_inspection(sentence(analysis), sentence(correction))
    return None


def _told_apart(after: SceneGraph, description: SceneGraph, d: Difference) -> tuple[str, str]:
    if d.kind == "missing":
        entity, names = after.find(d.entities[0]), known(after, d.entities[0])
        verb, it = be(entity), _it(entity)
        return f"{names} {verb} there, but the description leaves {it} out", f"Describe {names} too"
    if d.kind == "extra":
        extra = name(description, d.entities[0])
        return f"the description says {some(extra)}, but no step draws {_it(extra)}", f"Describe no {look(extra)}"
    if d.kind == "relation":
        where = f"{known(after, d.entities[0])} {fact(after, relation_of(d))}"
        return f"the step leaves {where}, but the description says {d.said} it", f"Describe {where}"
    right, wrong = _right_and_wrong(after, d)
    return f"after the step there should be {right}, but the description says {wrong}", f"Describe {right}"


def _right_and_wrong(after: SceneGraph, d: Difference) -> tuple[str, str]:
    if d.kind == "background":
        return background_phrase(d.asked), d.said
    entity = after.find(d.entities[0])
    kept = {k: v for k, v in entity.attributes.items() if k in ("color", d.kind) and k != "place"}
    right = some(Entity(entity.id, entity.noun, entity.count, kept))
    return (f"{right} {place_phrase(d.asked)}", place_phrase(d.said)) if d.kind == "place" else (right, d.said)


def _it(entity: Entity) -> str:
    return "it" if entity.count == 1 else "them"


def still_to_come(asked: SceneGraph, plan: SceneGraph) -> str:
    """A clause on what the prompt asks for and the plan, whose ids are those of ``asked``, does not name yet."""
    missing = [asked.find(d.entities[0]) for d in differences(asked, plan) if d.kind == "missing"]
    if not missing:
        return "nothing is missing"
    verb = be(missing[0]) if len(missing) == 1 else "are"
    return f"{join([some(name(asked, e.id)) for e in missing])} {verb} still to come"


def check_plan(
    rng: np.random.Generator,
    asked: SceneGraph,
    before: SceneGraph | None,
    instruction: Instruction,
    description: SceneGraph,
) -> str | None:
    """The inspection of a plan at fault, None where it has none.

    The description, then the instruction carried out on what is there, must not contradict the prompt in what the
    description before did not, unless the instruction says that this is for now; the instruction must not remove
    what is asked for and right; description and instruction must agree.

    Args:
      rng: decides the wording.
      asked: of the prompt.
      before: of the description before, None at the first step.
      instruction, description: of the plan; ids are its own.

    Raises:
      SceneError: the instruction makes two things that cannot be told apart, or relations that contradict each other.
    """
    before = _NOTHING if before is None else aligned(asked, before)
    for_now = instruction.for_now
    if not for_now and (text := contradiction(rng, asked, aligned(asked, description), before)) is not None:
        return text
    try:
        instruction = in_terms_of(before, instruction)
    except NotThere as names:
        return format_inspection(f"The instruction names {names}, which is not there.", "Name only what is there.")
    after = carry_out(before, instruction)
    return (
        removal(asked, before, instruction)
        or (None if for_now else contradiction(rng, asked, aligned(asked, after), before))
        or inconsistency(after, aligned(after, description))
    )
