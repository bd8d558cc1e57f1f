"""Faulty drafts: a scene of shapes world in which one entity is wrong in one respect."""

from collections.abc import Iterator

import msgspec
import numpy as np

from pdgen.shapes.graph import COLORS, SceneError, SceneGraph
from pdgen.shapes.matching import find_violations
from pdgen.shapes.placement import LATTICE, Placement
from pdgen.shapes.world import GRID, SHAPES, Scene, SceneObject, compute_relation_strengths, shows_held_out

# The faults of a draft. Random numbers depend on their order.
FAULTS = ("color", "shape", "size", "place", "count", "missing")
MAX_TRIES = 64  # places tried for one fault
MISPLACED = 0.25  # maximum strength of a relation that a draft contradicts


def _change_looks(mine: tuple[SceneObject, ...], kind: str, word: str, placement: Placement) -> tuple[SceneObject, ...]:
    # Raises SceneError if the new shape or size cannot be outlined.
    if kind != "size":
        return tuple(msgspec.structs.replace(o, **{kind: word}) for o in mine)
    width = placement.widths[word][0]
    corners = [[placement.resize_corner(v, o.size, width) for v in (o.x, o.y)] for o in mine]
    return tuple(msgspec.structs.replace(o, size=width, x=x, y=y) for o, (x, y) in zip(mine, corners))


def _propose_drafts(
    rng: np.random.Generator,
    mine: tuple[SceneObject, ...],
    others: tuple[SceneObject, ...],
    kind: str,
    placement: Placement,
) -> Iterator[tuple[SceneObject, ...]]:
    """Yield replacements of ``mine`` with this fault, in random order."""
    if kind in ("color", "shape", "size"):
        taken = {(o.shape, o.color) for o in others}
        words = {"color": COLORS, "shape": SHAPES, "size": tuple(placement.widths)}[kind]
        for word in rng.permutation(words).tolist():
            try:
                wrong = _change_looks(mine, kind, word, placement)
            except SceneError:
                continue
            # If it looked like another entity, the fault could be attributed to either.
            if kind == "size" or (wrong[0].shape, wrong[0].color) not in taken:
                yield wrong
    elif kind == "missing":
        yield ()
    elif kind == "count" and len(mine) > 1 and rng.random() < 0.5:
        yield mine[:-1]
    else:
        last, rest = mine[-1], mine[:-1]
        if kind == "count":
            rest, last = mine, msgspec.structs.replace(last, id=1 + max(o.id for o in mine + others))
        room = (GRID - last.size) // placement.spacing + 1
        for corner in rng.permutation(room * room)[:MAX_TRIES].tolist():
            y, x = (placement.spacing * v for v in divmod(corner, room))
            yield (*rest, msgspec.structs.replace(last, x=x, y=y))


def _is_clear(draft: Scene, graph: SceneGraph, entity: int, kind: str) -> bool:
    # Whether the draft has this fault of this entity and no other, and clearly enough to see.
    found = find_violations(draft, graph)
    if kind == "place":
        related = {
            (r.kind, a, b)
            for r in graph.relations
            for a in draft.objects_of(r.subject)
            for b in draft.objects_of(r.reference)
        }
        strengths = (compute_relation_strengths(a, b)[word] for word, a, b in related)
        if any(MISPLACED < strength <= 0.5 for strength in strengths):
            return False
    return bool(found) and all(v.kind == kind and entity in v.entities for v in found)


def corrupt(
    rng: np.random.Generator, scene: Scene, graph: SceneGraph, entity: int, placement: Placement = LATTICE
) -> tuple[Scene, str]:
    """Make a faulty draft of a scene, in which one entity of the graph has one fault.

    A wrong colour, shape or size affects all instances of the entity. A wrong place affects one instance and
    contradicts a stated relation or place. A wrong count is one too many, or one missing of several. No draft shows a
    held-out combination.

    Args:
      rng: the only source of randomness. The kind of fault is drawn first. If the scene has no room for it, or every
        draft would show a held-out combination, the next kind is tried. "missing" is always possible.
      scene: a scene that satisfies ``graph`` and shows no held-out combination.
      graph: the graph; a size or place that it leaves open cannot be wrong.
      entity: id of the entity.
      placement: the placement of the scene and the draft.

    Returns:
      The draft and a word of ``FAULTS``.

    Raises:
      SceneError: the scene has no objects of the entity, does not satisfy the graph or shows a held-out combination.
    """
    mine, others = scene.objects_of(entity), tuple(o for o in scene.objects if o.entity != entity)
    if not mine or find_violations(scene, graph):
        raise SceneError(f"entity {entity}: not in the scene, or the scene has faults already")
    for kind in rng.permutation(FAULTS).tolist():
        for wrong in _propose_drafts(rng, mine, others, kind, placement):
            try:
                draft = Scene(objects=(*others, *wrong), background=scene.background)
            except SceneError:  # no room
                continue
            if _is_clear(draft, graph, entity, kind) and not shows_held_out(draft.objects):
                return draft, kind
    raise SceneError(f"entity {entity}: every draft shows what is held out from training")
