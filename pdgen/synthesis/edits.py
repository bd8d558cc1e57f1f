"""Edits: two steps, of which the second changes a picture that is there, and their scenes."""

from collections.abc import Sequence

import numpy as np

from pdgen.shapes.graph import SceneGraph, Step, grow
from pdgen.shapes.matching import find_violations
from pdgen.shapes.world import Scene
from pdgen.synthesis.rewrite import rewrite


def make_edit_steps(rng: np.random.Generator, graph: SceneGraph, operation: str) -> Sequence[Step] | None:
    """A step that draws a first picture, and one that makes ``graph`` of it; None where the graph allows none such.

    Args:
      graph: of shapes world; it and what stands there first say nothing that is held out.
      operation: of the second step, one of ``OPERATIONS``.
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
    """Whether the step has something to do in a picture of the scene before it.

    A layout may happen to show what a step is to bring about. "Move the star left of the ring" would then ask for
    nothing, and a changed picture would be no better an answer than the same one. Exchanged places need only be seen:
    two things of which the graph says the same may still change places.
    """
    if step.operation == "swap":
        return _list_looks(before) != _list_looks(after)
    return bool(find_violations(before, step.graph))


def _list_looks(scene: Scene) -> list[tuple[str | int, ...]]:
    return sorted((o.shape, o.color, o.fill, *o.box) for o in scene.objects)
