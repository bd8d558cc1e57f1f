"""Checks of a picture of shapes world: does it show what the plan describes, and is everything else unchanged?

The checks use only pixels. ``detect`` finds the shapes, each shape is matched to the most similar entity, and the graph
is checked on shapes, colours and boxes with GenEval's rule for relations.
"""

import dataclasses
import itertools
import types
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from PIL import Image

from pdgen.sequence.images import Picture
from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.detector import Detection, detect_background
from pdgen.shapes.graph import Entity, SceneGraph
from pdgen.shapes.inspections import write_background_fault, write_fault
from pdgen.shapes.instruction import Instruction
from pdgen.shapes.lexicon import make_sentence
from pdgen.shapes.matching import Violation, assign, compute_look_cost, find_violations, get_words, matches_words
from pdgen.shapes.phrases import refer_to
from pdgen.shapes.world import GRID, find_place, find_relations

_Observed = tuple[Picture, Sequence[Detection]]  # a picture and the shapes detected in it
SURPLUS = 2.0  # cost of an instance above the count; lower than that of another colour or noun
SHIFT = 1  # allowed difference of each side of a box in units: half a unit from the detection in each picture
# Allowed change, out of 255, of the mean over 3 x 3 units in any channel. An object changes it by at least 55; noise of
# 10 in every pixel of both pictures changes it by less than 20.
TOLERANCE = 24.0


class MatchedObject(Detection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A detected shape that is matched to the entity ``entity``; an object as those of ``world.Scene``."""

    id: int
    entity: int

    @property
    def size_word(self) -> str:
        """Size, "small", "medium" or "large"."""
        return self.size

    @property
    def place(self) -> str:
        """The word of ``PLACES``."""
        return find_place(self)


@dataclasses.dataclass(frozen=True)
class MatchedPicture:
    """A picture whose shapes are matched to the entities of a graph.

    Attributes:
      objects, background: see ``world.Scene``.
      extra: detected shapes that match no entity.
    """

    objects: tuple[MatchedObject, ...]
    background: str
    extra: tuple[Detection, ...]

    def objects_of(self, entity: int) -> tuple[MatchedObject, ...]:
        """Return the instances of an entity."""
        return tuple(o for o in self.objects if o.entity == entity)


def match_detections(found: Sequence[Detection], ground: str, graph: SceneGraph) -> MatchedPicture:
    """Match the detected shapes to the most similar entities, by the cheapest assignment of all."""
    slots = [(e, n) for e in graph.entities for n in range(e.count + len(found))]
    costs = np.zeros((len(found), len(slots)))
    for i, one in enumerate(found):
        looks = describe_detection(one)
        for j, (entity, number) in enumerate(slots):
            costs[i, j] = compute_look_cost(get_words(entity), looks) + SURPLUS * (number >= entity.count)
    matches = assign(costs)
    objects = tuple(
        MatchedObject(id=i, entity=slots[matches[i]][0].id, **msgspec.structs.asdict(found[i])) for i in sorted(matches)
    )
    return MatchedPicture(objects, ground, tuple(one for i, one in enumerate(found) if i not in matches))


def describe_detection(found: Detection) -> dict[str, str]:
    """Return noun and all attributes of a detected shape."""
    attributes = {"color": found.color, "size": found.size, "fill": found.fill, "place": find_place(found)}
    return {"noun": found.shape, **attributes}


def write_inspections(rng: np.random.Generator, seen: MatchedPicture, graph: SceneGraph) -> Iterator[str]:
    """Write one inspection for each difference between a picture and its graph.

    The order is: missing or wrong entities, a wrong background, things that the graph does not contain.
    """
    reported = set()
    for violation in find_violations(seen, graph):
        if (key := violation[:2]) not in reported:
            reported.add(key)
            yield _write_inspection(rng, violation, seen, graph)
    for extra in seen.extra:
        yield write_fault(rng, "extra", graph, wrong=_to_entity(extra))


def check_picture(rng: np.random.Generator, seen: MatchedPicture, graph: SceneGraph) -> str | None:
    """Return the first of ``write_inspections``; None if the picture shows what the graph states."""
    return next(write_inspections(rng, seen, graph), None)


def _to_entity(found: Detection) -> Entity:
    return Entity(0, found.shape, 1, {"color": found.color})


def _write_inspection(rng: np.random.Generator, violation: Violation, seen: MatchedPicture, graph: SceneGraph) -> str:
    kind = violation.kind
    if kind == "background":
        assert graph.background is not None  # an open background cannot be wrong
        return write_background_fault(rng, graph.background, seen.background)
    subject = violation.entities[0]
    if kind == "missing":
        return write_fault(rng, kind, graph, subject)
    relation, wrong = None, seen.objects_of(subject)
    if kind == "place" and len(violation.entities) == 2:
        pairs = itertools.product(graph.relations, seen.objects, seen.objects)
        relation = next(
            r
            for r, a, b in pairs
            if (a.entity, b.entity) == (r.subject, r.reference) == violation.entities
            and r.kind not in find_relations(a, b)
        )
    elif kind == "place":
        wrong = tuple(graph.find(subject).find_misplaced(wrong))
    elif kind != "count":
        key = "noun" if kind == "shape" else kind
        stated = get_words(graph.find(subject))[key]
        wrong = tuple(o for o in wrong if describe_detection(o)[key] != stated)
    attributes = describe_detection(wrong[0])
    shown = Entity(subject, attributes.pop("noun"), len(wrong), attributes)
    return write_fault(rng, kind, graph, subject, shown, relation)


def find_concerned(instruction: Instruction, found: Sequence[Detection]) -> set[int]:
    """Find the numbers of the shapes that the instruction changes."""
    if instruction.operation == "add":
        return set()
    ids = instruction.entities[:1] if instruction.operation == "replace" else instruction.entities
    named = [get_words(instruction.graph.find(i)) for i in ids]
    return {n for n, one in enumerate(found) if any(matches_words(words, describe_detection(one)) for words in named)}


def check_unchanged(
    rng: np.random.Generator, instruction: Instruction, before: _Observed, now: _Observed
) -> str | None:
    """Write an inspection if something changed that the instruction does not concern; return None otherwise.

    Each shape that the instruction does not name must still exist with the same shape, colour and fill, and with each
    side of its box within ``SHIFT`` units. Outside the shapes of both pictures the mean colour of any 3 x 3 units may
    change by at most ``TOLERANCE``, unless the instruction states a background.

    Args:
      rng: determines the wording.
      instruction: the instruction of the step.
      before, now: the pictures before and after the step, with the shapes detected in them.
    """
    touched = find_concerned(instruction, before[1])
    for number, one in enumerate(before[1]):
        if number not in touched and not any(_is_same(one, other) for other in now[1]):
            names = refer_to(SceneGraph((_to_entity(one),)), 0)
            analysis = f"{names} {_describe_change(one, now[1])}, but the step does not concern it"
            return format_inspection(make_sentence(analysis), f"Keep {names} as it was.")
    if instruction.graph.background is not None:
        return None
    grounds = detect_background(before[0]), detect_background(now[0])
    if grounds[0] != grounds[1]:
        return write_background_fault(rng, *grounds)
    place = _find_changed_place(before, now)
    if place is None:
        return None
    return format_inspection(
        f"Something has changed at the {place} that the step does not concern.", f"Keep the {place} as it was."
    )


def _is_same(a: Detection, b: Detection) -> bool:
    near = all(abs(x - y) <= SHIFT for x, y in zip(a.box, b.box))
    return near and (a.shape, a.color, a.fill) == (b.shape, b.color, b.fill)


def _describe_change(one: Detection, now: Sequence[Detection]) -> str:
    if any((one.shape, one.color, one.fill) == (o.shape, o.color, o.fill) for o in now):
        return "has moved"
    same_place = [o for o in now if all(abs(x - y) <= SHIFT for x, y in zip(one.box, o.box))]
    if not same_place:
        return "is gone"
    other = same_place[0]
    return f"is now {refer_to(SceneGraph((_to_entity(other),)), 0).replace('the ', 'a ', 1)}"


def _find_changed_place(before: _Observed, now: _Observed) -> str | None:
    """Find the word of ``PLACES`` where the background changed most; None if it did not change."""
    small = [Image.fromarray(p).resize((GRID, GRID), Image.Resampling.BOX) for p, _ in (before, now)]
    change = np.subtract(*(np.asarray(p, np.float32) for p in small))
    for one in (*before[1], *now[1]):
        left, top, right, bottom = one.box
        change[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = 0
    means = np.abs(np.lib.stride_tricks.sliding_window_view(change, (3, 3), axis=(0, 1)).mean((-1, -2))).max(-1)
    if means.max() <= TOLERANCE:
        return None
    y, x = np.unravel_index(means.argmax(), means.shape)
    return find_place(types.SimpleNamespace(box=(x, y, x + 3, y + 3)))
