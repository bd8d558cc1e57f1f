"""Placed scenes of shapes world: validated objects, laid out from scene graphs and checked against them.

Lengths and positions are in units of 1/32 of the picture's side (``GRID``), x to the right, y downwards, so that
a scene is the same at every picture size and its boxes are whole pixels at 32 px. ``pdgen.scenes.graph`` holds
what is said of a scene in words; ``layout`` finds the room.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from pdgen.scenes.graph import COLORS, INVERSE, PLACES, Entity, SceneError, SceneGraph, Step, exchanges_places
from pdgen.scenes.held_out import held_out_look, held_out_relation, unstated
from pdgen.scenes.layout import GRID, RELATIONS, apart, cell, directions, domain, joint, middles, ninth, solve
from pdgen.scenes.placement import LATTICE, SIZES, Placement

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "heart", "ring", "crescent", "arrow")
FILLS = ("solid", "outlined")
# The inside of the others, and of small ones, is too narrow to be left out.
OUTLINED_SHAPES = ("circle", "square", "triangle", "diamond", "heart")
BACKGROUNDS = ("light grey", "dark grey", "pale blue", "pale green", "beige", "lavender")
MAX_OBJECTS = 6
MOVE = 6  # units along some axis that a moved object goes at least


class Boxed(Protocol):
    """Anything with a box (left, top, right, bottom); right and bottom are exclusive."""

    @property
    def box(self) -> tuple[float, float, float, float]: ...


class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shape of a scene.

    Attributes:
      id: unique in the scene; the same object has it in every scene of a trajectory.
      entity: id of the graph's entity that it is an instance of.
      shape, color, fill: of ``SHAPES``, ``COLORS``, ``FILLS``.
      size: width and height, one of the values of ``SIZES``.
      x, y: the box's left top corner.
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
        """The word of ``PLACES`` for the third of the picture, across and down, that holds the centre."""
        return place_of(self)

    @property
    def size_word(self) -> str:
        """The key of ``SIZES``."""
        return size_word(self.size)


class Scene(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a picture of shapes world shows, and where.

    Raises:
      SceneError: two objects share an id, or leave no empty unit between their boxes.
    """

    objects: tuple[Object, ...]
    background: str = BACKGROUNDS[0]

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise SceneError(f"background {self.background!r} is none of {BACKGROUNDS}")
        if len({o.id for o in self.objects}) != len(self.objects):
            raise SceneError("two objects have the same id")
        for a, b in itertools.combinations(self.objects, 2):
            if a.x <= b.x + b.size and b.x <= a.x + a.size and a.y <= b.y + b.size and b.y <= a.y + a.size:
                raise SceneError(f"objects {a.id} and {b.id} touch or overlap: boxes {a.box} and {b.box}")

    def of(self, entity: int) -> tuple[Object, ...]:
        """The instances of an entity; none if the scene does not show it."""
        return tuple(o for o in self.objects if o.entity == entity)


def can_be_outlined(shape: str, size: str | None) -> bool:
    """Whether a shape looks different without its inside; ``size`` is a word of ``SIZES`` or None."""
    return shape in OUTLINED_SHAPES and size != "small"


def size_word(width: int) -> str:
    """The key of ``SIZES`` for one of its widths."""
    return next(word for word, widths in SIZES.items() if width in widths)


def place_of(item: Boxed, side: float = GRID) -> str:
    """The word of ``PLACES`` whose cell, a ninth of a picture of that side, holds the centre of the box."""
    left, top, right, bottom = item.box
    column, row = (min(max(int(3 * (a + b) / 2 / side), 0), 2) for a, b in ((left, right), (top, bottom)))
    return PLACES[3 * row + column]


def relation_strengths(subject: Boxed, reference: Boxed) -> dict[str, float]:
    """For each of the four relations, GenEval's number that says beyond 0.5 that it holds; see ``directions``."""
    (al, at, ar, ab), (bl, bt, br, bb) = subject.box, reference.box
    extents = (ar - al + br - bl, ab - at + bb - bt)
    numbers = directions(*np.float64([(al + ar - bl - br) / 2, (at + ab - bt - bb) / 2, *extents]))
    return dict(zip(RELATIONS, numbers.tolist()))


def relations_between(subject: Boxed, reference: Boxed) -> tuple[str, ...]:
    """The relations true of two boxes by GenEval's rule: up to two, or none."""
    return tuple(kind for kind, strength in relation_strengths(subject, reference).items() if strength > 0.5)


class Colored(Boxed, Protocol):
    """An object of a scene, or a shape detected in a picture."""

    @property
    def shape(self) -> str: ...

    @property
    def color(self) -> str: ...


def shows_held_out(objects: Sequence[Colored]) -> bool:
    """Whether a picture of the objects shows a pair or a triple that is kept from training; see ``held_out``."""
    pairs = itertools.combinations(objects, 2)
    return any(held_out_look(o.color, o.shape) for o in objects) or any(
        held_out_relation(a.shape, kind, b.shape) for a, b in pairs for kind in relations_between(a, b)
    )


class Violation(NamedTuple):
    """In what a scene is not as its graph says: a word of ``faults.FAULTS``, "fill" or "background", and in words."""

    kind: str
    entities: tuple[int, ...]
    text: str


def _of_looks(entity: Entity, objects: tuple[Object, ...]) -> Iterator[Violation]:
    stated = {"shape": entity.noun, **entity.attributes}
    places = stated.pop("place", "")
    for item in objects:
        shown = {"shape": item.shape, "color": item.color, "size": item.size_word, "fill": item.fill}
        for kind, value in stated.items():
            if shown.get(kind) != value:
                text = f"entity {entity.id}: {kind} of object {item.id} is {shown.get(kind)}, not {value}"
                yield Violation(kind, (entity.id,), text)
    wrong = entity.misplaced(objects)
    if len(wrong) > max(len(objects) - entity.count, 0):  # of one too many only the number is wrong
        for item in wrong:
            text = f"entity {entity.id}: place of object {item.id} is {item.place}, not {places}"
            yield Violation("place", (entity.id,), text)


def violations(scene: Scene, graph: SceneGraph) -> list[Violation]:
    """In what the scene is not as the graph says; nothing that the graph leaves open is a fault.

    Every entity has as many objects as its count and no other entity has any; each object has the entity's
    shape and attributes, and their places are those that the entity states; each stated relation holds between every
    instance of its subject and every instance of its reference; a stated background is the scene's.
    """
    found = []
    for entity in graph.entities:
        objects = scene.of(entity.id)
        if len(objects) != entity.count:
            text = f"entity {entity.id}: {len(objects)} of {entity.count} {entity.noun}"
            found.append(Violation("count" if objects else "missing", (entity.id,), text))
        found.extend(_of_looks(entity, objects))
    for other in sorted({o.entity for o in scene.objects} - {e.id for e in graph.entities}):
        found.append(Violation("count", (other,), f"entity {other} is not in the graph"))
    for r in graph.relations:
        for a, b in itertools.product(scene.of(r.subject), scene.of(r.reference)):
            if r.kind not in relations_between(a, b):
                text = f"entity {r.subject}: object {a.id} is not {r.kind} object {b.id} of entity {r.reference}"
                found.append(Violation("place", (r.subject, r.reference), text))
    if graph.background not in (None, scene.background):
        text = f"background is {scene.background}, not {graph.background}"
        found.append(Violation("background", (), text))
    return found


def satisfies(scene: Scene, graph: SceneGraph) -> list[str]:
    """The texts of ``violations``; empty if the scene is as the graph says."""
    return [v.text for v in violations(scene, graph)]


_Slot = dict[int, int]  # a position that objects hold: by step, which entity's
_Pair = tuple[int, int]


class _Plan(NamedTuple):
    """What is to be placed: slots, who holds which at each step, and pairs of slots that must be far apart."""

    slots: list[_Slot]
    held: list[dict[int, list[int]]]  # per step: entity -> slots of its instances
    moves: list[tuple[int, int]]


def _refuse_unnamed_changes(step: Step, before: SceneGraph, number: int) -> None:
    there = {e.id for e in before.entities}
    if step.operation in ("swap", "replace"):
        needed = step.entities if step.operation == "swap" else step.entities[:1]
        if len(step.entities) != 2 or not there.issuperset(needed):
            raise SceneError(f"step {number}: {step.operation} of {step.entities}, which are not two or not there")
    # What a step does not name keeps its pixels, so it must be said of it what was said before.
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


def _trace(steps: Sequence[Step]) -> _Plan:
    """Who keeps, gives up, exchanges or takes over which position, step by step."""
    slots: list[_Slot] = []
    held: list[dict[int, list[int]]] = []
    moves: list[tuple[int, int]] = []
    now: dict[int, list[int]] = {}
    graph = SceneGraph(entities=())
    for number, step in enumerate(steps, 1):
        _refuse_unnamed_changes(step, graph, number)
        last, now = now, dict(now)
        exchanged = step.operation == "swap" and exchanges_places(graph, step)
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
        held.append(frame)
        now = frame
    return _Plan(slots, held, moves)


def _sizes(
    rng: np.random.Generator, steps: Sequence[Step], placement: Placement, compact: bool
) -> list[dict[int, int]]:
    # Per step and entity; the same word for the same entity is the same number in every step.
    usual = placement.usual_sizes(steps)
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


def _constraints(
    steps: Sequence[Step], plan: _Plan, sizes: list[dict[int, int]], placement: Placement, gap: int
) -> tuple[list[int], list[np.ndarray], dict[_Pair, np.ndarray], dict[_Pair, tuple[np.ndarray, ...]]]:
    """Each slot's extent (that of its largest holder) and domain, the tables of pairs of slots, and the pairs that are
    to be at two places, with the ninths of both."""
    extents = [max(sizes[step][entity] for step, entity in slot.items()) for slot in plan.slots]
    domains = [domain(extent, placement.spacing) for extent in extents]
    keys = {(a, b): {("moved", MOVE)} for a, b in plan.moves}
    spread = {}
    for step, frame, size in zip(steps, plan.held, sizes):
        for a, b in itertools.combinations(sorted(itertools.chain(*frame.values())), 2):
            keys.setdefault((a, b), set()).add(("apart", extents[a], extents[b], gap))
        for entity in step.graph.entities:
            width = size[entity.id]
            sides = {slot: (extents[slot], placement.inset(extents[slot], width), width) for slot in frame[entity.id]}
            for slot, word in zip(frame[entity.id], entity.places):
                row, column = divmod(PLACES.index(word), 3)
                domains[slot] = domains[slot] & cell(*sides[slot], column, row)
            if len({*entity.places}) != 1:  # else all of its things share one stated place
                pairs = itertools.combinations(sorted(frame[entity.id]), 2)
                spread |= {(a, b): (ninth(*sides[a]), ninth(*sides[b])) for a, b in pairs}
        stated = (("related", r) for r in step.graph.relations)
        for name, r in itertools.chain(stated, (("unrelated", r) for r in unstated(step.graph))):
            for a, b in itertools.product(frame[r.reference], frame[r.subject]):
                shift = placement.inset(extents[b], size[r.subject]) - placement.inset(extents[a], size[r.reference])
                key = (name, r.kind, size[r.subject], size[r.reference], shift)
                if a < b:
                    keys[a, b].add(key)
                else:
                    back = (name, INVERSE[r.kind], size[r.reference], size[r.subject], -shift)
                    keys[b, a].add(back)
    tables = {pair: joint(tuple(sorted(parts))) for pair, parts in keys.items()}
    return extents, domains, tables, spread


def unpaintable(graph: SceneGraph, placement: Placement = LATTICE) -> list[str]:
    """What of a graph shapes world has no picture for, in words; empty if it can be painted, room permitting."""
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


def _backgrounds(rng: np.random.Generator, steps: Sequence[Step]) -> list[str]:
    """What each step states, else what the last one that did, else what the first one will; random if none does."""
    stated = [s.graph.background for s in steps]
    current = next((b for b in stated if b), BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    return [current := background or current for background in stated]


def place(rng: np.random.Generator, steps: Sequence[Step], placement: Placement = LATTICE) -> list[Scene] | None:
    """Placed scenes of a trajectory's steps, each of which satisfies its step's graph.

    An object that a step does not name has the same box and looks before and after it. A modified one stays
    where it is, about its centre if its size changes (on the lattice about its corner); two swapped entities
    exchange their positions; what replaces another takes its position; a moved one goes at least ``MOVE`` units.
    An entity without a size has that of ``Placement.usual_sizes``, one without a fill is solid. Where a graph
    leaves the relation of two entities open, it is none that is held out from training.

    Args:
      rng: decides everything; equal generators give equal scenes.
      steps: in order, the first one from an empty picture. Every entity has a colour.
      placement: where objects may be, and how large.

    Returns:
      One scene per step, or None if the search (of bounded length) finds no layout.

    Raises:
      SceneError: a graph holds what shapes world does not paint, or a step changes what it does not name.
    """
    for number, step in enumerate(steps, 1):
        if faults := unpaintable(step.graph, placement):
            raise SceneError(f"step {number}: {faults[0]}")
    plan = _trace(steps)
    backgrounds = _backgrounds(rng, steps)
    for attempt in placement.attempts:
        sizes = _sizes(rng, steps, placement, attempt.compact)
        extents, domains, tables, spread = _constraints(steps, plan, sizes, placement, attempt.gap)
        if attempt.compact:
            domains = [d & middles(extent) for d, extent in zip(domains, extents)]
        corners = solve(rng, domains, tables, attempt.width, attempt.budget, {} if attempt.crowded else spread)
        if corners is not None:
            boxes = [(*corner, extent) for corner, extent in zip(corners, extents)]
            return _scenes(steps, plan, sizes, boxes, backgrounds, placement)
    return None


def _scenes(
    steps: Sequence[Step],
    plan: _Plan,
    sizes: list[dict[int, int]],
    boxes: list[tuple[int, int, int]],
    backgrounds: list[str],
    placement: Placement,
) -> list[Scene]:
    ids: dict[tuple[int, int], int] = {}
    scenes = []
    for step, frame, size, background in zip(steps, plan.held, sizes, backgrounds):
        objects = []
        for entity in step.graph.entities:
            width = size[entity.id]
            looks = {"shape": entity.noun, "color": entity.attributes["color"], "size": width}
            looks["fill"] = entity.attributes.get("fill", "solid")
            for number, slot in enumerate(frame[entity.id]):
                left, top, extent = boxes[slot]
                inset = placement.inset(extent, width)
                corner = {"x": left + inset, "y": top + inset}
                identity = ids.setdefault((entity.id, number), len(ids))
                objects.append(Object(id=identity, entity=entity.id, **looks, **corner))
        scenes.append(Scene(objects=tuple(objects), background=background))
    return scenes


def random_scene(rng: np.random.Generator, count: int, placement: Placement = LATTICE) -> Scene:
    """``count`` (1 to ``MAX_OBJECTS``) objects of any looks at any place, each an entity of its own.

    Raises SceneError for a count out of range.
    """
    if not 1 <= count <= MAX_OBJECTS:
        raise SceneError(f"{count} objects asked for; a scene holds 1 to {MAX_OBJECTS}")
    corners = None
    while corners is None:  # Some sizes do not fit beside each other; others are drawn then.
        words = rng.choice(list(placement.shares), count, p=list(placement.shares.values()))
        sizes = [int(rng.choice(placement.widths[word])) for word in words]
        pairs = itertools.combinations(range(count), 2)
        tables = {(a, b): apart(sizes[a], sizes[b], 1) for a, b in pairs}
        corners = solve(rng, [domain(size, placement.spacing) for size in sizes], tables)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    objects = []
    for i, (size, (left, top)) in enumerate(zip(sizes, corners)):
        shape, color, fill = pick(SHAPES), pick(COLORS), pick(FILLS)
        fill = fill if can_be_outlined(shape, size_word(size)) else "solid"
        objects.append(Object(i, i, shape, color, size, left, top, fill))
    return Scene(objects=tuple(objects), background=pick(BACKGROUNDS))
