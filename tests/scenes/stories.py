"""Random stories for the tests of words: what is asked for, and the steps that draw it."""

from typing import NamedTuple

import numpy as np

from pdgen.scenes.graph import SceneGraph, Step
from pdgen.scenes.grow import grow
from pdgen.scenes.rewrite import rewrite
from pdgen.scenes.sample import TASKS, prompt_graph, sample_graph


class Story(NamedTuple):
    task: str
    asked: SceneGraph
    steps: list[Step]

    def pairs(self):
        """(graph before or None, step) in order."""
        return zip([None, *(s.graph for s in self.steps)], self.steps)


def story(seed: int, task: str | None = None) -> tuple[np.random.Generator, Story]:
    """A story, of each task in turn unless one is named; half of them by other ways than adding."""
    rng = np.random.default_rng((11, seed))
    task = task or TASKS[seed % len(TASKS)]
    graph = sample_graph(rng, task)
    return rng, Story(task, prompt_graph(rng, graph, task), rewrite(rng, grow(rng, graph), share=0.5))
