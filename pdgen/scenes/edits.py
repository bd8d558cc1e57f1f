"""Edits: two steps, of which the second changes a picture that is there."""

from collections.abc import Sequence

import numpy as np

from pdgen.scenes.graph import SceneGraph, Step
from pdgen.scenes.grow import grow
from pdgen.scenes.rewrite import rewrite


def edit_steps(rng: np.random.Generator, graph: SceneGraph, operation: str) -> Sequence[Step] | None:
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
