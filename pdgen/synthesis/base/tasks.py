"""What the base model learns in shapes world before the process: to draw at once, to read pictures and to edit them.

    text_to_image   a prompt and its picture; mode "single_pass"
    understand      a picture, a question and its answer; mode "understand"
    edit            a picture, an instruction and the changed picture; mode "edit"

Painter and words are exact, so no judge is asked. As everywhere, nothing says or shows what ``held_out`` keeps from
training. Every function of this module makes a sample as those of ``subsets.MAKERS`` do.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from pdgen.sequence.images import encode_png
from pdgen.sequence.modes import Mode
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.shapes import language
from pdgen.shapes.graph import SceneGraph, Step
from pdgen.shapes.world import Scene
from pdgen.synthesis.base.captions import make_caption_graph, write_caption
from pdgen.synthesis.base.questions import make_asker
from pdgen.synthesis.edits import changes_picture, make_edit_steps
from pdgen.synthesis.prompts import PROMPT_TASK, choose, parse_prompt, place_story, refuse_leak, state_places
from pdgen.synthesis.sample import make_prompt_graph, sample_graph
from pdgen.synthesis.settings import DatasetSettings
from pdgen.synthesis.story import Rejected, Story, Teachers
from pdgen.teachers.protocols import Stroke

SCENES = 50  # looked at for one that allows a question or an operation, so that these come in their shares
COMPOSITION = "composition"


def _draw_thing_count(rng: np.random.Generator, shares: Sequence[float]) -> int:
    return 1 + int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))


def _draw_graph(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, shares: Sequence[float]
) -> tuple[str, SceneGraph]:
    """(task, scene) of what a prompt of a file asks for, or of a random composition of so many things."""
    if prompt is not None:
        return PROMPT_TASK, parse_prompt(settings, teachers, prompt)
    return COMPOSITION, sample_graph(rng, COMPOSITION, things=_draw_thing_count(rng, shares))


def _lay_out(rng: np.random.Generator, teachers: Teachers, steps: Sequence[Step]) -> Story:
    return place_story(rng, teachers, Story("", "", steps[-1].graph, tuple(steps), ()))


def _make_step(graph: SceneGraph) -> Step:
    return Step("add", tuple(e.id for e in graph.entities), graph)


def _paint_image(teachers: Teachers, words: str, scene: Scene, given: bool = False) -> Image:
    picture = teachers.painter.paint(Stroke(words, None, scene, 0))
    return Image(stage="given" if given else "sketch", png=encode_png(picture), target=not given)


def _build_record(name: str, source: str, mode: Mode, segments: list[Text | Image], told: dict[str, Any]) -> Record:
    return Record(id=name, source=source, complete=True, segments=segments, scene=told, mode=mode)


def make_text_to_image(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A prompt and its picture. ``scene`` tells task, wording, what is asked for and what is drawn."""
    part = settings.text_to_image
    wording = "prompt" if prompt is not None else choose(rng, part.wordings)
    task = PROMPT_TASK if prompt is not None else choose(rng, settings.tasks) if wording == "prompt" else COMPOSITION
    if task in (PROMPT_TASK, COMPOSITION):
        task, graph = _draw_graph(rng, settings, teachers, prompt, part.things)
    else:
        graph = sample_graph(rng, task)
    story = _lay_out(rng, teachers, [_make_step(graph)])
    if wording == "description":
        story = state_places(rng, story, settings.places)
    (step,), (scene,) = story.steps, story.scenes
    asked, text = step.graph, prompt
    if wording in ("caption", "places"):
        places = wording == "places"
        asked, text = make_caption_graph(scene, places), write_caption(scene, places)
    elif wording == "description":
        text = language.write_description(rng, step.graph)
    elif prompt is None:
        asked = make_prompt_graph(rng, graph, task)
        # Few things are asked for in a few words, as by GenEval, or in whole sentences.
        short = len(asked.entities) <= 2 and rng.random() < 0.5
        text = language.write_prompt(rng, asked, "short" if short else task)
    refuse_leak(settings, text)
    segments = [Text(stage="prompt", text=text, target=False), _paint_image(teachers, text, scene)]
    told = {"task": task, "wording": wording, "prompt_graph": asked, "steps": [step]}
    return functools.partial(
        _build_record, source="text_to_image", mode="single_pass", segments=segments, told=msgspec.to_builtins(told)
    )


def make_understand(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A picture, a question and its answer.

    The record's ``scene`` tells the kind of question as its task, and the scene's graph. Of a check it also tells what
    was said, and whether that is so.
    """
    kind = choose(rng, settings.understand.questions)
    ask = make_asker(rng, kind)
    for _ in range(SCENES):
        _, graph = _draw_graph(rng, settings, teachers, prompt, settings.understand.things)
        (scene,) = _lay_out(rng, teachers, [_make_step(graph)]).scenes
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
    told: dict[str, Any] = {"task": kind, "graph": graph}
    if question.said is not None:
        told |= {"prompt_graph": question.said, "positive": question.right}
    return functools.partial(
        _build_record, source="understand", mode="understand", segments=segments, told=msgspec.to_builtins(told)
    )


def make_edit(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A picture, an instruction and the changed picture; all that the instruction does not concern keeps its pixels.

    What the instruction asks for is not there yet; see ``edits.changes_picture``.

    The record's ``scene`` tells the graph before and the step, with its operation and the graph after.
    """
    operation = choose(rng, settings.edit.operations)
    for _ in range(SCENES):
        task, graph = _draw_graph(rng, settings, teachers, prompt, settings.edit.things)
        steps = make_edit_steps(rng, graph, operation)
        if steps is None:
            continue
        story = state_places(rng, _lay_out(rng, teachers, steps), settings.edit.places)
        (first, second), (before, after) = story.steps, story.scenes
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
    told = {"task": task, "before": first.graph, "steps": [second]}
    return functools.partial(
        _build_record, source="edit", mode="edit", segments=segments, told=msgspec.to_builtins(told)
    )
