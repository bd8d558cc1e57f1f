"""Edits: one step that draws a picture, and a second step that changes it."""

from collections.abc import Sequence

import numpy as np

from pdgen.shapes.graph import SceneGraph, Step, grow
from pdgen.shapes.matching import find_violations
from pdgen.shapes.world import Scene
from pdgen.synthesis.rewrite import rewrite


def make_first_step(graph: SceneGraph) -> Step:
    """Make the step that draws a whole graph. Raises SceneError if it has no entities."""
    return Step("add", tuple(e.id for e in graph.entities), graph)


def make_edit_steps(rng: np.random.Generator, graph: SceneGraph, operation: str) -> Sequence[Step] | None:
    """Make a step that draws a first picture and one that turns it into ``graph``; None if the graph does not allow it.

    ``graph`` has no held-out combination, ``operation`` is that of the second step, one of ``OPERATIONS``.
    """
    if operation != "add":
        steps = rewrite(rng, [make_first_step(graph)], 1.0, weights={operation: 1.0}, max_images=2)
        return steps if len(steps) == 2 else None
    if len(graph.entities) < 2:
        return None
    steps = grow(rng, graph, len(graph.entities))
    if len(steps) < 2:
        return None
    second = int(rng.integers(1, len(steps)))
    return [make_first_step(steps[second - 1].graph), steps[second]]


def changes_picture(step: Step, before: Scene, after: Scene) -> bool:
    """Return whether a step changes the picture of the scene before it.

    A layout may show the result of a step already. "Move the star left of the ring" would then ask for nothing. For a
    swap it is enough that the pictures differ, because two things with equal relations may still exchange places.
    """
    if step.operation == "swap":
        was, now = (sorted((o.shape, o.color, o.fill, *o.box) for o in scene.objects) for scene in (before, after))
        return was != now
    return bool(find_violations(before, step.graph))
