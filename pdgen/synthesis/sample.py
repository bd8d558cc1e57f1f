"""Random graphs of scenes of shapes world, and the graphs of their prompts.

A scene begins as a layout on the 3 x 3 cells of ``PLACES``. Its relations and places are read off the layout, so that
they are consistent. A scene has at most ``MAX_OBJECTS`` shapes.

No training scene contains a held-out combination. Every test scene of a task with such combinations contains one.
"""

import functools
import itertools
from collections.abc import Mapping

import numpy as np

from pdgen.shapes.graph import COLORS, PLACES, Entity, Relation, SceneGraph
from pdgen.shapes.held_out import is_held_out, is_held_out_relation
from pdgen.shapes.world import BACKGROUNDS, MAX_OBJECTS, SHAPES, can_be_outlined

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "composition")
ENTITY_RATES = {3: 0.25, 4: 0.35, 5: 0.25, 6: 0.15}  # probabilities of the number of entities of a composition
MORE_RATE = 0.2  # probability that an entity of a composition has several things
RELATION_RATE = 0.85  # probability that a composition states a relation between two groups of entities
MOST = 4  # maximum things of one entity
FEW = 4  # maximum things of a scene with a large one

Cells = tuple[tuple[int, int], ...]  # (column, row) of each thing of an entity


def has_room(graph: SceneGraph) -> bool:
    """Return whether a graph is small enough for a layout: ``MAX_OBJECTS`` things, or ``FEW`` with one large thing."""
    things = sum(e.count for e in graph.entities)
    large = sum(e.count for e in graph.entities if e.attributes.get("size") == "large")
    return things <= MAX_OBJECTS if not large else things <= FEW and large == 1


@functools.cache
def _list_blocks(count: int) -> tuple[Cells, ...]:
    # All rows, columns and rectangles of that many cells: things of one entity are adjacent.
    sides = [(w, count // w) for w in range(1, 4) if count % w == 0 and count // w <= 3]
    return tuple(
        tuple((column + i, row + j) for i in range(width) for j in range(height))
        for width, height in sides
        for column in range(4 - width)
        for row in range(4 - height)
    )


def _draw_layout(rng: np.random.Generator, counts: list[int]) -> list[Cells]:
    # The largest groups are placed first. If the rest has no room, all are placed again.
    order = sorted(range(len(counts)), key=lambda i: -counts[i])
    while True:
        taken: dict[int, Cells] = {}
        for i in order:
            used = set(itertools.chain(*taken.values()))
            free = [block for block in _list_blocks(counts[i]) if not used & set(block)]
            if not free:
                break
            taken[i] = free[rng.integers(len(free))]
        else:
            return [taken[i] for i in range(len(counts))]


def _find_relation(subject: Cells, reference: Cells) -> str | None:
    # The relation that clearly holds for all pairs of things: the offset along one axis exceeds that along the other.
    offsets = np.array([(a - c, b - d) for a, b in subject for c, d in reference])
    for axis, (less, more) in enumerate((("left of", "right of"), ("above", "below"))):
        along, across = offsets[:, axis], np.abs(offsets[:, 1 - axis])
        if np.all(-along > across):
            return less
        if np.all(along > across):
            return more
    return None


def _find_shown_relations(layout: list[Cells]) -> set[Relation]:
    # All relations between any two things of two entities by GenEval's rule: two of them on a diagonal.
    numbers = range(len(layout))
    pairs = ((i, j, a, b) for i, j in itertools.combinations(numbers, 2) for a in layout[i] for b in layout[j])
    shown = set()
    for i, j, (a, b), (c, d) in pairs:
        if abs(a - c) >= abs(b - d):
            shown.add(Relation(i, "left of" if a < c else "right of", j))
        if abs(b - d) >= abs(a - c):
            shown.add(Relation(i, "above" if b < d else "below", j))
    return shown


def _draw_relations(rng: np.random.Generator, layout: list[Cells], rate: float) -> tuple[Relation, ...]:
    # A random forest over the entities: without cycles, no relation follows from others.
    group = list(range(len(layout)))
    relations = []
    pairs = list(itertools.permutations(range(len(layout)), 2))
    for subject, reference in [pairs[i] for i in rng.permutation(len(pairs))]:
        kind = _find_relation(layout[subject], layout[reference])
        if kind is None or group[subject] == group[reference]:
            continue
        old, new = group[subject], group[reference]
        group = [new if g == old else g for g in group]
        if rng.random() < rate:
            relations.append(Relation(subject=subject, kind=kind, reference=reference))
    return tuple(sorted(relations, key=lambda r: (r.subject, r.reference)))


def _draw_counts(
    rng: np.random.Generator, task: str, entity_rates: Mapping[int, float], things: int | None
) -> list[int]:
    if task == "counting":
        return [int(rng.integers(2, 5))]
    if task != "composition":
        return [1] if task in ("single_object", "colors") else [1, 1]
    if things is not None:
        return _divide_things(rng, things)
    counts = [1] * int(rng.choice(list(entity_rates), p=list(entity_rates.values())))
    for i in range(len(counts)):
        if rng.random() < MORE_RATE:
            counts[i] += int(rng.integers(0, min(3, MAX_OBJECTS - sum(counts)) + 1))
    return counts


def _divide_things(rng: np.random.Generator, things: int) -> list[int]:
    # Each thing joins the entity of the one before or begins a new entity.
    counts = [1]
    for joins in rng.random(things - 1) < MORE_RATE:
        if joins and counts[-1] < MOST:
            counts[-1] += 1
        else:
            counts.append(1)
    return [counts[i] for i in rng.permutation(len(counts))]


def _draw_arrangement(
    rng: np.random.Generator, task: str, counts: list[int]
) -> tuple[list[Cells], tuple[Relation, ...]]:
    if task != "position":
        layout = _draw_layout(rng, counts)
        return layout, _draw_relations(rng, layout, RELATION_RATE if task == "composition" else 0.5)
    while True:  # until the two are not on a diagonal
        layout = _draw_layout(rng, counts)
        kind = _find_relation(*layout)
        if kind is not None:
            return layout, (Relation(subject=0, kind=kind, reference=1),)


def _draw_styles(rng: np.random.Generator, task: str, counts: list[int], layout: list[Cells]) -> list[dict[str, str]]:
    # Attributes other than colour, within the limits of ``has_room``. Crowded scenes have more small things.
    crowded = sum(counts) > FEW
    size_rate, fill_rate, place_rate = (0.3 + 0.2 * crowded, 0.15, 0.1) if task == "composition" else (0.2, 0.1, 0.25)
    may_be_large = not crowded
    styles = []
    for count, cells in zip(counts, layout):
        sized, outlined, placed = rng.random(3) < (size_rate, fill_rate, place_rate)
        style = {}
        if sized:
            large = may_be_large and count == 1 and rng.random() < 0.5
            may_be_large &= not large
            style["size"] = "large" if large else "small"
        if outlined:
            style["fill"] = "outlined"
        if placed and count == 1:
            (column, row) = cells[0]
            style["place"] = tuple(PLACES)[3 * row + column]
        styles.append(style)
    return styles


def _draw_looks(rng: np.random.Generator, task: str, number: int) -> list[tuple[str, str]]:
    # (noun, colour) of each entity, all different. Tasks whose prompts may omit colours have different nouns.
    if task == "composition":
        picks = rng.permutation(len(SHAPES) * len(COLORS))[:number]
        return [(SHAPES[i // len(COLORS)], COLORS[i % len(COLORS)]) for i in picks]
    nouns, colors = rng.permutation(len(SHAPES))[:number], rng.permutation(len(COLORS))[:number]
    return [(SHAPES[n], COLORS[c]) for n, c in zip(nouns, colors)]


def _drop_unpaintable(noun: str, style: dict[str, str]) -> dict[str, str]:
    # Removes attributes that shapes world cannot paint for this noun.
    return {k: v for k, v in style.items() if k != "fill" or can_be_outlined(noun, style.get("size"))}


def sample_graph(
    rng: np.random.Generator,
    task: str,
    split: str = "train",
    entity_rates: Mapping[int, float] = ENTITY_RATES,
    things: int | None = None,
) -> SceneGraph:
    """Draw a whole scene for a prompt of one of ``TASKS``. Every entity has a colour; ids are 0, 1, ... in order.

    The relations have no cycle and hold together on a layout of 3 x 3 cells. Their number is 0 to entities - 1, and 1
    for ``position``. Most compositions and some other scenes state a background.

    Args:
      rng: the only source of randomness.
      task: one of ``TASKS``.
      split: "train": neither the graph nor the layout contains a held-out combination. "test": the prompt's graph
        contains one if the task is ``colors``, ``position``, ``color_attr`` or ``composition``; other tasks as "train".
      entity_rates: probability of each number of entities, 1 to ``MAX_OBJECTS``, in a composition.
      things: total number of things of a composition, 1 to ``MAX_OBJECTS``; it replaces ``entity_rates``.

    Raises:
      ValueError: the task or split is unknown, or a number is out of range.
    """
    if task not in TASKS or split not in ("train", "test"):
        raise ValueError(f"task {task!r} and split {split!r} must be one of {TASKS} and one of 'train', 'test'")
    if not entity_rates.keys() <= set(range(1, MAX_OBJECTS + 1)):
        raise ValueError(f"entity_rates are for {sorted(entity_rates)} entities; a scene has 1 to {MAX_OBJECTS}")
    if things is not None and not 1 <= things <= MAX_OBJECTS:
        raise ValueError(f"things={things}: a scene has 1 to {MAX_OBJECTS}")
    counts = _draw_counts(rng, task, entity_rates, things)
    layout, relations = _draw_arrangement(rng, task, counts)
    styles = _draw_styles(rng, task, counts, layout)
    has_background = rng.random() < (0.75 if task == "composition" else 0.25)
    background = str(rng.choice(BACKGROUNDS)) if has_background else None
    wanted = split == "test" and task in ("colors", "position", "color_attr", "composition")
    shown = () if wanted else _find_shown_relations(layout)
    while True:
        looks = _draw_looks(rng, task, len(counts))
        nouns = [noun for noun, _ in looks]
        if any(is_held_out_relation(nouns[r.subject], r.kind, nouns[r.reference]) for r in shown):
            continue
        entities = tuple(
            Entity(id=i, noun=noun, count=count, attributes={"color": color} | _drop_unpaintable(noun, style))
            for i, ((noun, color), count, style) in enumerate(zip(looks, counts, styles))
        )
        graph = SceneGraph(entities, relations, background)
        if is_held_out(_reduce_to_task(graph, task) if wanted else graph) == wanted:
            return graph


def _reduce_to_task(graph: SceneGraph, task: str) -> SceneGraph:
    # The part of the graph that a prompt of the task must state: all of a composition.
    if task == "composition":
        return graph
    with_color = task in ("colors", "color_attr")
    entities = tuple(
        Entity(e.id, e.noun, e.count, {"color": e.attributes["color"]} if with_color else {}) for e in graph.entities
    )
    return SceneGraph(entities, graph.relations if task == "position" else ())


def make_prompt_graph(rng: np.random.Generator, graph: SceneGraph, task: str) -> SceneGraph:
    """Make the graph of the prompt for ``graph``, a scene drawn for ``task``, which implies the result.

    Prompts of GenEval's tasks state no more than GenEval's templates. Prompts of compositions state everything, but
    sometimes omit the background and the places, which the plan then decides.
    """
    asked = _reduce_to_task(graph, task)
    if task != "composition":
        return asked
    keep_background, keep_places = rng.random(2) < (0.85, 0.5)
    entities = tuple(
        Entity(e.id, e.noun, e.count, {k: v for k, v in e.attributes.items() if k != "place" or keep_places})
        for e in asked.entities
    )
    return SceneGraph(entities, asked.relations, asked.background if keep_background else None)
