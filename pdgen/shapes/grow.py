"""Subsampling: a scene graph as a growing sequence of connected subgraphs, the way a picture is drawn."""

import itertools

import numpy as np

from pdgen.shapes.graph import SceneGraph, Step, subgraph

PAIR_RATE = 0.4  # of the places where two entities could be drawn in one step


def _order(rng: np.random.Generator, graph: SceneGraph) -> list[int]:
    # A random order in which an entity related to something drawn comes before one that is not.
    waiting = [e.id for e in graph.entities]
    drawn: list[int] = []
    while waiting:
        ends = {end for r in graph.relations for end in (r.subject, r.reference) if {r.subject, r.reference} & {*drawn}}
        candidates = [e for e in waiting if e in ends] or waiting
        drawn.append(candidates[rng.integers(len(candidates))])
        waiting.remove(drawn[-1])
    return drawn


def _sizes(rng: np.random.Generator, entities: int, max_images: int) -> list[int]:
    # How many entities each step draws: as even as can be, the larger steps anywhere.
    steps = entities - max(int(rng.binomial(entities // 2, PAIR_RATE)), entities - max_images)
    each, left = divmod(entities, steps)
    return [each + int(i < left) for i in rng.permutation(steps)]


def grow(rng: np.random.Generator, graph: SceneGraph, max_images: int = 5) -> list[Step]:
    """Steps that draw the graph: 1 to ``max_images``, all of them "add"; the last one's graph is ``graph``.

    The background is there from the first step. Every step adds an entity, some two, and more where there are
    more than twice ``max_images``; an entity's count is drawn at once. A new entity is related to one that is
    there or comes in the same step, whenever any that is left is. Each step's graph is implied by the next one's
    and keeps the order of ``graph``. For compositions of ``sample_graph`` the mean is 3.5 steps.

    Raises:
      ValueError: the graph has no entity, or ``max_images`` is below 1.
    """
    if not graph.entities or max_images < 1:
        raise ValueError(f"nothing to draw: {len(graph.entities)} entities in at most {max_images} images")
    order = _order(rng, graph)
    ends = list(itertools.accumulate(_sizes(rng, len(order), max_images)))
    steps = [Step("add", tuple(order[a:b]), subgraph(graph, order[:b])) for a, b in zip([0, *ends], ends)]
    return [*steps[:-1], Step("add", steps[-1].entities, graph)]
