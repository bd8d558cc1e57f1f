"""The words of shapes world: prompts, plans and inspections, rendered from scene graphs.

Sentences are short, so that a plan stays below 45 tokens and an inspection below 30 with the shapes
tokenizer. ``format_plan`` and ``format_inspection`` put the tags around them.
"""

from collections.abc import Sequence

import numpy as np

from pdgen.interleave.trajectory import format_inspection, format_plan
from pdgen.scenes.first_world import Object, Relation, Scene

PROMPT_FORMS = ("{}", "{}", "a picture of {}", "draw {}")
PLACE_PHRASES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def look(item: Object) -> str:
    """Colour and shape: "red circle"."""
    return f"{item.color} {item.shape}"


def join(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pick(rng: np.random.Generator, forms: Sequence[str]) -> str:
    return forms[rng.integers(len(forms))]


def _relations_of(scene: Scene, item: Object) -> list[Relation]:
    return [r for r in scene.relations if item.id in (r.subject, r.reference)]


def content(scene: Scene) -> str:
    """All objects in order, with the stated relations: "a red circle left of a blue square".

    A relation whose objects are both new is said in one clause; a later object's clause names its reference
    with "the".
    """
    clauses: list[str] = []
    known: set[int] = set()
    for item in scene.objects:
        if item.id in known:
            continue
        known.add(item.id)
        facts = []
        for relation in _relations_of(scene, item):
            fact = relation.seen_from(item.id)
            other = scene.find(fact.reference)
            if other.id in known:
                facts.append(f"{fact.kind} the {look(other)}")
            elif not clauses and not facts and relation.subject == item.id:
                facts.append(f"{fact.kind} {with_article(look(other))}")
                known.add(other.id)
        clause = " ".join([with_article(look(item)), *([join(facts)] if facts else [])])
        clauses.append(clause)
    if len(clauses) > 1 and scene.relations:
        return f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return join(clauses)


def prompt(rng: np.random.Generator, scene: Scene) -> str:
    """A prompt that asks for the scene's objects and stated relations, and for nothing else."""
    return _pick(rng, PROMPT_FORMS).format(content(scene))


def plan(scene: Scene, added: Sequence[Object]) -> str:
    """The plan of a step that adds objects and ends in ``scene``.

    The instruction says where each object goes. The description is of the whole scene after the step: a
    lone object with its place, several with the relations the prompt states.
    """
    instruction = join([f"{with_article(look(o))} {PLACE_PHRASES[o.place]}" for o in added])
    description = content(scene)
    if len(scene.objects) == 1:
        description = f"{description} {PLACE_PHRASES[scene.objects[0].place]}"
    return format_plan(f"Add {instruction}.", f"The picture shows {description}.")


def agreement(rng: np.random.Generator, scene: Scene, added: Sequence[Object], missing: Sequence[Object]) -> str:
    """An inspection that finds no fault: what the step was to show, and what the prompt still asks for."""
    subject = f"The {join([look(o) for o in added])}".replace(" and ", " and the ")
    if len(added) == 1:
        facts = [r.seen_from(added[0].id) for r in _relations_of(scene, added[0])]
        relations = [f"{f.kind} the {look(scene.find(f.reference))}" for f in facts]
        reason = f"{subject} is {_pick(rng, [PLACE_PHRASES[added[0].place], 'there', *relations])}."
    else:
        reason = f"{subject} are there."
    if missing:
        names = join([with_article(look(o)) for o in missing])
        rest = f"{names[0].upper()}{names[1:]} {'is' if len(missing) == 1 else 'are'} still to come."
    else:
        rest = _pick(rng, ("Nothing is missing.", "The picture is complete."))
    return format_inspection(f"{reason} {rest}")


def fault(rng: np.random.Generator, wrong: Object, right: Object) -> str:
    """An inspection of a draft that shows ``wrong`` where ``right`` was planned; ends with ``<refine>``.

    The two differ in colour, shape or place; the first of these that differs is named. Raises ValueError if
    none does.
    """
    if wrong.color != right.color:
        forms = (
            f"The {right.shape} is {wrong.color}, not {right.color}.",
            f"The {look(wrong)} should be {right.color}.",
        )
        return format_inspection(_pick(rng, forms), f"Make the {look(wrong)} {right.color}.")
    if wrong.shape != right.shape:
        forms = (
            f"There is {with_article(look(wrong))}, not {with_article(right.shape)}.",
            f"The {look(wrong)} should be {with_article(right.shape)}.",
        )
        return format_inspection(_pick(rng, forms), f"Make the {look(wrong)} {with_article(right.shape)}.")
    if wrong.place != right.place:
        analysis = f"The {look(wrong)} is {PLACE_PHRASES[wrong.place]}, not {PLACE_PHRASES[right.place]}."
        target = PLACE_PHRASES[right.place].split(" ", 1)[1]
        return format_inspection(analysis, f"Move it to {target}.")
    raise ValueError(f"object {right.id}: draft and plan show the same {look(right)}")
