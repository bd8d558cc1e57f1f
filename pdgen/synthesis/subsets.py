"""The subsets of training data, sample by sample: the method's three, and what the base model learns before them.

    multi_turn      whole trajectories; some drafts are faulty, inspected and refined
    conflict        plans that contradict the prompt, analysed and rewritten; and plans that are right, if incomplete
    alignment       drafts that do not show what was planned, analysed and refined; and drafts that do
    text_to_image, understand, edit: see ``base_tasks``

No sample of shapes world says or shows, in any text or picture, right or wrong, what ``held_out`` keeps from training.

Attempt a at sample n of a subset is a function of (settings, seed, subset, n, a) alone. An attempt that is rejected is
counted by its reason, and the next one takes its place.
"""

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from pdgen.sequence.trajectory import Record
from pdgen.shapes import language
from pdgen.shapes.graph import Entity, SceneGraph, Step, place_of_all
from pdgen.shapes.matching import differences, renamed
from pdgen.synthesis.base import tasks as base_tasks
from pdgen.synthesis.faults import corrupt
from pdgen.synthesis.prompts import OTHER_WORDS, PROMPT_TASK, make_story, placed
from pdgen.synthesis.rewrite import SHAPES_VOCABULARY, rewrite
from pdgen.synthesis.settings import SUBSETS, Settings, SettingsError
from pdgen.synthesis.story import WRONG_PICTURE, Drawing, Rejected, Story, Teachers

ATTEMPTS = 200  # at one sample; more means that the settings ask for what cannot be made
_COUNT_RATE = 0.2  # of the conflicts that are about numbers
_TRIES = 30  # drafts looked at for one with a wrong number


class Samples(NamedTuple):
    """Records, and how many samples were rejected on the way, by reason."""

    records: list[Record]
    rejected: collections.Counter[str]


def is_positive(settings: Settings, subset: str, number: int) -> bool:
    """Whether a sample is one of the subset's positive ones, which are spread evenly."""
    count, positive = settings.counts(subset)
    return (number + 1) * positive // count > number * positive // count


def multi_turn(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A whole trajectory."""
    story = make_story(rng, settings, teachers, prompt, settings.rewritten)
    drawing = Drawing(story, teachers, rng)
    spare = settings.max_images - len(story.steps)
    faults = []
    for number in range(len(story.steps)):
        wanted = rng.random() < settings.multi_turn.fault_rate
        if wanted and len(faults) < spare and drawing.can_be_corrected(number):
            faults.append(drawing.corrected_step(number))
            drawing.agree(number)
        else:
            drawing.step(number)
    return functools.partial(drawing.record, source="multi_turn", complete=True, note=_note(faults))


def _note(faults: Sequence[str]) -> str:
    return f"wrong {', '.join(faults)}" if faults else ""


def alignment(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A trajectory up to a draft that shows what was planned, or that does not and is refined."""
    story = make_story(rng, settings, teachers, prompt, settings.rewritten)
    drawing = Drawing(story, teachers, rng)
    # A faulty draft takes two pictures.
    stop = int(rng.integers(len(story.steps) if positive else min(len(story.steps), settings.max_images - 1)))
    for number in range(stop):
        drawing.step(number)
    if positive:
        drawing.step(stop)
        return functools.partial(
            drawing.record, source="alignment", complete=stop == len(story.steps) - 1, positive=True
        )
    if not drawing.can_be_corrected(stop):
        raise Rejected("nothing to draw wrong")
    fault = drawing.corrected_step(stop)
    return functools.partial(drawing.record, source="alignment", complete=False, positive=False, note=_note([fault]))


def conflict(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None, positive: bool
) -> Callable[[str], Record]:
    """A trajectory up to a plan that contradicts the prompt, its analysis, the right plan and its picture.

    Positive: up to a plan that is right, if it is not yet all that the prompt asks for.
    """
    if positive:
        return _no_conflict(rng, settings, teachers, prompt)
    story = make_story(rng, settings, teachers, prompt)
    if rng.random() < _COUNT_RATE and teachers.placement:
        found = _wrong_number(rng, teachers, story)
    else:
        found = _wrong_words(rng, settings, teachers, story)
    if found.number + 2 > settings.max_images:
        raise Rejected("too many images")
    drawing = Drawing(found.story, teachers, rng)
    for number in range(found.number):
        drawing.step(number)
    before, previous = found.story.before(found.number), drawing.picture
    drawing.plan(found.wrong, language.plan(rng, before, found.wrong), target=False)
    drawing.expect(False, drawing.judged_plan(), "conflict not seen by the judge")
    drawing.draft(found.wrong_scene, previous, True, WRONG_PICTURE)
    drawing.inspect(language.conflict(rng, story.asked, found.said))
    drawing.plan_step(found.number)
    drawing.sketch(found.story.scenes[found.number], previous, "refine")
    kind = _contradictions(story.asked, found.said)[0]
    return functools.partial(
        drawing.record, source="conflict", complete=False, positive=False, note=f"conflict of {kind}"
    )


def _no_conflict(
    rng: np.random.Generator, settings: Settings, teachers: Teachers, prompt: str | None
) -> Callable[[str], Record]:
    story = make_story(rng, settings, teachers, prompt)
    drawing = Drawing(story, teachers, rng)
    last = len(story.steps) - 1
    stop = int(rng.integers(max(last, 1)))  # incomplete, where there is more than one step
    for number in range(stop + 1):
        drawing.step(number)
        drawing.expect(True, drawing.judged_plan(), "plan rejected by the judge")
    return functools.partial(drawing.record, source="conflict", complete=stop == last, positive=True)


class _Found(NamedTuple):
    """A step that could have been planned wrongly.

    ``story`` ends in the right step ``number``; ``wrong`` stands in its place, and ``said`` is its graph with the
    ids of the prompt's.
    """

    story: Story
    number: int
    wrong: Step
    wrong_scene: object
    said: SceneGraph


def _contradictions(asked: SceneGraph, said: SceneGraph) -> list[str]:
    return [d.kind for d in differences(asked, said) if d.said is not None]


def _wrong_words(rng: np.random.Generator, settings: Settings, teachers: Teachers, story: Story) -> _Found:
    """What a rewritten story draws first and puts right later is a wrong plan, if it contradicts the prompt."""
    vocabulary = OTHER_WORDS if story.task == PROMPT_TASK else SHAPES_VOCABULARY
    steps = rewrite(rng, story.steps, 1.0, vocabulary, max_images=settings.max_images)
    right = next((n for n, step in enumerate(steps) if step.operation != "add"), None)
    if right is None:
        raise Rejected("no conflict found")
    first, second = steps[right - 1 : right + 1]
    new_ids = {second.entities[0]: second.entities[1]} if second.operation == "replace" else {}
    said = renamed(first.graph, {e.id: new_ids.get(e.id, e.id) for e in first.graph.entities})
    entities = tuple(new_ids.get(e, e) for e in first.entities)
    entities = tuple(e for e in entities if any(e == there.id for there in second.graph.entities))
    # Nothing that earlier steps drew may be wrong, or it would have to change now.
    concerned = {e.id for e in first.graph.entities if e.id in second.entities}
    others = [*(step.graph for step in steps[: right - 1]), second.graph]
    if not entities or not concerned <= {*first.entities} or not _contradictions(story.asked, said):
        raise Rejected("no conflict found")
    if any(_contradictions(story.asked, graph) for graph in others):
        raise Rejected("no conflict found")
    way = Story(story.task, story.prompt, story.asked, tuple(steps[: right + 1]), ())
    scenes = placed(rng, teachers, way).scenes
    corrected = (*steps[: right - 1], Step("add", entities, second.graph))
    story = Story(story.task, story.prompt, story.asked, corrected, (*scenes[: right - 1], scenes[right]))
    return _Found(story, right - 1, first, scenes[right - 1], said)


def _wrong_number(rng: np.random.Generator, teachers: Teachers, story: Story) -> _Found:
    """One too many, or one missing of several."""
    number = int(rng.integers(len(story.steps)))
    step, scene = story.steps[number], story.scenes[number]
    entity = step.entities[int(rng.integers(len(step.entities)))]
    for _ in range(_TRIES):
        draft, kind = corrupt(rng, scene, step.graph, entity, teachers.placement)
        if kind == "count":
            break
    else:
        raise Rejected("no conflict found")
    drawn = draft.of(entity)
    right = step.graph.find(entity)
    stated = {"place": place_of_all(o.place for o in drawn)} if right.places else {}
    wrong = Entity(entity, right.noun, len(drawn), right.attributes | stated)
    entities = tuple(wrong if e.id == entity else e for e in step.graph.entities)
    graph = SceneGraph(entities, step.graph.relations, step.graph.background)
    return _Found(story, number, Step("add", step.entities, graph), draft, graph)


MAKERS = {
    "multi_turn": multi_turn,
    "conflict": conflict,
    "alignment": alignment,
    "text_to_image": base_tasks.text_to_image,
    "understand": base_tasks.understand,
    "edit": base_tasks.edit,
}


def _prompt(rng: np.random.Generator, prompts: Sequence[str], turn: int, attempt: int) -> str:
    if attempt and turn >= len(prompts):
        return prompts[int(rng.integers(len(prompts)))]
    return prompts[turn % len(prompts)]


def make_sample(
    settings: Settings, teachers: Teachers, subset: str, number: int, prompts: Sequence[str] = ()
) -> tuple[Record, collections.Counter[str]]:
    """Sample ``number`` of a subset, and its rejected attempts by reason.

    Args:
      prompts: of a file; the first attempts take them in turn, later ones the unused ones and then any.

    Raises:
      SettingsError: ``ATTEMPTS`` attempts were rejected.
    """
    rejected: collections.Counter[str] = collections.Counter()
    count, _ = settings.counts(subset)
    positive = is_positive(settings, subset, number)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((settings.seed, SUBSETS.index(subset), number, attempt))
        prompt = _prompt(rng, prompts, number + attempt * count, attempt) if prompts else None
        try:
            finish = MAKERS[subset](rng, settings, teachers, prompt, positive)
        except Rejected as fault:
            rejected[fault.reason] += 1
            continue
        return finish(f"{subset}-{settings.seed}-{number:06d}"), rejected
    reasons = ", ".join(f"{reason} {times}" for reason, times in rejected.most_common())
    raise SettingsError(f"{subset}: sample {number}: {ATTEMPTS} attempts were rejected ({reasons})")


def make_samples(
    settings: Settings, teachers: Teachers, subset: str, numbers: range, prompts: Sequence[str] = (), threads: int = 1
) -> Samples:
    """Those samples of a subset, in order; ``threads`` at a time, for teachers that are waited for."""
    teachers = dataclasses.replace(teachers, stop=threading.Event())
    make = functools.partial(make_sample, settings, teachers, subset, prompts=prompts)
    if threads == 1:
        made = [make(number) for number in numbers]
    else:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(make, number) for number in numbers]
            try:
                done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
                made = [future.result() for future in (done if waiting else futures)]
            except BaseException:  # of a sample, or the signal to leave: what is asked already is still waited for
                teachers.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    total: collections.Counter[str] = collections.Counter()
    for _, rejected in made:
        total.update(rejected)
    return Samples([record for record, _ in made], total)
