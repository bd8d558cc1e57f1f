"""The words of shapes world: prompts, plans and inspections, written from scene graphs.

Sentences are short, since the tokens of a plan are what a small model spends its training on. ``parse`` reads
prompts and descriptions back, and instructions too.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from pdgen.interleave.trajectory import format_inspection, format_plan
from pdgen.scenes.differences import Difference, differences, relation_of
from pdgen.scenes.graph import Entity, Relation, SceneError, SceneGraph, Step
from pdgen.scenes.instruction import Instruction, instruct, say
from pdgen.scenes.lexicon import RELATIONS, join, number, place_phrase, sentence
from pdgen.scenes.phrases import (
    USUAL,
    background_phrase,
    fact,
    facts,
    known,
    look,
    name,
    scene,
    some,
    statements,
    the,
)  # fmt: skip
from pdgen.scenes.world import Scene, relations_between

GENEVAL_FORM = "a photo of {}"
SHORT_FORMS = ("a picture of {}", "an image of {}", "a drawing of {}", "draw {}", "paint {}", "show {}", "{}")
LONG_FORMS = ("A picture of {}.", "An image of {}.", "A photo of {}.", "Draw {}.", "Paint {}.", "Show {}.")
DESCRIPTIONS = ("The picture shows {}.", "Now the picture shows {}.", "There {is} {}.")
GENEVAL_RATE = 0.4  # of the prompts of GenEval's tasks that are in GenEval's own form
MANY = 3  # things that are named; of more, the number is said


def _pick(rng: np.random.Generator, forms: Sequence[str]) -> str:
    return forms[rng.integers(len(forms))]


# Prompts and plans.


def prompt(rng: np.random.Generator, graph: SceneGraph, task: str) -> str:
    """A prompt that asks for all that the graph says, and for nothing else.

    GenEval's tasks are asked for in GenEval's own words with probability ``GENEVAL_RATE`` and else in others; a
    ``task`` of "composition" in whole sentences.
    """
    if task == "composition":
        return _composition(rng, graph)
    geneval = rng.random() < GENEVAL_RATE
    words = USUAL if geneval else _relation_words(rng)
    content, left = _content(graph, words)
    text = (GENEVAL_FORM if geneval else _pick(rng, SHORT_FORMS)).format(content)
    return text if not left else " ".join([f"{text}.", *statements(graph, left, words)])


def _relation_words(rng: np.random.Generator) -> dict[str, str]:
    return {kind: _pick(rng, wordings) for kind, wordings in RELATIONS.items()}


def _content(graph: SceneGraph, words: dict[str, str] = USUAL) -> tuple[str, list[Relation]]:
    return scene(graph, [e.id for e in graph.entities], words)


def _composition(rng: np.random.Generator, graph: SceneGraph) -> str:
    words = _relation_words(rng)
    apart = bool(rng.integers(2))  # relations in sentences of their own
    background_last = graph.background is not None and bool(rng.integers(2))
    named = SceneGraph(graph.entities, () if apart else graph.relations, None if background_last else graph.background)
    content, left = _content(named, words)
    if named.background is not None and rng.integers(2):
        bare, _ = _content(msgspec.structs.replace(named, background=None), words)
        content = f"{background_phrase(named.background)} with {bare}"
    said = statements(graph, graph.relations if apart else left, words)
    end = [f"The background is {graph.background}."] if background_last else []
    return " ".join([_pick(rng, LONG_FORMS).format(content), *said, *end])


def description(rng: np.random.Generator, graph: SceneGraph) -> str:
    """The whole scene in a sentence or two, as it stands in a plan."""
    content, left = _content(graph)
    verb = "are" if graph.entities and graph.entities[0].count > 1 else "is"
    text = _pick(rng, DESCRIPTIONS).format(content, **{"is": verb})
    return " ".join([text, *statements(graph, left)])


def instruction(rng: np.random.Generator, before: SceneGraph | None, step: Step) -> str:
    """What the step does, so that it can be drawn: what is new and where. Raises SceneError as ``instruct``."""
    return say(rng, instruct(before, step), first=before is None)


def plan(rng: np.random.Generator, before: SceneGraph | None, step: Step) -> str:
    """The instruction and the description of the whole scene after the step, in their tags."""
    return format_plan(instruction(rng, before, step), description(rng, step.graph))


# Inspections that find no fault.


def agreement(rng: np.random.Generator, before: SceneGraph | None, step: Step, prompt_graph: SceneGraph) -> str:
    """An inspection that finds no fault: what was checked, and what of the prompt is still to come.

    Args:
      before: the graph before the step, None for the first.
      prompt_graph: what the prompt asks for, with the ids of the step's graph.
    """
    to_come = _to_come(rng, differences(prompt_graph, step.graph), prompt_graph, step.graph)
    end = to_come or [_pick(rng, ("Nothing is missing.", "The picture is complete.", "All that was asked for is there."))]
    return format_inspection(" ".join([_reason(rng, before, step), *end]))


def _is(entity: Entity) -> str:
    return "is" if entity.count == 1 else "are"


def _reason(rng: np.random.Generator, before: SceneGraph | None, step: Step) -> str:
    graph = step.graph
    if step.operation == "remove":
        gone = [before.find(i) for i in step.entities]
        names = join([known(before, e.id) for e in gone])
        verb = "is" if len(gone) == 1 and gone[0].count == 1 else "are"
        return sentence(_pick(rng, (f"{names} {verb} gone", f"{names} {verb} no longer there", f"{names} {verb} removed")))
    if step.operation == "swap":
        names = f"{known(graph, step.entities[0])} and {known(graph, step.entities[1])}"
        what = "places" if not _recolored(before, step) else "colours"
        forms = (f"{names} have changed {what}", f"{names} have swapped {what}", f"the {what} of {names} are swapped")
        return sentence(_pick(rng, forms))
    if step.operation == "replace":
        old, new = known(before, step.entities[0]), graph.find(step.entities[1])
        forms = (f"{known(graph, new.id)} {_is(new)} where {old} was", f"{known(graph, new.id)} has replaced {old}",
                 f"{some(name(graph, new.id))} now {'stands' if new.count == 1 else 'stand'} in place of {old}")  # fmt: skip
        return sentence(_pick(rng, forms).replace("has replaced", "has replaced" if new.count == 1 else "have replaced"))
    if step.operation == "modify":
        return _reason_of_change(rng, before, step)
    return _reason_of_places(rng, graph, [graph.find(i) for i in step.entities])


def _recolored(before: SceneGraph, step: Step) -> bool:
    a, b = ({e.id: e.attributes.get("color") for e in g.entities} for g in (before, step.graph))
    return any(a[i] != b[i] for i in step.entities)


def _reason_of_change(rng: np.random.Generator, before: SceneGraph, step: Step) -> str:
    (number_,) = step.entities
    old, new = before.find(number_), step.graph.find(number_)
    value = join([v for k, v in new.attributes.items() if old.attributes.get(k) != v])
    forms = (f"{known(before, old.id)} {_is(new)} now {value}", f"{known(before, old.id)} has become {value}",
             f"there {_is(new)} {some(new)} now")  # fmt: skip
    text = _pick(rng, forms)
    return sentence(text if new.count == 1 else text.replace("has become", "have become"))


def _reason_of_places(rng: np.random.Generator, graph: SceneGraph, here: list[Entity]) -> str:
    names = join([known(graph, e.id) for e in here])
    if len(here) > 1:
        return sentence(_pick(rng, (f"{names} are there", f"{names} are as planned", f"{names} are drawn as planned")))
    (entity,) = here
    place = entity.attributes.get("place")
    others = [e.id for e in graph.entities if e.id != entity.id]
    checked = ([] if place is None else [place_phrase(place)]) + facts(graph, entity.id, others)
    if checked:
        where = " and ".join(checked)
        return sentence(_pick(rng, (f"{names} {_is(entity)} {where}", f"{names} {_is(entity)} {where}, as planned",
                                    f"{names} {_is(entity)} there, {where}")))  # fmt: skip
    forms = (f"{names} {_is(entity)} there", f"there {_is(entity)} {some(name(graph, entity.id))}",
             f"{names} {_is(entity)} as planned")  # fmt: skip
    return sentence(_pick(rng, forms))


def _to_come(
    rng: np.random.Generator, left: list[Difference], asked: SceneGraph, there: SceneGraph
) -> list[str]:
    """Sentences on what is not there yet, or not for good; none of it is a fault."""
    said = []
    missing = [asked.find(d.entities[0]) for d in left if d.kind == "missing"]
    if missing:
        names = join([some(name(asked, e.id)) for e in missing])
        verb = "is" if len(missing) == 1 and missing[0].count == 1 else "are"
        if len(missing) > MANY:
            names, verb = f"{number(len(missing))} more things", "are"
        said.append(_pick(rng, (f"{names} {verb} still to come", f"still to come: {names}", f"{names} {verb} not drawn yet")))
    for d in left:
        if d.kind == "extra":
            entity = there.find(d.entities[0])
            said.append(f"{known(there, entity.id)} will not stay")
        elif d.kind == "relation":
            said.append(f"{known(there, d.entities[0])} will move {fact(there, relation_of(d))}")
        elif d.kind == "place":
            said.append(f"{known(there, d.entities[0])} will move to the {d.asked}")
        elif d.kind == "background":
            said.append(f"the background will be {d.asked}")
        elif d.kind != "missing":
            said.append(f"{known(there, d.entities[0])} will become {d.asked}")
    return [sentence(s) for s in said]


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
      kind: a word of ``world.FAULTS``, "fill", or "extra" for something that was not planned.
      graph: what was planned.
      entity: the id of what is at fault; None for something extra.
      wrong: what is seen instead; None where it is missing. Its ``place`` counts for a wrong place.
      relation: for "place", the relation that does not hold; without one the entity's ``place`` is wrong.

    Raises:
      SceneError: the kind is unknown, or ``wrong`` is not wrong in this respect.
    """
    if kind == "extra":
        return _extra(rng, wrong)
    right = graph.find(entity)
    if kind == "missing":
        return _missing(rng, graph, right)
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
    """``fault`` of a draft that ``world.corrupt`` made of a scene that satisfies ``graph``."""
    seen = draft.of(entity)
    if not seen:
        return fault(rng, "missing", graph, entity)
    first = seen[0]
    attributes = {"color": first.color, "size": first.size_word, "fill": first.fill}
    right = graph.find(entity)
    relation = None
    if kind == "place":
        place = next((o.place for o in seen if o.place != right.attributes.get("place")), first.place)
        attributes["place"] = place
        relation = next((r for r in graph.relations if entity in (r.subject, r.reference) and not _holds(draft, r)), None)
        relation = None if relation is None else relation.seen_from(entity)
    wrong = Entity(entity, first.shape, len(seen), attributes)
    return fault(rng, kind, graph, entity, wrong, relation)


def _holds(scene: Scene, relation: Relation) -> bool:
    pairs = ((a, b) for a in scene.of(relation.subject) for b in scene.of(relation.reference))
    return all(relation.kind in relations_between(a, b) for a, b in pairs)


def background_fault(rng: np.random.Generator, right: str, wrong: str) -> str:
    """An inspection of a drawing whose background is another than planned."""
    forms = (f"The background is {wrong}, not {right}.", f"The background should be {right}.",
             f"{sentence(background_phrase(right))[:-1]} was planned, not {wrong}.")  # fmt: skip
    return format_inspection(_pick(rng, forms), _pick(rng, ("Make the background {}.", "Change the background to {}.")).format(right))


def _extra(rng: np.random.Generator, wrong: Entity) -> str:
    forms = (f"there {_is(wrong)} {some(wrong)} that was not planned", f"{some(wrong)} {_is(wrong)} there, not planned",
             f"nothing in the plan says {some(wrong)}")  # fmt: skip
    correction = say(rng, Instruction("remove", (wrong.id,), SceneGraph((wrong,))))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _missing(rng: np.random.Generator, graph: SceneGraph, right: Entity) -> str:
    names, bare = known(graph, right.id), look(name(graph, right.id))
    forms = (f"{names} {_is(right)} missing", f"there {_is(right)} no {bare}", f"{names} {_is(right)} not drawn")
    correction = say(rng, instruct(_without(graph, right.id), Step("add", (right.id,), graph)))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _without(graph: SceneGraph, entity: int) -> SceneGraph:
    relations = tuple(r for r in graph.relations if entity not in (r.subject, r.reference))
    return SceneGraph(tuple(e for e in graph.entities if e.id != entity), relations, graph.background)


def _misplaced(
    rng: np.random.Generator, graph: SceneGraph, right: Entity, wrong: Entity, relation: Relation | None
) -> str:
    names, verb, each = known(graph, right.id), _is(right), "" if right.count == 1 else "all "
    if relation is not None:
        where = fact(graph, relation)
        forms = (f"{names} {verb} not {each}{where}", f"{names} should {each}be {where}",
                 f"{names} {verb} in the wrong place, not {each}{where}")  # fmt: skip
        reference = name(graph, relation.reference)
        to = Instruction("move", (right.id,), SceneGraph((name(graph, right.id), reference), (relation,)))
        return format_inspection(sentence(_pick(rng, forms)), say(rng, to))
    place, seen = right.attributes.get("place"), wrong.attributes.get("place")
    if place is None or place == seen:
        raise SceneError(f"entity {right.id}: no place or relation is wrong")
    forms = (f"{names} {verb} {place_phrase(seen)}, not {place_phrase(place)}", f"{names} should be {place_phrase(place)}",
             f"{names} {verb} {place_phrase(seen)}, but the plan says {place_phrase(place)}")  # fmt: skip
    to = Instruction("move", (right.id,), SceneGraph((name(graph, right.id),)), {"place": place})
    return format_inspection(sentence(_pick(rng, forms)), say(rng, to))


def _of_kind(entity: Entity, keys: tuple[str, ...]) -> Entity:
    return Entity(entity.id, entity.noun, entity.count, {k: v for k, v in entity.attributes.items() if k in keys})


def _discolored(rng: np.random.Generator, kind: str, graph: SceneGraph, right: Entity, wrong: Entity) -> str:
    value, seen = (e.attributes.get(kind, {"size": "medium", "fill": "solid"}.get(kind)) for e in (right, wrong))
    if value == seen or value is None or seen is None:
        raise SceneError(f"entity {right.id}: the {kind} of {look(right)!r} and {look(wrong)!r} do not differ")
    planned = _of_kind(right, ("color", kind))
    shown = _of_kind(wrong, ("color", kind))
    forms = [f"{the(shown)} should be {value}", f"{some(planned)} was planned, not {seen}",
             f"{the(shown)} should not be {seen} but {value}"]  # fmt: skip
    alike = [e for e in graph.entities if e.noun == right.noun]
    if kind != "color" or len(alike) == 1:
        subject = _of_kind(right, () if kind == "color" else ("color",))
        forms.append(f"{the(subject)} {_is(right)} {seen}, not {value}")
    text = _pick(rng, forms)
    text = text if right.count == 1 else text.replace(" was planned", " were planned")
    correction = say(rng, Instruction("modify", (right.id,), SceneGraph((shown,)), {kind: value}))
    return format_inspection(sentence(text), correction)


def _misshapen(rng: np.random.Generator, right: Entity, wrong: Entity) -> str:
    if right.noun == wrong.noun:
        raise SceneError(f"entity {right.id}: both are {right.noun!r}")
    planned, shown = _of_kind(right, ("color",)), _of_kind(wrong, ("color",))
    was = "was" if right.count == 1 else "were"
    bare = _of_kind(right, ())
    forms = (f"there {_is(wrong)} {some(shown)}, not {some(bare)}", f"{the(shown)} should be {some(bare)}",
             f"{some(planned)} {was} planned, not {some(_of_kind(wrong, ()))}")  # fmt: skip
    new = msgspec.structs.replace(planned, id=right.id + 1)
    correction = say(rng, Instruction("replace", (right.id, new.id), SceneGraph((shown, new))))
    return format_inspection(sentence(_pick(rng, forms)), correction)


def _miscounted(rng: np.random.Generator, right: Entity, seen: int) -> str:
    if right.count == seen:
        raise SceneError(f"entity {right.id}: there are {seen}, as planned")
    shown = msgspec.structs.replace(right, count=seen)
    counted = f"{number(seen)} {look(shown)}"
    was = "was" if right.count == 1 else "were"
    forms = (f"there {_is(shown)} {counted}, not {number(right.count)}",
             f"{number(right.count)} {look(right)} {was} planned, not {number(seen)}",
             f"{counted} {_is(shown)} there, but {number(right.count)} {was} planned")  # fmt: skip
    gap = msgspec.structs.replace(right, count=abs(right.count - seen))
    if seen < right.count:
        corrections = (f"Add {number(gap.count)} more {look(gap)}.", f"Draw {number(gap.count)} more {look(gap)}.")
    else:
        corrections = (f"Remove {number(gap.count)} {look(gap)}.", f"Erase {number(gap.count)} {look(gap)}.")
    return format_inspection(sentence(_pick(rng, forms)), _pick(rng, corrections))


# Inspections that find a plan at fault.


def conflict(rng: np.random.Generator, prompt_graph: SceneGraph, plan_graph: SceneGraph) -> str:
    """An inspection that says in what a plan contradicts its prompt; ends with ``<refine>``.

    Of several contradictions the first is named. What the plan does not say yet is none. Raises SceneError where
    there is no contradiction.
    """
    found = [d for d in differences(prompt_graph, plan_graph) if d.said is not None]
    if not found:
        raise SceneError("the plan does not contradict the prompt")
    d = found[0]
    if d.kind == "extra":
        return _unasked(rng, name(plan_graph, d.entities[0]))
    if d.kind == "relation":
        return _misrelated(rng, prompt_graph, d)
    if d.kind == "background":
        asked, said = background_phrase(d.asked), d.said
    else:
        keys = ("color", d.kind)
        asked_entity = _of_kind(prompt_graph.find(d.entities[0]), keys)
        asked, said = some(asked_entity), d.said
        if d.kind == "place":
            asked, said = f"{some(_of_kind(asked_entity, ('color',)))} {place_phrase(d.asked)}", place_phrase(d.said)
        if d.kind == "shape":
            said = some(_of_kind(plan_graph.find(d.entities[0]), ()))
    forms = (f"The prompt asks for {asked}, not {said}.", f"The plan says {said}, but the prompt asks for {asked}.",
             f"{sentence(asked)[:-1]} was asked for, not {said}.")  # fmt: skip
    corrections = ("Plan {}.", "The plan should say {}.", "Change the plan to {}.")
    return format_inspection(_plural_was(_pick(rng, forms), d, prompt_graph), _pick(rng, corrections).format(asked))


def _plural_was(text: str, d: Difference, asked: SceneGraph) -> str:
    several = d.entities and asked.find(d.entities[0]).count > 1
    return text.replace(" was asked", " were asked") if several else text


def _unasked(rng: np.random.Generator, extra: Entity) -> str:
    forms = (f"The prompt does not ask for {some(extra)}.", f"Nobody asked for {some(extra)}.",
             f"The plan says {some(extra)}, but the prompt does not.")  # fmt: skip
    corrections = ("Plan no {}.", "Leave out the {}.", "Take the {} out of the plan.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections).format(look(extra)))


def _misrelated(rng: np.random.Generator, asked: SceneGraph, d: Difference) -> str:
    subject = known(asked, d.entities[0])
    where = fact(asked, relation_of(d))
    forms = (f"The prompt wants {subject} {where}, not {d.said} it.", f"By the prompt {subject} should be {where}.",
             f"The plan says {d.said}, but the prompt asks for {subject} {where}.")  # fmt: skip
    corrections = ("Plan {} {}.", "The plan should say {} {}.", "Put {} {} in the plan.")
    return format_inspection(_pick(rng, forms), _pick(rng, corrections).format(subject, where))
