"""Scenes of shapes world: validated objects, placed for scene graphs and checked against them.

Lengths and positions are in units of 1/32 of the picture's side (``GRID``), x to the right, y downwards. So a scene is
the same at every picture size, and its boxes are whole pixels at 32 px. ``pdgen.shapes.graph`` describes scenes without
positions; ``layout`` searches for positions.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np

from pdgen.shapes.graph import COLORS, INVERSE, PLACES, SceneError, SceneGraph, Step, place_implies, swaps_places
from pdgen.shapes.held_out import find_unstated, is_held_out_look, is_held_out_relation
from pdgen.shapes.layout import (
    GRID,
    RELATIONS,
    Domain,
    NinthRule,
    Ninths,
    Table,
    compute_directions,
    compute_ninths,
    make_cell_domain,
    make_domain,
    make_gap_table,
    make_joint_table,
    make_middle_domain,
    solve,
)
from pdgen.shapes.placement import LATTICE, SIZES, Placement

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "heart", "ring", "crescent", "arrow")
FILLS = ("solid", "outlined")
# The inside of other shapes, and of small ones, is too narrow to show an outline.
OUTLINED_SHAPES = ("circle", "square", "triangle", "diamond", "heart")
BACKGROUNDS = ("light grey", "dark grey", "pale blue", "pale green", "beige", "lavender")
MAX_OBJECTS = 6
MOVE = 6  # minimum distance of a move along some axis, in units


@runtime_checkable
class HasBox(Protocol):
    """Anything with a box."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom); right and bottom are exclusive."""


class SceneObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shape of a scene.

    Attributes:
      id: unique in the scene; constant over the scenes of a trajectory.
      entity: id of the entity of the graph that the object is an instance of.
      shape, color, fill: words of ``SHAPES``, ``COLORS``, ``FILLS``.
      size: width and height in units, one of the values of ``SIZES``.
      x, y: top left corner of the box in units.
    """

    id: int
    entity: int
    shape: str
    color: str
    size: int
    x: int
    y: int
    fill: str = "solid"

    def __post_init__(self) -> None:
        for field, allowed in (("shape", SHAPES), ("color", COLORS), ("fill", FILLS)):
            if getattr(self, field) not in allowed:
                raise SceneError(f"object {self.id}: {field} {getattr(self, field)!r} is none of {allowed}")
        if not any(self.size in sizes for sizes in SIZES.values()):
            raise SceneError(f"object {self.id}: size {self.size} is none of {tuple(SIZES.values())}")
        if self.fill == "outlined" and not can_be_outlined(self.shape, self.size_word):
            raise SceneError(f"object {self.id}: a {self.shape} of size {self.size} has no inside to leave out")
        if not (0 <= self.x <= GRID - self.size and 0 <= self.y <= GRID - self.size):
            raise SceneError(f"object {self.id}: box {self.box} leaves the picture (0 to {GRID})")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in grid units; right and bottom are exclusive."""
        return self.x, self.y, self.x + self.size, self.y + self.size

    @property
    def place(self) -> str:
        """The word of ``PLACES`` for the ninth of the picture that contains the centre."""
        return find_place(self)

    @property
    def size_word(self) -> str:
        """The key of ``SIZES``."""
        return name_size(self.size)


class Scene(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The objects and the background of a picture of shapes world.

    Raises:
      SceneError: two objects share an id, or have no empty unit between their boxes.
    """

    objects: tuple[SceneObject, ...]
    background: str = BACKGROUNDS[0]

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise SceneError(f"background {self.background!r} is none of {BACKGROUNDS}")
        if len({o.id for o in self.objects}) != len(self.objects):
            raise SceneError("two objects have the same id")
        for a, b in itertools.combinations(self.objects, 2):
            if a.x <= b.x + b.size and b.x <= a.x + a.size and a.y <= b.y + b.size and b.y <= a.y + a.size:
                raise SceneError(f"objects {a.id} and {b.id} touch or overlap: boxes {a.box} and {b.box}")

    def objects_of(self, entity: int) -> tuple[SceneObject, ...]:
        """Return the instances of an entity; empty if the scene does not show it."""
        return tuple(o for o in self.objects if o.entity == entity)


def can_be_outlined(shape: str, size: str | None) -> bool:
    """Return whether a shape has an outlined form. ``size`` is a word of ``SIZES`` or None."""
    return shape in OUTLINED_SHAPES and size != "small"


def name_size(width: int) -> str:
    """Return the key of ``SIZES`` for one of its widths."""
    return next(word for word, widths in SIZES.items() if width in widths)


def find_place(item: HasBox) -> str:
    """Return the word of ``PLACES`` for the ninth of the picture that contains the box's centre."""
    left, top, right, bottom = item.box
    column, row = (min(max(int(3 * (a + b) / 2 / GRID), 0), 2) for a, b in ((left, right), (top, bottom)))
    return PLACES[3 * row + column]


def compute_relation_strengths(subject: HasBox, reference: HasBox) -> dict[str, float]:
    """Compute the strength of each relation; above 0.5 it holds by GenEval's rule (``layout.compute_directions``)."""
    (al, at, ar, ab), (bl, bt, br, bb) = subject.box, reference.box
    extents = (ar - al + br - bl, ab - at + bb - bt)
    numbers = compute_directions(*np.array([(al + ar - bl - br) / 2, (at + ab - bt - bb) / 2, *extents], np.float64))
    return dict(zip(RELATIONS, numbers.tolist()))


def find_relations(subject: HasBox, reference: HasBox) -> tuple[str, ...]:
    """Return the relations that hold between two boxes by GenEval's rule: two at most."""
    return tuple(kind for kind, strength in compute_relation_strengths(subject, reference).items() if strength > 0.5)


@runtime_checkable
class HasLook(HasBox, Protocol):
    """An object of a scene, or a shape detected in a picture."""

    @property
    def shape(self) -> str:
        """A word of ``SHAPES``."""

    @property
    def color(self) -> str:
        """A word of ``COLORS``."""


def shows_held_out(objects: Sequence[HasLook]) -> bool:
    """Return whether a picture of the objects shows a held-out combination; see ``held_out``."""
    pairs = itertools.combinations(objects, 2)
    return any(is_held_out_look(o.color, o.shape) for o in objects) or any(
        is_held_out_relation(a.shape, kind, b.shape) for a, b in pairs for kind in find_relations(a, b)
    )


_Slot = dict[int, int]  # a reserved position: by step, the entity whose object has it
_Pair = tuple[int, int]


class _SlotPlan(NamedTuple):
    """The slots to place, their use at each step, and the pairs of slots that must be far apart."""

    slots: list[_Slot]
    used: list[dict[int, list[int]]]  # per step: entity -> slots of its instances
    moves: list[_Pair]


def _refuse_unnamed_changes(step: Step, before: SceneGraph, number: int) -> None:
    there = {e.id for e in before.entities}
    if step.operation in ("swap", "replace"):
        needed = step.entities if step.operation == "swap" else step.entities[:1]
        if len(step.entities) != 2 or not there.issuperset(needed):
            raise SceneError(f"step {number}: {step.operation} of {step.entities}, which are not two or not there")
    # Entities that a step does not name keep their pixels, so the graph must describe them as before.
    said = {e.id: e for e in before.entities}
    for entity in step.graph.entities:
        looks = [
            (e.noun, e.count, *(e.attributes.get(k) for k in ("color", "size", "fill")))
            for e in (entity, said.get(entity.id))
            if e is not None
        ]
        if entity.id not in step.entities and (len(looks) == 1 or looks[0] != looks[1]):
            raise SceneError(f"step {number}: entity {entity.id} changes or appears, but the step does not name it")
    gone = said.keys() - {e.id for e in step.graph.entities} - set(step.entities)
    if gone:
        raise SceneError(f"step {number}: entity {min(gone)} goes, but the step does not name it")


def _assign_slots(steps: Sequence[Step]) -> _SlotPlan:
    """Follow the entities through the steps: they keep, exchange, take over or leave their slots."""
    slots: list[_Slot] = []
    used: list[dict[int, list[int]]] = []
    moves: list[_Pair] = []
    now: dict[int, list[int]] = {}
    graph = SceneGraph(entities=())
    for number, step in enumerate(steps, 1):
        _refuse_unnamed_changes(step, graph, number)
        last, now = now, dict(now)
        exchanged = step.operation == "swap" and swaps_places(graph, step)
        graph = step.graph
        if exchanged or step.operation == "replace":
            a, b = step.entities
            now[a], now[b] = now.get(b, []), now[a]
        elif step.operation == "move":
            now |= {entity: [] for entity in step.entities}
        frame = {}
        for entity in graph.entities:
            kept = now.get(entity.id, [])[: entity.count]
            fresh = range(len(slots), len(slots) + entity.count - len(kept))
            slots.extend({} for _ in fresh)
            frame[entity.id] = [*kept, *fresh]
            for slot in frame[entity.id]:
                slots[slot][number - 1] = entity.id
            if step.operation == "move" and entity.id in step.entities:
                moves.extend(itertools.product(last.get(entity.id, []), fresh))
        used.append(frame)
        now = frame
    return _SlotPlan(slots, used, moves)


def _draw_sizes(
    rng: np.random.Generator, steps: Sequence[Step], placement: Placement, compact: bool
) -> list[dict[int, int]]:
    # Per step and entity. An entity with the same size word has the same width in every step.
    usual = placement.choose_sizes(steps)
    drawn: dict[tuple[int, str], int] = {}
    frames = []
    for step in steps:
        words = {e.id: e.attributes.get("size", usual[e.id]) for e in step.graph.entities}
        for key in words.items():
            if key not in drawn:
                widths = placement.widths[key[1]]
                drawn[key] = widths[0] if compact else int(rng.choice(widths))
        frames.append({entity: drawn[entity, word] for entity, word in words.items()})
    return frames


_DIFFERENT = ~np.eye(len(PLACES), dtype=bool)
# By relation: the places of subject and reference that imply it.
_IMPLIED = {r: np.array([[place_implies(r, a, b) for b in PLACES] for a in PLACES]) for r in RELATIONS}


def _make_constraints(
    steps: Sequence[Step], plan: _SlotPlan, sizes: list[dict[int, int]], placement: Placement, gap: int
) -> tuple[list[int], list[Domain], dict[_Pair, Table], dict[_Pair, list[NinthRule]]]:
    """Translate the steps to constraints.

    Returns:
      The extent of each slot, which is that of its largest object; the domain of each slot; the tables of pairs of
      slots; and rules for their ninths: things of one entity share none, and those of related things imply the
      relation.
    """
    extents = [max(sizes[step][entity] for step, entity in slot.items()) for slot in plan.slots]
    domains = [make_domain(extent, placement.spacing) for extent in extents]
    rules: dict[_Pair, list[NinthRule]] = {}
    keys: dict[_Pair, set[tuple[str | int, ...]]] = {(a, b): {("moved", MOVE)} for a, b in plan.moves}
    for step, frame, size in zip(steps, plan.used, sizes):
        ninths: dict[int, Ninths] = {}
        for a, b in itertools.combinations(sorted(itertools.chain(*frame.values())), 2):
            keys.setdefault((a, b), set()).add(("apart", extents[a], extents[b], gap))
        for entity in step.graph.entities:
            width = size[entity.id]
            for slot in frame[entity.id]:
                ninths[slot] = compute_ninths(extents[slot], placement.compute_inset(extents[slot], width), width)
            for slot, word in zip(frame[entity.id], entity.places):
                row, column = divmod(PLACES.index(word), 3)
                inset = placement.compute_inset(extents[slot], width)
                domains[slot] = domains[slot] & make_cell_domain(extents[slot], inset, width, column, row)
            if len({*entity.places}) != 1:  # else all of its things share one stated place
                for a, b in itertools.combinations(sorted(frame[entity.id]), 2):
                    rules.setdefault((a, b), []).append(NinthRule(ninths[a], ninths[b], _DIFFERENT))
        stated = (("related", r) for r in step.graph.relations)
        for name, r in itertools.chain(stated, (("unrelated", r) for r in find_unstated(step.graph))):
            for a, b in itertools.product(frame[r.reference], frame[r.subject]):
                shift = placement.compute_inset(extents[b], size[r.subject]) - placement.compute_inset(
                    extents[a], size[r.reference]
                )
                key = (name, r.kind, size[r.subject], size[r.reference], shift)
                if a < b:
                    keys[a, b].add(key)
                else:
                    back = (name, INVERSE[r.kind], size[r.reference], size[r.subject], -shift)
                    keys[b, a].add(back)
                if name == "related":
                    rule = NinthRule(ninths[b], ninths[a], _IMPLIED[r.kind])
                    rules.setdefault((min(a, b), max(a, b)), []).append(rule if b < a else rule.reverse())
    tables = {pair: make_joint_table(tuple(sorted(parts))) for pair, parts in keys.items()}
    return extents, domains, tables, rules


def find_unpaintable(graph: SceneGraph, placement: Placement = LATTICE) -> list[str]:
    """List, in words, what of a graph shapes world cannot paint; empty if it can, provided there is room."""
    allowed = {"color": COLORS, "size": tuple(placement.widths), "fill": FILLS, "place": PLACES}
    faults = []
    for entity in graph.entities:
        if entity.noun not in SHAPES:
            faults.append(f"entity {entity.id}: {entity.noun!r} is no shape of {SHAPES}")
        for name, value in entity.attributes.items():
            if not {*(entity.places if name == "place" else (value,))} <= {*allowed.get(name, ())}:
                faults.append(f"entity {entity.id}: shapes world has no {name} {value!r}")
        if "color" not in entity.attributes:
            faults.append(f"entity {entity.id}: a {entity.noun} of shapes world needs a color")
        outlined = entity.attributes.get("fill") == "outlined"
        if outlined and not can_be_outlined(entity.noun, entity.attributes.get("size")):
            faults.append(f"entity {entity.id}: {', '.join(OUTLINED_SHAPES)} can be outlined, if they are not small")
    for r in graph.relations:
        if r.kind not in RELATIONS:
            faults.append(f"relation {r.subject} {r.kind} {r.reference}: the kind is none of {RELATIONS}")
    if graph.background not in (None, *BACKGROUNDS):
        faults.append(f"background {graph.background!r} is none of {BACKGROUNDS}")
    return faults


def _choose_backgrounds(rng: np.random.Generator, steps: Sequence[Step]) -> list[str]:
    """Return each step's stated background, else that of the nearest earlier or first later step, else a random one."""
    stated = [s.graph.background for s in steps]
    current = next((b for b in stated if b), BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    return [current := background or current for background in stated]


def place_scenes(rng: np.random.Generator, steps: Sequence[Step], placement: Placement = LATTICE) -> list[Scene] | None:
    """Place the scenes of a trajectory. Each satisfies the graph of its step.

    - Objects that a step does not name keep box and looks.
    - Modified objects keep their position: the centre, or on the lattice the corner, if the size changes.
    - Swapped entities exchange positions. An entity that replaces another takes its position.
    - Moved objects move by at least ``MOVE`` units.
    - The places of related objects imply the relation (``graph.place_implies``), if the search finds room.
    - Entities without a size have that of ``Placement.choose_sizes``; those without a fill are solid.
    - Relations that the graph leaves open are none of the held-out ones.

    Args:
      rng: the only source of randomness; equal generators give equal scenes.
      steps: in order, starting from an empty picture. Every entity has a colour.
      placement: the allowed positions and sizes.

    Returns:
      One scene per step, or None if the search, which has a bounded length, finds no layout.

    Raises:
      SceneError: a graph contains something that shapes world cannot paint, or a step changes what it does not name.
    """
    for number, step in enumerate(steps, 1):
        if faults := find_unpaintable(step.graph, placement):
            raise SceneError(f"step {number}: {faults[0]}")
    plan = _assign_slots(steps)
    backgrounds = _choose_backgrounds(rng, steps)
    for attempt in placement.attempts:
        sizes = _draw_sizes(rng, steps, placement, attempt.compact)
        extents, domains, tables, rules = _make_constraints(steps, plan, sizes, placement, attempt.gap)
        if attempt.compact:
            domains = [d & make_middle_domain(extent) for d, extent in zip(domains, extents)]
        corners = solve(rng, domains, tables, attempt.width, attempt.budget, {} if attempt.crowded else rules)
        if corners is not None:
            boxes = [(*corner, extent) for corner, extent in zip(corners, extents)]
            return _build_scenes(steps, plan, sizes, boxes, backgrounds, placement)
    return None


def _build_scenes(
    steps: Sequence[Step],
    plan: _SlotPlan,
    sizes: list[dict[int, int]],
    boxes: list[tuple[int, int, int]],
    backgrounds: list[str],
    placement: Placement,
) -> list[Scene]:
    ids: dict[tuple[int, int], int] = {}
    scenes = []
    for step, frame, size, background in zip(steps, plan.used, sizes, backgrounds):
        objects = []
        for entity in step.graph.entities:
            width, fill = size[entity.id], entity.attributes.get("fill", "solid")
            for number, slot in enumerate(frame[entity.id]):
                left, top, extent = boxes[slot]
                inset = placement.compute_inset(extent, width)
                identity = ids.setdefault((entity.id, number), len(ids))
                color, x, y = entity.attributes["color"], left + inset, top + inset
                objects.append(SceneObject(identity, entity.id, entity.noun, color, width, x, y, fill))
        scenes.append(Scene(objects=tuple(objects), background=background))
    return scenes


def sample_scene(rng: np.random.Generator, count: int, placement: Placement = LATTICE) -> Scene:
    """Draw a scene of ``count`` objects of random looks and places, each an entity of its own.

    Raises:
      SceneError: ``count`` is not within 1 to ``MAX_OBJECTS``.
    """
    if not 1 <= count <= MAX_OBJECTS:
        raise SceneError(f"{count} objects asked for; a scene holds 1 to {MAX_OBJECTS}")
    corners = None
    while corners is None:  # some sizes do not fit together; draw others
        words = rng.choice(list(placement.shares), count, p=list(placement.shares.values()))
        sizes = [int(rng.choice(placement.widths[word])) for word in words]
        pairs = itertools.combinations(range(count), 2)
        tables = {(a, b): make_gap_table(sizes[a], sizes[b], 1) for a, b in pairs}
        corners = solve(rng, [make_domain(size, placement.spacing) for size in sizes], tables)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    objects = []
    for i, (size, (left, top)) in enumerate(zip(sizes, corners)):
        shape, color, fill = pick(SHAPES), pick(COLORS), pick(FILLS)
        fill = fill if can_be_outlined(shape, name_size(size)) else "solid"
        objects.append(SceneObject(i, i, shape, color, size, left, top, fill))
    return Scene(objects=tuple(objects), background=pick(BACKGROUNDS))
