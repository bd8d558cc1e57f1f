"""The subsets of the base model in shapes world: drawing in one step, understanding pictures and editing them.

    text_to_image   a prompt and its picture; mode "single_pass", or with a thought between them "think"
    understand      a picture, a question and its answer; mode "understand"
    edit            a picture, an instruction and the changed picture; mode "edit"

Painter and texts are exact, so no judge is needed. No sample contains a held-out combination. The public functions of
this module are entries of ``subsets.MAKERS``.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pdgen.sequence.images import encode_png
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.shapes import language
from pdgen.shapes.graph import SceneGraph, Step, drop_implied
from pdgen.shapes.world import Scene
from pdgen.synthesis.base.captions import make_caption_graph, write_caption
from pdgen.synthesis.base.questions import make_asker
from pdgen.synthesis.edits import changes_picture, make_edit_steps, make_first_step
from pdgen.synthesis.prompts import PROMPT_TASK, choose, parse_prompt, place_story, refuse_leak, state_places
from pdgen.synthesis.sample import make_prompt_graph, sample_graph
from pdgen.synthesis.settings import DatasetSettings
from pdgen.synthesis.story import Rejected, Story, Teachers
from pdgen.teachers.protocols import Stroke

SCENES = 50  # scenes tried to find one that allows the drawn question or operation
COMPOSITION = "composition"


def _draw_graph(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, shares: Sequence[float]
) -> tuple[str, SceneGraph]:
    """Return task and graph of a prompt from a file, or of a random composition whose number of things is drawn."""
    if prompt is not None:
        return PROMPT_TASK, parse_prompt(settings, teachers, prompt)
    return COMPOSITION, sample_graph(rng, COMPOSITION, things=choose(rng, dict(enumerate(shares, 1))))


def _lay_out(rng: np.random.Generator, teachers: Teachers, steps: Sequence[Step]) -> Story:
    return place_story(rng, teachers, Story("", "", steps[-1].graph, tuple(steps)))


def _get_scenes(story: Story) -> list[Scene]:
    # These subsets exist only in shapes world, where every step has a scene.
    return [scene for scene in story.scenes if scene is not None]


def _paint_image(teachers: Teachers, words: str, scene: Scene, given: bool = False) -> Image:
    picture = teachers.painter.paint(Stroke(words, None, scene, 0))
    return Image(stage="given" if given else "sketch", png=encode_png(picture), target=not given)


def _build_record(source: str, mode: Mode, segments: list[Text | Image], facts: dict[str, Any]) -> Record:
    return Record(id="", source=source, complete=True, segments=segments, scene=msgspec.to_builtins(facts), mode=mode)


def make_text_to_image(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a prompt and its picture, with a thought between them if one is drawn.

    The thought is a description as plans have it. The record's ``scene`` holds task, wording, the prompt's graph and
    the step.
    """
    part = settings.text_to_image
    wording = "prompt" if prompt is not None else choose(rng, part.wordings)
    task = PROMPT_TASK if prompt is not None else choose(rng, settings.tasks) if wording == "prompt" else COMPOSITION
    if task in (PROMPT_TASK, COMPOSITION):
        task, graph = _draw_graph(rng, settings, teachers, prompt, part.things)
    else:
        graph = sample_graph(rng, task)
    thinks = wording == "prompt" and rng.random() < part.thoughts
    story = _lay_out(rng, teachers, [make_first_step(graph)])
    if thinks or wording == "description":
        story = state_places(rng, story, settings.places)
    (step,), (scene,) = story.steps, _get_scenes(story)
    asked = step.graph
    if wording in ("caption", "places"):
        places = wording == "places"
        asked, text = make_caption_graph(scene, places), write_caption(scene, places)
    elif wording == "description":
        asked, text = drop_implied(step.graph), language.write_description(rng, step.graph)
    elif prompt is None:
        asked = make_prompt_graph(rng, graph, task)
        # Prompts for one or two entities are short, as GenEval's, or whole sentences.
        short = len(asked.entities) <= 2 and rng.random() < 0.5
        text = language.write_prompt(rng, asked, "short" if short else task)
    else:
        text = prompt
    refuse_leak(settings, text)
    segments: list[Text | Image] = [Text(stage="prompt", text=text, target=False)]
    if thinks:
        segments.append(Text(stage="thought", text=language.write_description(rng, step.graph), target=True))
    segments.append(_paint_image(teachers, text, scene))
    facts = {"task": task, "wording": wording, "prompt_graph": asked, "steps": [step]}
    mode: Mode = "think" if thinks else "single_pass"
    return _build_record("text_to_image", mode, segments, facts)


def make_understand(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a picture, a question and its answer.

    The record's ``scene`` holds the kind of question as its task and the graph of the scene. For a check it also holds
    the graph of the description and whether it is right.
    """
    kind = choose(rng, settings.understand.questions)
    ask = make_asker(rng, kind)
    for _ in range(SCENES):
        _, graph = _draw_graph(rng, settings, teachers, prompt, settings.understand.things)
        (scene,) = _get_scenes(_lay_out(rng, teachers, [make_first_step(graph)]))
        question = ask(scene)
        if question is not None:
            break
    else:
        raise Rejected("no such question")
    segments = [
        _paint_image(teachers, "", scene, given=True),
        Text(stage="prompt", text=question.text, target=False),
        Text(stage="answer", text=question.answer, target=True),
    ]
    facts: dict[str, Any] = {"task": kind, "graph": graph}
    if question.said is not None:
        facts |= {"prompt_graph": question.said, "positive": question.right}
    return _build_record("understand", "understand", segments, facts)


def make_edit(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a picture, an instruction and the changed picture. Everything else keeps its pixels.

    The first picture does not show the result already; see ``edits.changes_picture``. The record's ``scene`` holds the
    graph before and the step with its operation and the graph after.
    """
    operation = choose(rng, settings.edit.operations)
    for _ in range(SCENES):
        task, graph = _draw_graph(rng, settings, teachers, prompt, settings.edit.things)
        steps = make_edit_steps(rng, graph, operation)
        if steps is None:
            continue
        story = state_places(rng, _lay_out(rng, teachers, steps), settings.edit.places)
        (first, second), (before, after) = story.steps, _get_scenes(story)
        if changes_picture(second, before, after):
            break
    else:
        raise Rejected("no such edit")
    text = language.write_step_instruction(rng, first.graph, second)
    segments = [
        _paint_image(teachers, "", before, given=True),
        Text(stage="prompt", text=text, target=False),
        _paint_image(teachers, text, after),
    ]
    facts = {"task": task, "before": first.graph, "steps": [second]}
    return _build_record("edit", "edit", segments, facts)
