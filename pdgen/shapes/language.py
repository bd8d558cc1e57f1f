"""The words of shapes world: prompts, plans and inspections, written from scene graphs.

Sentences are short, since the tokens of a plan are what a small model spends its training on. ``parse`` reads
prompts and descriptions back, and instructions too.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from pdgen.sequence.trajectory import format_inspection, format_plan
from pdgen.shapes.graph import Entity, Relation, SceneError, SceneGraph, Step
from pdgen.shapes.instruction import Instruction, instruct, recolored, say
from pdgen.shapes.lexicon import RELATIONS, join, number, place_phrase, sentence
from pdgen.shapes.matching import Difference, differences, relation_of
from pdgen.shapes.phrases import (
    USUAL,
    Wording,
    background_phrase,
    be,
    fact,
    known,
    look,
    name,
    relations_to,
    scene,
    some,
    statements,
    the,
    was,
)
from pdgen.shapes.world import Scene, relations_between

GENEVAL_FORM = "a photo of {}"
SHORT_FORMS = ("a picture of {}", "an image of {}", "a drawing of {}", "draw {}", "paint {}", "show {}", "{}")
LONG_FORMS = ("A picture of {}", "An image of {}", "A photo of {}", "Draw {}", "Paint {}", "Show {}", "{}")
COMPLETE = ("Nothing is missing.", "The picture is complete.", "All that was asked for is there.")
DESCRIPTIONS = ("The picture shows {}.", "Now the picture shows {}.", "There {is} {}.")
GENEVAL_RATE = 0.4  # of the prompts of GenEval's tasks that are in GenEval's own form
APART_RATE = 0.1  # of the compositions that say relations in sentences of their own
OTHER_RELATIONS_RATE = 0.25  # of the prompts that may say "under" for "below"
MANY = 3  # things that are named; of more, the number is said


def _pick(rng: np.random.Generator, forms: Sequence[str]) -> str:
    return forms[int(rng.integers(len(forms)))]


# Prompts and plans.


def prompt(rng: np.random.Generator, graph: SceneGraph, task: str) -> str:
    """A prompt that asks for all that the graph says, and for nothing else.

    GenEval's tasks are asked for in GenEval's own words with probability ``GENEVAL_RATE`` and else in others; a
    ``task`` of "composition" in whole sentences.
    """
    if task == "composition":
        return _composition(rng, graph)
    geneval = rng.random() < GENEVAL_RATE
    words = USUAL if geneval else _wording(rng)
    content, left = _content(graph, words)
    text = (GENEVAL_FORM if geneval else _pick(rng, SHORT_FORMS)).format(content)
    return text if not left else " ".join([f"{text}.", *statements(graph, left, words)])


def _wording(rng: np.random.Generator) -> Wording:
    relations = {kind: _pick(rng, wordings) for kind, wordings in RELATIONS.items()}
    return Wording(relations if rng.random() < OTHER_RELATIONS_RATE else USUAL.relations, bare=bool(rng.integers(2)))


def _content(graph: SceneGraph, words: Wording = USUAL) -> tuple[str, list[Relation]]:
    return scene(graph, [e.id for e in graph.entities], words)


def _composition(rng: np.random.Generator, graph: SceneGraph) -> str:
    words = _wording(rng)._replace(bare=True)
    apart = rng.random() < APART_RATE
    background = graph.background
    where = "" if background is None else _pick(rng, ("first", "within", "last") if graph.entities else ("within",))
    named = SceneGraph(graph.entities, () if apart else graph.relations, background if where == "within" else None)
    content, left = _content(named, words)
    if background is not None and where == "first":
        content = f"{background_phrase(background)} with {content}"
    said = statements(graph, graph.relations if apart else left, words)
    end = [f"The background is {background}."] if where == "last" else []
    return " ".join([sentence(_pick(rng, LONG_FORMS).format(content)), *said, *end])


def description(rng: np.random.Generator, graph: SceneGraph) -> str:
    """The whole scene in a sentence or two, as it stands in a plan."""
    words = Wording(bare=True)
    content, left = _content(graph, words)
    verb = "are" if graph.entities and graph.entities[0].count > 1 else "is"
    text = _pick(rng, DESCRIPTIONS).format(content, **{"is": verb})
    return " ".join([text, *statements(graph, left, words)])


def instruction(
    rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph | None = None
) -> str:
    """What the step does, so that it can be drawn: what is new and where.

    Args:
      before: the graph before the step, None for the first.
      prompt_graph: what the prompt asks for. A step that draws something else, which a later one must put right,
        says so ("for now"), or nothing would tell it from a mistake. None: it does not say so.

    Raises:
      SceneError: as ``instruct``.
    """
    order = instruct(before, step)
    if prompt_graph is not None:
        wrong = {i for d in differences(prompt_graph, step.graph) if d.said is not None for i in d.entities}
        order = msgspec.structs.replace(order, for_now=bool(wrong & set(step.entities)))
    return say(rng, order, first=before is None)


def plan(
    rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph | None = None
) -> str:
    """``instruction`` and the description of the whole scene after the step, in their tags."""
    return format_plan(instruction(rng, before, step, prompt_graph), description(rng, step.graph))


# Inspections that find no fault.


def agreement(rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph) -> str:
    """An inspection that finds no fault: what was checked, and what of the prompt is still to come.

    Args:
      before: the graph before the step, None for the first.
      prompt_graph: what the prompt asks for, with the ids of the step's graph.
    """
    to_come = _to_come(rng, differences(prompt_graph, step.graph), prompt_graph, step.graph)
    return format_inspection(" ".join([_reason(rng, before, step), *(to_come or [_pick(rng, COMPLETE)])]))


def _say(rng: np.random.Generator, *forms: str) -> str:
    return sentence(_pick(rng, forms))


def _reason(rng: np.random.Generator, before: SceneGraph | None, step: Step) -> str:
    graph = step.graph
    if before is None:  # the first step of a story adds
        return _reason_of_places(rng, graph, [graph.find(i) for i in step.entities])
    if step.operation == "remove":
        gone = [before.find(i) for i in step.entities]
        subject = f"{join([known(before, e.id) for e in gone])} {be(gone[0]) if len(gone) == 1 else 'are'}"
        return _say(rng, f"{subject} gone", f"{subject} no longer there", f"{subject} removed")
    if step.operation == "swap":
        names = f"{known(graph, step.entities[0])} and {known(graph, step.entities[1])}"
        what = "colours" if recolored(before, step) else "places"
        return _say(rng, f"{names} have changed {what}", f"{names} have swapped {what}", f"{names} exchanged {what}")
    if step.operation == "replace":
        old, new = known(before, step.entities[0]), graph.find(step.entities[1])
        names = known(graph, new.id)
        has, stand = ("has", "stands") if new.count == 1 else ("have", "stand")
        return _say(
            rng,
            f"{names} {be(new)} where {old} {was(new)}",
            f"{names} {has} replaced {old}",
            f"{names} now {stand} in place of {old}",
        )
    if step.operation == "modify":
        return _reason_of_change(rng, before, step)
    return _reason_of_places(rng, graph, [graph.find(i) for i in step.entities])


def _reason_of_change(rng: np.random.Generator, before: SceneGraph, step: Step) -> str:
    (entity,) = step.entities
    old, new = before.find(entity), step.graph.find(entity)
    value = join([v for k, v in new.attributes.items() if old.attributes.get(k) != v])
    has = "has" if new.count == 1 else "have"
    names = known(before, entity)
    now = f"there {be(new)} {some(new)} now"
    return _say(rng, f"{names} {be(new)} now {value}", f"{names} {has} become {value}", now)


def _reason_of_places(rng: np.random.Generator, graph: SceneGraph, here: list[Entity]) -> str:
    subject = f"{join([known(graph, e.id) for e in here])} {be(here[0]) if len(here) == 1 else 'are'}"
    if len(here) > 1:
        return _say(rng, f"{subject} there", f"{subject} as planned", f"{subject} drawn as planned")
    (entity,) = here
    place = entity.attributes.get("place")
    others = [e.id for e in graph.entities if e.id != entity.id]
    checked = [] if place is None else [place_phrase(place)]
    checked += [fact(graph, r) for r in relations_to(graph, entity.id, others)]
    if checked:
        where = " and ".join(checked)
        return _say(rng, f"{subject} {where}", f"{subject} {where}, as planned", f"{subject} there, {where}")
    there = f"there {be(entity)} {some(name(graph, entity.id))}"
    return _say(rng, f"{subject} there", there, f"{subject} as planned")


def _to_come(rng: np.random.Generator, left: list[Difference], asked: SceneGraph, there: SceneGraph) -> list[str]:
    """Sentences on what is not there yet, or not for good; none of it is a fault."""
    said = []
    missing = [asked.find(d.entities[0]) for d in left if d.kind == "missing"]
    if missing:
        names = join([some(name(asked, e.id)) for e in missing])
        names = names if len(missing) <= MANY else f"{number(len(missing))} more things"
        subject = f"{names} {be(missing[0]) if len(missing) == 1 else 'are'}"
        said.append(_say(rng, f"{subject} still to come", f"still to come: {names}", f"{subject} not drawn yet"))
    for d in left:
        if d.kind == "background":
            said.append(f"The background will be {d.asked}.")
        elif d.kind != "missing":
            said.append(sentence(f"{known(there, d.entities[0])} will {_future(d, there)}"))
    return said


def _future(d: Difference, there: SceneGraph) -> str:
    if d.kind == "extra":
        return "not stay"
    if d.kind == "relation":
        return f"move {fact(there, relation_of(d))}"
    return f"move to the {d.asked}" if d.kind == "place" else f"become {d.asked}"


# Inspections that find a fault of the drawing.


def fault(
    rng: np.random.Generator,
    kind: str,
    graph: SceneGraph,
    entity: int | None = None,
    wrong: Entity | None = None,
    relation: Relation | None = None,
) -> str:
    """An inspection of a drawing that is not as planned; ends with ``<refine>``.

    Args:
      kind: a word of ``faults.FAULTS``, "fill", or "extra" for something that was not planned.
      graph: what was planned.
      entity: the id of what is at fault; None for something extra.
      wrong: what is seen instead; None where it is missing. Its ``place`` counts for a wrong place.
      relation: for "place", the relation that does not hold; without one the entity's ``place`` is wrong.

    Raises:
      SceneError: the kind is unknown, or ``wrong`` is not wrong in this respect.
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
        return _miscounted(rng, name(graph, entity), wrong.count)
    return _discolored(rng, kind, graph, right, wrong)


def fault_of_draft(rng: np.random.Generator, kind: str, graph: SceneGraph, entity: int, draft: Scene) -> str:
    """``fault`` of a draft that ``faults.corrupt`` made of a scene that satisfies ``graph``."""
    seen = draft.of(entity)
    if not seen:
        return fault(rng, "missing", graph, entity)
    first = seen[0]
    attributes = {"color": first.color, "size": first.size_word, "fill": first.fill}
    right = graph.find(entity)
    relation = None
    if kind == "place":
        attributes["place"] = next((o.place for o in right.misplaced(seen)), first.place)
        others = [e.id for e in graph.entities if e.id != entity]
        relation = next((r for r in relations_to(graph, entity, others) if not _holds(draft, r)), None)
    wrong = Entity(entity, first.shape, len(seen), attributes)
    return fault(rng, kind, graph, entity, wrong, relation)


def _holds(scene: Scene, relation: Relation) -> bool:
    pairs = ((a, b) for a in scene.of(relation.subject) for b in scene.of(relation.reference))
    return all(relation.kind in relations_between(a, b) for a, b in pairs)


def background_fault(rng: np.random.Generator, right: str, wrong: str) -> str:
    """An inspection of a drawing whose background is another than planned."""
    forms = (
        f"The background is {wrong}, not {right}.",
        f"The background should be {right}, not {wrong}.",
        f"{sentence(background_phrase(right))[:-1]} was planned, not {wrong}.",
    )
    corrections = (f"Make the background {right}.", f"Change the background to {right}.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections))


def _extra(rng: np.random.Generator, wrong: Entity) -> str:
    forms = (
        f"there {be(wrong)} {some(wrong)} that was not planned",
        f"{some(wrong)} {be(wrong)} there, not planned",
        f"nothing in the plan says {some(wrong)}",
    )
    correction = say(rng, Instruction("remove", (wrong.id,), SceneGraph((wrong,))))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _missing(rng: np.random.Generator, graph: SceneGraph, right: Entity) -> str:
    names, bare = known(graph, right.id), look(name(graph, right.id))
    forms = (f"{names} {be(right)} missing", f"there {be(right)} no {bare}", f"{names} {be(right)} not drawn")
    correction = say(rng, instruct(_without(graph, right.id), Step("add", (right.id,), graph)))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _without(graph: SceneGraph, entity: int) -> SceneGraph:
    relations = tuple(r for r in graph.relations if entity not in (r.subject, r.reference))
    return SceneGraph(tuple(e for e in graph.entities if e.id != entity), relations, graph.background)


def _misplaced(
    rng: np.random.Generator, graph: SceneGraph, right: Entity, wrong: Entity, relation: Relation | None
) -> str:
    names, verb, each = known(graph, right.id), be(right), "" if right.count == 1 else "all "
    if relation is not None:
        where = fact(graph, relation)
        forms = (
            f"{names} {verb} not {each}{where}",
            f"{names} should {each}be {where}",
            f"{names} {verb} in the wrong place, not {each}{where}",
        )
        reference = name(graph, relation.reference)
        to = Instruction("move", (right.id,), SceneGraph((name(graph, right.id), reference), (relation,)))
        return format_inspection(sentence(_pick(rng, forms)), say(rng, to))
    place, seen = right.attributes.get("place"), wrong.attributes.get("place")
    if place is None or place == seen:
        raise SceneError(f"entity {right.id}: no place or relation is wrong")
    planned, shown = place_phrase(place), place_phrase(seen)
    here = f"{names} {verb} {shown}" if len({*right.places}) == 1 else f"one of {names} is {shown}"
    forms = (f"{here}, not {planned}", f"{names} should be {planned}", f"{here}, but the plan says {planned}")
    to = Instruction("move", (right.id,), SceneGraph((name(graph, right.id),)), {"place": place})
    return format_inspection(sentence(_pick(rng, forms)), say(rng, to))


def _of_kind(entity: Entity, keys: tuple[str, ...]) -> Entity:
    return Entity(entity.id, entity.noun, entity.count, {k: v for k, v in entity.attributes.items() if k in keys})


def _discolored(rng: np.random.Generator, kind: str, graph: SceneGraph, right: Entity, wrong: Entity) -> str:
    # What has no fill stated is solid; of a size that is not stated nothing can be wrong.
    value, seen = (e.attributes.get(kind, {"fill": "solid"}.get(kind)) for e in (right, wrong))
    if value == seen or value is None or seen is None:
        raise SceneError(f"entity {right.id}: the {kind} of {look(right)!r} and {look(wrong)!r} do not differ")
    planned = _of_kind(right, ("color", kind))
    shown = _of_kind(wrong, ("color", kind))
    forms = [
        f"{the(shown)} should be {value}",
        f"{some(planned)} {was(right)} planned, not {seen}",
        f"{the(shown)} should not be {seen} but {value}",
    ]
    alike = [e for e in graph.entities if e.noun == right.noun]
    if kind != "color" or len(alike) == 1:
        subject = _of_kind(right, () if kind == "color" else ("color",))
        forms.append(f"{the(subject)} {be(right)} {seen}, not {value}")
    correction = say(rng, Instruction("modify", (right.id,), SceneGraph((shown,)), {kind: value}))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _misshapen(rng: np.random.Generator, right: Entity, wrong: Entity) -> str:
    if right.noun == wrong.noun:
        raise SceneError(f"entity {right.id}: both are {right.noun!r}")
    planned, shown = _of_kind(right, ("color",)), _of_kind(wrong, ("color",))
    bare = _of_kind(right, ())
    forms = (
        f"there {be(wrong)} {some(shown)}, not {some(bare)}",
        f"{the(shown)} should be {some(bare)}",
        f"{some(planned)} {was(right)} planned, not {some(_of_kind(wrong, ()))}",
    )
    new = msgspec.structs.replace(planned, id=right.id + 1)
    correction = say(rng, Instruction("replace", (right.id, new.id), SceneGraph((shown, new))))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _miscounted(rng: np.random.Generator, right: Entity, seen: int) -> str:
    if right.count == seen:
        raise SceneError(f"entity {right.id}: there are {seen}, as planned")
    shown = msgspec.structs.replace(right, count=seen)
    counted = f"{number(seen)} {look(shown)}"
    forms = (
        f"there {be(shown)} {counted}, not {number(right.count)}",
        f"{number(right.count)} {look(right)} {was(right)} planned, not {number(seen)}",
        f"{counted} {be(shown)} there, but {number(right.count)} {was(right)} planned",
    )
    gap = msgspec.structs.replace(right, count=abs(right.count - seen))
    if seen < right.count:
        corrections = (f"Add {number(gap.count)} more {look(gap)}.", f"Draw {number(gap.count)} more {look(gap)}.")
    else:
        corrections = (f"Remove {number(gap.count)} {look(gap)}.", f"Erase {number(gap.count)} {look(gap)}.")
    return format_inspection(sentence(_pick(rng, forms)), _pick(rng, corrections))


# Inspections that find a plan at fault.


def conflict(
    rng: np.random.Generator,
    prompt_graph: SceneGraph,
    plan_graph: SceneGraph,
    settled: Sequence[Difference] = (),
) -> str:
    """An inspection that says in what a plan contradicts its prompt; ends with ``<refine>``.

    Of several contradictions the first is named. What the plan does not say yet is none, nor are the ``settled``
    differences, which earlier plans answer for. Raises SceneError where there is no contradiction.
    """
    found = [d for d in differences(prompt_graph, plan_graph) if d.said is not None and d not in settled]
    if not found:
        raise SceneError("the plan does not contradict the prompt")
    d = found[0]
    if d.kind == "extra":
        return _unasked(rng, name(plan_graph, d.entities[0]))
    if d.kind == "relation":
        return _misrelated(rng, prompt_graph, d)
    asked, verb = _asked(prompt_graph, d)
    said = place_phrase(d.said) if d.kind == "place" else d.said
    if d.kind == "shape":
        said = some(_of_kind(plan_graph.find(d.entities[0]), ()))
    forms = (
        f"The prompt asks for {asked}, not {said}.",
        f"The plan says {said}, but the prompt asks for {asked}.",
        f"{sentence(asked)[:-1]} {verb} asked for, not {said}.",
    )
    corrections = ("Plan {}.", "The plan should say {}.", "Change the plan to {}.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections).format(asked))


def _asked(prompt_graph: SceneGraph, d: Difference) -> tuple[str, str]:
    """What the prompt asks for where a plan differs, and "was" or "were"."""
    if d.kind == "background":
        return background_phrase(d.asked), "was"
    entity = _of_kind(prompt_graph.find(d.entities[0]), ("color", d.kind))
    words = f"{number(entity.count)} {look(entity)}" if d.kind == "count" else some(entity)
    if d.kind == "place":
        words = f"{words} {place_phrase(d.asked)}"
    return words, was(entity)


def _unasked(rng: np.random.Generator, extra: Entity) -> str:
    forms = (
        f"The prompt does not ask for {some(extra)}.",
        f"Nobody asked for {some(extra)}.",
        f"The plan says {some(extra)}, but the prompt does not.",
    )
    corrections = ("Plan no {}.", "Leave out the {}.", "Take the {} out of the plan.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections).format(look(extra)))


def _misrelated(rng: np.random.Generator, asked: SceneGraph, d: Difference) -> str:
    subject = known(asked, d.entities[0])
    where = fact(asked, relation_of(d))
    forms = (
        f"The prompt wants {subject} {where}, not {d.said} it.",
        f"By the prompt {subject} should be {where}.",
        f"The plan says {d.said}, but the prompt asks for {subject} {where}.",
    )
    corrections = ("Plan {} {}.", "The plan should say {} {}.", "Put {} {} in the plan.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections).format(subject, where))
