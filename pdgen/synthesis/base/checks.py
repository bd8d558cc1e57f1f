"""Checks of whether a picture shows a description, which is right or wrong in one respect.

The aspect that is right or wrong is drawn first. Both cases use the same wording, so that a question does not reveal
its answer. The aspect is a word of ``faults.FAULTS``, "fill", "relation" or "background". Ambiguous cases are left out,
such as "a red star" of a picture with a red circle and a blue star.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from pdgen.shapes.graph import COLORS, PLACES, Entity, Relation, SceneGraph
from pdgen.shapes.held_out import is_held_out, is_held_out_look
from pdgen.shapes.lexicon import phrase_place, pick, spell_number
from pdgen.shapes.phrases import is_or_are, phrase_look, phrase_new, phrase_relation, phrase_scene, refer_to
from pdgen.shapes.world import BACKGROUNDS, FILLS, OUTLINED_SHAPES, SHAPES, Scene, compute_relation_strengths
from pdgen.synthesis.base.captions import ObjectGroup, group_objects
from pdgen.synthesis.faults import MISPLACED

MOST = 3  # maximum entities of a question
BACKGROUND_RATE = 0.2  # share of the other questions that also state the background
RELATION_RATE = 0.5  # share of the other questions that also state a relation
YES = "Yes."
OPPOSITES = {"size": ("small", "large"), "fill": FILLS}


class SceneCheck(NamedTuple):
    """A description that a picture may show.

    Attributes:
      words: the description, such as "a red circle left of two stars".
      answer: "Yes.", or "No, ..." with the difference.
      right: whether the answer is "Yes.".
      said: the description as a graph.
      kind: the aspect that is right or wrong.
    """

    words: str
    answer: str
    right: bool
    said: SceneGraph
    kind: str


class _Focus(NamedTuple):
    """A true description of a scene, and the entity about which a false one can be made."""

    said: SceneGraph
    entity: int
    there: list[ObjectGroup]  # everything that the picture shows
    background: str  # of the picture


_Falsify = Callable[[np.random.Generator, _Focus], tuple[SceneGraph, str] | None]


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str | None:
    return values[int(rng.integers(len(values)))] if values else None


class Aim(NamedTuple):
    """The part of a check that is drawn before the scene.

    Attributes:
      kind: the aspect that is right or wrong, one of ``KINDS``.
      right: whether it is right.
      word: for the kinds "size" and "fill", the stated word.
    """

    kind: str
    right: bool
    word: str


def draw_aim(rng: np.random.Generator) -> Aim:
    """Draw kind, correctness and word, each uniformly."""
    kind, right, word = KINDS[rng.integers(len(KINDS))], rng.integers(2), rng.integers(2)
    return Aim(kind, bool(right), OPPOSITES[kind][word] if kind in OPPOSITES else "")


def make_check(rng: np.random.Generator, scene: Scene, wanted: Aim) -> SceneCheck | None:
    """Make a check of a scene without held-out combinations; None if the scene does not allow it.

    The description has no held-out combination either.
    """
    kind, right, _ = wanted
    focus = _draw_focus(rng, scene, wanted)
    if focus is None:
        return None
    said, answer = focus.said, YES
    if not right:
        wrong = _FALSIFIERS[kind](rng, focus)
        if wrong is None or is_held_out(wrong[0]):
            return None
        said, answer = wrong[0], f"No, {wrong[1]}."
    text, left = phrase_scene(said, [e.id for e in said.entities])
    return None if left else SceneCheck(text, answer, right, said, kind)


def _is_suitable(group: ObjectGroup, wanted: Aim) -> bool:
    """Return whether the aspect can be stated of the group."""
    kind, entity = wanted.kind, group.entity
    if kind in OPPOSITES:
        can_differ = kind == "size" or (entity.noun in OUTLINED_SHAPES and entity.attributes["size"] != "small")
        return can_differ and (entity.attributes[kind] == wanted.word) == wanted.right
    return entity.count == 1 or kind != "place"


def _draw_focus(rng: np.random.Generator, scene: Scene, wanted: Aim) -> _Focus | None:
    """Draw a true description of a part of the scene that states the aspect."""
    there, kind = group_objects(scene), wanted.kind
    suitable = [group for group in there if _is_suitable(group, wanted)]
    least = 2 if kind == "relation" else 1
    looks = {(group.entity.attributes["color"], group.entity.noun) for group in there}
    if not suitable or len(there) < least or len(looks) < len(there):  # colour and noun must identify a group
        return None
    first = suitable[rng.integers(len(suitable))]
    rest = [group for group in there if group is not first]
    number_of_others = int(rng.integers(least - 1, min(MOST - 1, len(rest)) + 1))
    others = [rest[i] for i in rng.permutation(len(rest))[:number_of_others]]
    entities = [_describe_group(rng, first, kind), *(_describe_group(rng, other, "") for other in others)]
    relations: tuple[Relation, ...] = ()
    if kind == "relation" or (others and kind != "place" and rng.random() < RELATION_RATE):
        relations = _draw_true_relation(rng, first, others[0])
        if kind == "relation" and not relations:
            return None
    states_ground = kind == "background" or rng.random() < BACKGROUND_RATE
    said = SceneGraph(tuple(entities), relations, scene.background if states_ground else None)
    return _Focus(said, first.entity.id, there, scene.background)


def _describe_group(rng: np.random.Generator, group: ObjectGroup, kind: str) -> Entity:
    """Return the group's entity with its colour, the attribute of ``kind``, and sometimes others."""
    entity = group.entity
    stated = {"color": entity.attributes["color"]}
    if kind == "size" or (entity.attributes["size"] == "large" and rng.random() < 0.5):
        stated["size"] = entity.attributes["size"]
    if kind == "fill" or entity.attributes["fill"] == "outlined":
        stated["fill"] = entity.attributes["fill"]
    if kind == "place":
        stated["place"] = group.objects[0].place
    return replace(entity, attributes=stated)


def _compute_strengths(a: ObjectGroup, b: ObjectGroup) -> dict[str, list[float]]:
    pairs = [compute_relation_strengths(x, y) for x, y in itertools.product(a.objects, b.objects)]
    return {kind: [one[kind] for one in pairs] for kind in pairs[0]}


def _draw_true_relation(rng: np.random.Generator, a: ObjectGroup, b: ObjectGroup) -> tuple[Relation, ...]:
    true = [kind for kind, values in _compute_strengths(a, b).items() if min(values) > 0.5]
    kind = _pick(rng, true)
    return () if kind is None else (Relation(a.entity.id, kind, b.entity.id),)


# Functions that return a false description and the correction; None if the case would be ambiguous.


def _change_entity(focus: _Focus, **changes: object) -> SceneGraph:
    entities = tuple(replace(e, **changes) if e.id == focus.entity else e for e in focus.said.entities)
    return replace(focus.said, entities=entities)


def _set_attribute(focus: _Focus, key: str, value: str) -> SceneGraph:
    return _change_entity(focus, attributes=focus.said.find(focus.entity).attributes | {key: value})


def _list_looks(focus: _Focus) -> list[tuple[str, str]]:
    return [(g.entity.attributes["color"], g.entity.noun) for g in focus.there]


def _keep_color(entity: Entity) -> Entity:
    return replace(entity, attributes={"color": entity.attributes["color"]})


def _falsify_color(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    entity, nouns = focus.said.find(focus.entity), [noun for _, noun in _list_looks(focus)]
    true = entity.attributes["color"]
    color = _pick(rng, [c for c in COLORS if c != true and not is_held_out_look(c, entity.noun)])
    if nouns.count(entity.noun) > 1 or color is None:
        return None
    bare = replace(entity, attributes={})
    return _set_attribute(focus, "color", color), f"the {phrase_look(bare)} {is_or_are(entity)} {true}, not {color}"


def _falsify_shape(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    entity, looks = focus.said.find(focus.entity), _list_looks(focus)
    color = entity.attributes["color"]
    may_be = OUTLINED_SHAPES if "fill" in entity.attributes else SHAPES
    noun = _pick(rng, [n for n in may_be if not is_held_out_look(color, n) and n not in {noun for _, noun in looks}])
    if [c for c, _ in looks].count(color) > 1 or noun is None:
        return None
    shown, asked = phrase_new(_keep_color(entity)), phrase_new(replace(entity, noun=noun, attributes={}))
    return _change_entity(focus, noun=noun), f"there {is_or_are(entity)} {shown}, not {asked}"


def _falsify_size_or_fill(rng: np.random.Generator, focus: _Focus, key: str) -> tuple[SceneGraph, str] | None:
    entity = focus.said.find(focus.entity)
    # Small things cannot be outlined, so a small outlined thing would be an impossible description.
    if entity.attributes[key] not in OPPOSITES[key] or (key == "size" and "fill" in entity.attributes):
        return None
    (value,) = (word for word in OPPOSITES[key] if word != entity.attributes[key])
    name = phrase_look(_keep_color(entity))
    return _set_attribute(focus, key, value), f"the {name} {is_or_are(entity)} {entity.attributes[key]}, not {value}"


def _falsify_place(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    entity = focus.said.find(focus.entity)
    true = entity.attributes["place"]
    place = pick(rng, [p for p in PLACES if p != true])
    answer = f"the {phrase_look(_keep_color(entity))} is {phrase_place(true)}, not {phrase_place(place)}"
    return _set_attribute(focus, "place", place), answer


def _falsify_count(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    # The smaller wrong number is at least two: "a circle" would be true of several circles.
    entity = focus.said.find(focus.entity)
    count = entity.count + (1 if entity.count < 3 or rng.random() < 0.5 else -1)
    shown = _keep_color(entity)
    answer = f"there {is_or_are(entity)} {spell_number(entity.count)} {phrase_look(shown)}, not {spell_number(count)}"
    return _change_entity(focus, count=count), answer


def _falsify_presence(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    colors, nouns = ({*words} for words in zip(*_list_looks(focus)))
    absent = [
        (color, noun)
        for color in COLORS
        for noun in SHAPES
        if color not in colors and noun not in nouns and not is_held_out_look(color, noun)
    ]
    if not absent:
        return None
    color, noun = absent[rng.integers(len(absent))]
    entity = replace(focus.said.find(focus.entity), noun=noun, attributes={"color": color})
    said = _change_entity(focus, noun=noun, attributes=entity.attributes)
    return said, f"there {is_or_are(entity)} no {phrase_look(entity)}"


def _falsify_relation(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    (true,) = focus.said.relations
    a, b = ({g.entity.id: g for g in focus.there}[i] for i in (true.subject, true.reference))
    kind = _pick(rng, [kind for kind, values in _compute_strengths(a, b).items() if max(values) <= MISPLACED])
    if kind is None:
        return None
    said = replace(focus.said, relations=(replace(true, kind=kind),))
    entity = said.find(true.subject)
    return said, f"{refer_to(said, entity.id)} {is_or_are(entity)} not {phrase_relation(said, said.relations[0])}"


def _falsify_background(rng: np.random.Generator, focus: _Focus) -> tuple[SceneGraph, str] | None:
    ground = pick(rng, [b for b in BACKGROUNDS if b != focus.background])
    return replace(focus.said, background=ground), f"the background is {focus.background}, not {ground}"


_FALSIFIERS: dict[str, _Falsify] = {
    "color": _falsify_color,
    "shape": _falsify_shape,
    "size": functools.partial(_falsify_size_or_fill, key="size"),
    "fill": functools.partial(_falsify_size_or_fill, key="fill"),
    "place": _falsify_place,
    "count": _falsify_count,
    "missing": _falsify_presence,
    "relation": _falsify_relation,
    "background": _falsify_background,
}
KINDS = tuple(_FALSIFIERS)
