"""Stories for samples: a prompt, its graph, and the steps and scenes that lead to it.

Prompts are written from random scenes or read from a file. None is a prompt of GenEval unless the settings allow it,
and no scene of shapes world contains a held-out combination (``shapes.held_out``).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from pdgen.shapes import language
from pdgen.shapes.graph import COLORS, SceneError, SceneGraph, grow, join_places
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.matching import find_differences
from pdgen.shapes.world import Scene, place_scenes
from pdgen.synthesis.leaks import find_leak
from pdgen.synthesis.rewrite import SHAPES_VOCABULARY, Vocabulary, rewrite
from pdgen.synthesis.sample import ENTITY_RATES, make_prompt_graph, sample_graph
from pdgen.synthesis.settings import DatasetSettings
from pdgen.synthesis.story import HELD_OUT, Rejected, Story, Teachers
from pdgen.teachers.protocols import Declined

Key = TypeVar("Key")
PROMPT_TASK = "prompt"  # the task of samples whose prompts come from a file
OTHER_WORDS = Vocabulary(attributes={"color": COLORS, "size": ("small", "large")})


def _choose_prompt(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None
) -> tuple[str, str, SceneGraph, SceneGraph]:
    """Return the task, the prompt, its graph and the graph of the whole scene."""
    if prompt is not None:
        graph = parse_prompt(settings, teachers, prompt)
        return PROMPT_TASK, prompt, graph, graph
    task = choose(rng, settings.tasks)
    rates = ENTITY_RATES
    if settings.entities:
        rates = {n: share / sum(settings.entities) for n, share in enumerate(settings.entities, 1)}
    graph = sample_graph(rng, task, entity_rates=rates)
    asked = make_prompt_graph(rng, graph, task)
    # Prompts for one or two entities are as short as GenEval's.
    text = language.write_prompt(rng, asked, task if len(asked.entities) > 2 else "short")
    refuse_leak(settings, text)
    return task, text, asked, graph


def choose(rng: np.random.Generator, shares: Mapping[Key, float]) -> Key:
    """Draw one of the keys with probabilities proportional to their shares."""
    keys, weights = zip(*shares.items())
    return keys[rng.choice(len(keys), p=np.array(weights) / sum(weights))]


def parse_prompt(settings: DatasetSettings, teachers: Teachers, prompt: str) -> SceneGraph:
    """Parse a prompt from a file. Raises Rejected if it is a benchmark prompt or the writer declines."""
    refuse_leak(settings, prompt)  # first, because a remote writer costs money
    try:
        return teachers.writer.parse(prompt)
    except Declined:
        raise Rejected("prompt not understood") from None


def refuse_leak(settings: DatasetSettings, prompt: str) -> None:
    """Raise Rejected for a benchmark prompt, unless the settings allow it."""
    if not settings.allow_leaks and find_leak(prompt):
        raise Rejected("benchmark prompt")


def make_story(
    rng: np.random.Generator,
    settings: DatasetSettings,
    teachers: Teachers,
    prompt: str | None = None,
    rewritten: float = 0.0,
) -> Story:
    """Make a story from a prompt of a file, or from a random scene. Raises Rejected.

    Only the last step shows exactly what the prompt asks for.
    """
    task, text, asked, graph = _choose_prompt(rng, settings, teachers, prompt)
    vocabulary = SHAPES_VOCABULARY if prompt is None else OTHER_WORDS
    grown = grow(rng, graph, settings.max_images)
    steps = rewrite(rng, grown, rewritten, vocabulary, max_images=settings.max_images)
    if not all(find_differences(asked, step.graph) for step in steps[:-1]):
        steps = grown  # a detour around something that nobody asks for would continue after a complete picture
    story = place_story(rng, teachers, Story(task, text, asked, tuple(steps)))
    return state_places(rng, story, settings.places) if settings.places and teachers.placement else story


def state_places(rng: np.random.Generator, story: Story, rate: float) -> Story:
    """State the places of entities in the steps of a story as its scenes show them, so that plans include them.

    Each entity that is added and never changed is selected with probability ``rate``.
    """
    changed = {i for step in story.steps if step.operation != "add" for i in step.entities}
    last = story.scenes[-1]
    assert last is not None  # only shapes world states places
    candidates = [e.id for e in story.steps[-1].graph.entities if e.id not in changed]
    selected = [i for i, draw in zip(candidates, rng.random(len(candidates))) if draw < rate]
    places = {i: join_places(o.place for o in last.objects_of(i)) for i in selected}

    def add_places(graph: SceneGraph) -> SceneGraph:
        entities = (
            msgspec.structs.replace(e, attributes=e.attributes | {"place": places[e.id]}) if e.id in places else e
            for e in graph.entities
        )
        return msgspec.structs.replace(graph, entities=tuple(entities))

    steps = tuple(msgspec.structs.replace(step, graph=add_places(step.graph)) for step in story.steps)
    return dataclasses.replace(story, steps=steps)


def place_story(rng: np.random.Generator, teachers: Teachers, story: Story) -> Story:
    """Place the scenes of a story if the painter needs them. Raises Rejected, also for held-out combinations."""
    scenes: Sequence[Scene | None] | None = [None] * len(story.steps)
    if teachers.placement:
        if any(map(is_held_out, (story.asked, *(step.graph for step in story.steps)))):
            raise Rejected(HELD_OUT)
        try:
            scenes = place_scenes(rng, story.steps, teachers.placement)
        except SceneError:
            raise Rejected("not a scene of shapes world") from None
        if scenes is None:
            raise Rejected("no layout found")
    return dataclasses.replace(story, scenes=tuple(scenes))
