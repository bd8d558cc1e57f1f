"""Whether a picture of shapes world shows what a plan promises, and keeps what the step does not concern.

From pixels alone: ``detect`` says what is seen, each shape is taken for an instance of the entity that it resembles
most, and the graph's promises are checked on shapes, colours and boxes with GenEval's rule for relations.
"""

import dataclasses
import itertools
import types
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from pdgen.sequence.images import Picture
from pdgen.sequence.trajectory import format_inspection
from pdgen.shapes.detector import Found, background
from pdgen.shapes.graph import Entity, SceneGraph
from pdgen.shapes.instruction import Instruction
from pdgen.shapes.language import background_fault, fault
from pdgen.shapes.lexicon import sentence
from pdgen.shapes.matching import assign, is_called, looks_cost, words_of
from pdgen.shapes.phrases import known
from pdgen.shapes.world import GRID, Violation, place_of, relations_between, violations

_Watched = tuple[Picture, Sequence[Found]]  # and what is detected in it
SURPLUS = 2.0  # cost of being one more than the count; of another colour or noun it is rather something else
SHIFT = 1  # units by which each side of a box may differ: half a unit of detection in either picture
# Of 255, of the mean over 3 x 3 units in some channel. Colours differ from backgrounds by at least 55 there; noise of
# 10 in every pixel of both pictures stays below 20.
TOLERANCE = 24.0


@dataclasses.dataclass(frozen=True)
class SeenObject:
    """A detected shape as an instance of an entity; the attributes are those of ``world.Object``."""

    id: int
    entity: int
    found: Found

    @property
    def shape(self) -> str:
        """Its noun."""
        return self.found.shape

    @property
    def color(self) -> str:
        """Its colour."""
        return self.found.color

    @property
    def fill(self) -> str:
        """ "solid" or "outlined"."""
        return self.found.fill

    @property
    def size_word(self) -> str:
        """ "small", "medium" or "large"."""
        return self.found.size

    @property
    def box(self) -> tuple[int, int, int, int]:
        """In units of 1/32 of the picture's side."""
        return self.found.box

    @property
    def place(self) -> str:
        """The word of ``PLACES``."""
        return place_of(self.found)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture read against a graph; attributes as of ``world.Scene``, and what is an instance of nothing."""

    objects: tuple[SeenObject, ...]
    background: str
    extra: tuple[Found, ...]

    def of(self, entity: int) -> tuple[SeenObject, ...]:
        """The instances of an entity."""
        return tuple(o for o in self.objects if o.entity == entity)


def read(found: Sequence[Found], ground: str, graph: SceneGraph) -> Seen:
    """Each detected shape as an instance of the entity that it resembles most, all together."""
    slots = [(e, n) for e in graph.entities for n in range(e.count + len(found))]
    costs = np.zeros((len(found), len(slots)))
    for i, one in enumerate(found):
        looks = looks_of(one)
        for j, (entity, number) in enumerate(slots):
            costs[i, j] = looks_cost(words_of(entity), looks) + SURPLUS * (number >= entity.count)
    matches = assign(costs)
    objects = tuple(SeenObject(i, slots[matches[i]][0].id, found[i]) for i in sorted(matches))
    return Seen(objects, ground, tuple(one for i, one in enumerate(found) if i not in matches))


def looks_of(found: Found) -> dict[str, str]:
    """All that can be said of a detected shape, as noun and attributes."""
    return {"noun": found.shape, "color": found.color, "size": found.size, "fill": found.fill, "place": place_of(found)}


def inspections(rng: np.random.Generator, seen: Seen, graph: SceneGraph) -> Iterator[str]:
    """The inspections of a picture that does not show what the graph says, one for each fault.

    Those of entities come first, missing or wrong, then a wrong background, then things that nobody asked for.
    """
    told = set()
    for violation in violations(seen, graph):
        if (key := violation[:2]) not in told:
            told.add(key)
            yield _say(rng, violation, seen, graph)
    for extra in seen.extra:
        yield fault(rng, "extra", graph, wrong=_entity(extra))


def check_promises(rng: np.random.Generator, seen: Seen, graph: SceneGraph) -> str | None:
    """The first of ``inspections``, None where the picture shows what the graph says."""
    return next(inspections(rng, seen, graph), None)


def _entity(found: Found) -> Entity:
    return Entity(0, found.shape, 1, {"color": found.color})


def _say(rng: np.random.Generator, violation: Violation, seen: Seen, graph: SceneGraph) -> str:
    kind = violation.kind
    if kind == "background":
        return background_fault(rng, graph.background, seen.background)
    subject = violation.entities[0]
    if kind == "missing":
        return fault(rng, kind, graph, subject)
    relation, wrong = None, seen.of(subject)
    if kind == "place" and len(violation.entities) == 2:
        pairs = itertools.product(graph.relations, seen.objects, seen.objects)
        relation = next(
            r
            for r, a, b in pairs
            if (a.entity, b.entity) == (r.subject, r.reference) == violation.entities
            and r.kind not in relations_between(a, b)
        )
    elif kind == "place":
        wrong = tuple(graph.find(subject).misplaced(wrong))
    elif kind != "count":
        key = "noun" if kind == "shape" else kind
        stated = words_of(graph.find(subject))[key]
        wrong = tuple(o for o in wrong if looks_of(o.found)[key] != stated)
    attributes = looks_of(wrong[0].found)
    shown = Entity(subject, attributes.pop("noun"), len(wrong), attributes)
    return fault(rng, kind, graph, subject, shown, relation)


def concerned(instruction: Instruction, found: Sequence[Found]) -> set[int]:
    """Numbers of the shapes that are there and that the instruction names to change."""
    if instruction.operation == "add":
        return set()
    ids = instruction.entities[:1] if instruction.operation == "replace" else instruction.entities
    named = [words_of(instruction.graph.find(i)) for i in ids]
    return {n for n, one in enumerate(found) if any(is_called(words, looks_of(one)) for words in named)}


def check_untouched(
    rng: np.random.Generator,
    instruction: Instruction,
    before: _Watched,
    now: _Watched,
) -> str | None:
    """The inspection of a picture in which something changed that the instruction does not concern, else None.

    Every shape before that the instruction does not name is there now, with the same shape, colour and fill and
    each side of its box within ``SHIFT`` units. Away from all shapes of both pictures no square of 3 x 3 units
    has a mean colour that differs by more than ``TOLERANCE``, unless the instruction states a background.

    Args:
      before, now: picture and what was detected in it.
    """
    touched = concerned(instruction, before[1])
    for number, one in enumerate(before[1]):
        if number not in touched and not any(_is_same(one, other) for other in now[1]):
            names = known(SceneGraph((_entity(one),)), 0)
            analysis = f"{names} {_change(one, now[1])}, but the step does not concern it"
            return format_inspection(sentence(analysis), f"Keep {names} as it was.")
    if instruction.graph.background is not None:
        return None
    grounds = background(before[0]), background(now[0])
    if grounds[0] != grounds[1]:
        return background_fault(rng, *grounds)
    place = _changed_place(before, now)
    if place is None:
        return None
    return format_inspection(
        f"Something has changed at the {place} that the step does not concern.", f"Keep the {place} as it was."
    )


def _is_same(a: Found, b: Found) -> bool:
    near = all(abs(x - y) <= SHIFT for x, y in zip(a.box, b.box))
    return near and (a.shape, a.color, a.fill) == (b.shape, b.color, b.fill)


def _change(one: Found, now: Sequence[Found]) -> str:
    if any((one.shape, one.color, one.fill) == (o.shape, o.color, o.fill) for o in now):
        return "has moved"
    same_place = [o for o in now if all(abs(x - y) <= SHIFT for x, y in zip(one.box, o.box))]
    if not same_place:
        return "is gone"
    other = same_place[0]
    return f"is now {known(SceneGraph((_entity(other),)), 0).replace('the ', 'a ', 1)}"


def _changed_place(before: _Watched, now: _Watched) -> str | None:
    """The word of ``PLACES`` of the clearest change of the ground, None if there is none."""
    small = [Image.fromarray(p).resize((GRID, GRID), Image.Resampling.BOX) for p, _ in (before, now)]
    change = np.subtract(*(np.asarray(p, np.float32) for p in small))
    for one in (*before[1], *now[1]):
        left, top, right, bottom = one.box
        change[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = 0
    means = np.abs(np.lib.stride_tricks.sliding_window_view(change, (3, 3), axis=(0, 1)).mean((-1, -2))).max(-1)
    if means.max() <= TOLERANCE:
        return None
    y, x = np.unravel_index(means.argmax(), means.shape)
    return place_of(types.SimpleNamespace(box=(x, y, x + 3, y + 3)))
