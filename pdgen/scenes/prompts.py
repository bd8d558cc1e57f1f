"""What samples begin with: a prompt, what it asks for and the scenes that lead there.

Prompts are made of random scenes or come from a file. None is one of GenEval's, unless the settings allow that, and
no scene of shapes world says or shows what ``held_out`` keeps from training.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pdgen.scenes import language
from pdgen.scenes.differences import differences
from pdgen.scenes.graph import COLORS, SceneError, SceneGraph, place_of_all
from pdgen.scenes.grow import grow
from pdgen.scenes.held_out import held_out
from pdgen.scenes.leaks import leak
from pdgen.scenes.rewrite import SHAPES_VOCABULARY, Vocabulary, rewrite
from pdgen.scenes.sample import ENTITY_RATES, prompt_graph, sample_graph
from pdgen.scenes.settings import Settings, SettingsError
from pdgen.scenes.story import HELD_OUT, Rejected, Story, Teachers
from pdgen.scenes.teachers import Declined
from pdgen.scenes.world import place

PROMPT_TASK = "prompt"  # of samples whose prompts come from a file
OTHER_WORDS = Vocabulary(attributes={"color": COLORS, "size": ("small", "large")})


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file, one a line; empty lines are none.

    Raises:
      SettingsError: the file cannot be read or has no prompt.
    """
    try:
        with open(path, encoding="utf-8") as file:
            prompts = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError(f"teachers.prompts: {path}: {fault}") from None
    if not prompts:
        raise SettingsError(f"teachers.prompts: {path}: holds no prompt")
    return prompts


def _asked(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None
) -> tuple[str, str, SceneGraph, SceneGraph]:
    """(task, prompt, what it asks for, the whole scene)."""
    if prompt is not None:
        graph = understood(settings, teachers, prompt)
        return PROMPT_TASK, prompt, graph, graph
    task = chosen(rng, settings.tasks)
    rates = ENTITY_RATES
    if settings.entities:
        rates = {n: share / sum(settings.entities) for n, share in enumerate(settings.entities, 1)}
    graph = sample_graph(rng, task, entity_rates=rates)
    asked = prompt_graph(rng, graph, task)
    # Of one or two things a prompt is as short as GenEval's.
    text = language.prompt(rng, asked, task if len(asked.entities) > 2 else "short")
    refuse_leak(settings, text)
    return task, text, asked, graph


def chosen(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    """One of the keys, drawn by their shares, which are divided by their sum."""
    keys, weights = zip(*shares.items())
    return keys[rng.choice(len(keys), p=np.array(weights) / sum(weights))]


def understood(settings: Settings, teachers: Teachers, prompt: str) -> SceneGraph:
    """What a prompt of a file asks for. Raises Rejected of a benchmark's prompt, and where the writer declines."""
    refuse_leak(settings, prompt)  # before a writer is paid for reading it
    try:
        return teachers.writer.parse(prompt)
    except Declined:
        raise Rejected("prompt not understood") from None


def refuse_leak(settings: Settings, prompt: str) -> None:
    """Raises Rejected of a benchmark's prompt, unless the settings allow it."""
    if not settings.allow_leaks and leak(prompt):
        raise Rejected("benchmark prompt")


def make_story(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None = None, rewritten: float = 0.0
) -> Story:
    """A story from a prompt of a file, or from a random scene. Raises Rejected.

    Only the last step shows all that the prompt asks for and nothing else.
    """
    task, text, asked, graph = _asked(rng, settings, teachers, prompt)
    vocabulary = SHAPES_VOCABULARY if prompt is None else OTHER_WORDS
    grown = grow(rng, graph, settings.max_images)
    steps = rewrite(rng, grown, rewritten, vocabulary, max_images=settings.max_images)
    if not all(differences(asked, step.graph) for step in steps[:-1]):
        steps = grown  # a way round what nobody asks for would continue after a picture that is complete
    story = placed(rng, teachers, Story(task, text, asked, tuple(steps), ()))
    return stating_places(rng, story, settings.places) if settings.places and teachers.placement else story


def stating_places(rng: np.random.Generator, story: Story, rate: float) -> Story:
    """The story whose steps also say where things are, as its scenes have them: plans decide what prompts leave open.

    Args:
      rate: probability for every entity that is added and never changed.
    """
    changed = {i for step in story.steps if step.operation != "add" for i in step.entities}
    last = story.scenes[-1]
    kept = [e.id for e in story.steps[-1].graph.entities if e.id not in changed]
    draws = zip(kept, rng.random(len(kept)))
    places = {i: place_of_all(o.place for o in last.of(i)) for i, draw in draws if draw < rate}

    def stated(graph: SceneGraph) -> SceneGraph:
        entities = (
            msgspec.structs.replace(e, attributes=e.attributes | {"place": places[e.id]}) if e.id in places else e
            for e in graph.entities
        )
        return msgspec.structs.replace(graph, entities=tuple(entities))

    steps = tuple(msgspec.structs.replace(step, graph=stated(step.graph)) for step in story.steps)
    return dataclasses.replace(story, steps=steps)


def placed(rng: np.random.Generator, teachers: Teachers, story: Story) -> Story:
    """The story with its scenes laid out, if the painter draws such. Raises Rejected, also of what is held out."""
    scenes: Sequence = [None] * len(story.steps)
    if teachers.placement:
        if any(map(held_out, (story.asked, *(step.graph for step in story.steps)))):
            raise Rejected(HELD_OUT)
        try:
            scenes = place(rng, story.steps, teachers.placement)
        except SceneError:
            raise Rejected("not a scene of shapes world") from None
        if scenes is None:
            raise Rejected("no layout found")
    return Story(story.task, story.prompt, story.asked, story.steps, tuple(scenes))
