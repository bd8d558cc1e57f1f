"""Common subjects of tests of scenes: random stories, the steps that draw them, and hand-made objects."""

from typing import NamedTuple

import numpy as np

from pdgen.shapes.graph import Entity, Relation, SceneGraph, Step, grow
from pdgen.shapes.world import SceneObject
from pdgen.synthesis.rewrite import rewrite
from pdgen.synthesis.sample import TASKS, make_prompt_graph, sample_graph


class Story(NamedTuple):
    task: str
    asked: SceneGraph
    steps: list[Step]

    def pairs(self):
        """(graph before or None, step) in order."""
        return zip([None, *(s.graph for s in self.steps)], self.steps)


def story(seed: int, task: str | None = None) -> tuple[np.random.Generator, Story]:
    """Make a story, of each task in turn unless one is named; half of them use other operations than adding."""
    rng = np.random.default_rng((11, seed))
    task = task or TASKS[seed % len(TASKS)]
    graph = sample_graph(rng, task)
    return rng, Story(task, make_prompt_graph(rng, graph, task), rewrite(rng, grow(rng, graph), share=0.5))


def thing(object_id=0, x=3, y=11, size=10, color="red", shape="circle", entity=None, fill="solid"):
    return SceneObject(object_id, object_id if entity is None else entity, shape, color, size, x, y, fill)


def entity(number, noun="circle", count=1, color="red", **attributes):
    return Entity(number, noun, count, {"color": color, **attributes})


def graph(*entities, relations=(), background=None):
    return SceneGraph(entities, tuple(Relation(*r) for r in relations), background)
