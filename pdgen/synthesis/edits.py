"""Edits: one step that draws a picture, and a second step that changes it."""

from collections.abc import Sequence

import numpy as np

from pdgen.shapes.graph import SceneGraph, Step, grow
from pdgen.shapes.matching import find_violations
from pdgen.shapes.world import Scene
from pdgen.synthesis.rewrite import rewrite


def make_edit_steps(rng: np.random.Generator, graph: SceneGraph, operation: str) -> Sequence[Step] | None:
    """Make a step that draws a first picture and one that turns it into ``graph``; None if the graph does not allow it.

    Args:
      rng: the only source of randomness.
      graph: a graph of shapes world without held-out combinations.
      operation: the operation of the second step, one of ``OPERATIONS``.
    """
    whole = Step("add", tuple(e.id for e in graph.entities), graph)
    if operation != "add":
        steps = rewrite(rng, [whole], 1.0, weights={operation: 1.0}, max_images=2)
        return steps if len(steps) == 2 else None
    if len(graph.entities) < 2:
        return None
    steps = grow(rng, graph, len(graph.entities))
    if len(steps) < 2:
        return None
    second = int(rng.integers(1, len(steps)))
    before = steps[second - 1].graph
    return [Step("add", tuple(e.id for e in before.entities), before), steps[second]]


def changes_picture(step: Step, before: Scene, after: Scene) -> bool:
    """Return whether a step changes the picture of the scene before it.

    A layout may show the result of a step already. "Move the star left of the ring" would then ask for nothing. For a
    swap it is enough that the pictures differ, because two things with equal relations may still exchange places.
    """
    if step.operation == "swap":
        return _list_looks(before) != _list_looks(after)
    return bool(find_violations(before, step.graph))


def _list_looks(scene: Scene) -> list[tuple[str | int, ...]]:
    return sorted((o.shape, o.color, o.fill, *o.box) for o in scene.objects)
