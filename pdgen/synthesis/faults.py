"""Faulty drafts: a scene of shapes world in which one entity is wrong in one respect."""

from collections.abc import Iterator

import msgspec
import numpy as np

from pdgen.shapes.graph import COLORS, SceneError, SceneGraph
from pdgen.shapes.matching import find_violations
from pdgen.shapes.placement import LATTICE, Placement
from pdgen.shapes.world import GRID, SHAPES, Scene, SceneObject, compute_relation_strengths, shows_held_out

# What a faulty draft gets wrong: looks, where it is, how many there are, or that it is there at all.
FAULTS = ("color", "shape", "size", "place", "count", "missing")
MAX_TRIES = 64  # places looked at for one fault
MISPLACED = 0.25  # GenEval's number is at most this where a draft contradicts a relation


def _change_looks(mine: tuple[SceneObject, ...], kind: str, word: str, placement: Placement) -> tuple[SceneObject, ...]:
    # SceneError where an outlined one would have no inside left.
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
    """What might stand in the place of ``mine`` in a draft with that fault, in random order."""
    if kind in ("color", "shape", "size"):
        taken = {(o.shape, o.color) for o in others}
        words = {"color": COLORS, "shape": SHAPES, "size": tuple(placement.widths)}[kind]
        for word in rng.permutation(words).tolist():
            try:
                wrong = _change_looks(mine, kind, word, placement)
            except SceneError:
                continue
            # Alike with another entity, nobody could say which of the two is at fault.
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
    # Whether the draft has this fault, of this entity, no other, and so that it is plain to see.
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
    """The scene as a faulty draft, in which one entity of the graph is wrong in one respect.

    Wrong colours, shapes and sizes are those of all its instances; a wrong place is that of one, and
    contradicts a relation or a place that the graph states; a wrong count is one too many or one missing of
    several. No draft shows what is held out from training.

    Args:
      rng: decides everything; the fault's kind is drawn first, another one where the scene has no room for it or
        each draft would show what is held out. That the entity is missing is always possible.
      scene: satisfies ``graph`` and shows nothing that is held out.
      graph: decides what is a fault: a size or a place that it leaves open cannot be wrong.
      entity: of the graph.
      placement: of the scene, and so of the draft.

    Returns:
      The draft and the fault's word of ``FAULTS``.

    Raises:
      SceneError: the scene has no objects of that entity, does not satisfy the graph or shows what is held out.
    """
    mine, others = scene.objects_of(entity), tuple(o for o in scene.objects if o.entity != entity)
    if not mine or find_violations(scene, graph):
        raise SceneError(f"entity {entity}: not in the scene, or the scene has faults already")
    for kind in rng.permutation(FAULTS).tolist():
        for wrong in _propose_drafts(rng, mine, others, kind, placement):
            try:
                draft = Scene(objects=(*others, *wrong), background=scene.background)
            except SceneError:  # No room for this one.
                continue
            if _is_clear(draft, graph, entity, kind) and not shows_held_out(draft.objects):
                return draft, kind
    raise SceneError(f"entity {entity}: every draft shows what is held out from training")
