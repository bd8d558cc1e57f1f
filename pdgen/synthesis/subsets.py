"""The subsets of training data, sample by sample: the method's three, and those of the base model.

    multi_turn      whole trajectories; some drafts are faulty, inspected and refined
    conflict        plans that contradict the prompt, analysed and rewritten; and plans that are right but incomplete
    alignment       drafts that do not show what was planned, analysed and refined; and drafts that do
    text_to_image, understand, edit: see ``base.tasks``

No text or picture of a sample of shapes world contains a held-out combination (``shapes.held_out``).

Attempt a at sample n of a subset depends only on (settings, seed, subset, n, a). Rejected attempts are counted by
reason and followed by the next attempt.
"""

import collections
import dataclasses
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import msgspec
import numpy as np

from pdgen.sequence.trajectory import Record
from pdgen.shapes import inspections, language
from pdgen.shapes.graph import Entity, SceneGraph, Step, join_places
from pdgen.shapes.matching import find_differences, renumber
from pdgen.shapes.world import Scene
from pdgen.synthesis.base import tasks as base_tasks
from pdgen.synthesis.faults import corrupt
from pdgen.synthesis.prompts import OTHER_WORDS, PROMPT_TASK, make_story, place_story
from pdgen.synthesis.rewrite import SHAPES_VOCABULARY, rewrite
from pdgen.synthesis.settings import SUBSETS, DatasetSettings, SettingsError
from pdgen.synthesis.story import WRONG_PICTURE, RecordBuilder, Rejected, Story, Teachers

ATTEMPTS = 200  # maximum attempts at a sample; beyond it the settings are probably impossible
_COUNT_RATE = 0.2  # share of the conflicts that are about numbers
_TRIES = 30  # maximum drafts made to find one with a wrong number


class Samples(NamedTuple):
    """Records, and the number of rejected samples by reason."""

    records: list[Record]
    rejected: collections.Counter[str]


def is_positive(settings: DatasetSettings, subset: str, number: int) -> bool:
    """Return whether a sample is positive. Positive samples are spread evenly over the subset."""
    count, positive = settings.count_samples(subset)
    return (number + 1) * positive // count > number * positive // count


def make_multi_turn(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a whole trajectory."""
    story = make_story(rng, settings, teachers, prompt, settings.rewritten)
    builder = RecordBuilder(story, teachers, rng)
    spare = settings.max_images - len(story.steps)
    faults = []
    for number in range(len(story.steps)):
        wanted = rng.random() < settings.multi_turn.fault_rate
        if wanted and len(faults) < spare and builder.can_be_faulty(number):
            faults.append(builder.add_corrected_turn(number))
            builder.add_agreement(number)
        else:
            builder.add_turn(number)
    return builder.build_record("multi_turn", complete=True, note=f"wrong {', '.join(faults)}" if faults else "")


def make_alignment(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a trajectory up to a draft that matches its plan, or up to one that does not and its refinement."""
    story = make_story(rng, settings, teachers, prompt, settings.rewritten)
    builder = RecordBuilder(story, teachers, rng)
    # A faulty draft needs two pictures.
    stop = int(rng.integers(len(story.steps) if positive else min(len(story.steps), settings.max_images - 1)))
    for number in range(stop):
        builder.add_turn(number)
    if positive:
        builder.add_turn(stop)
        return builder.build_record("alignment", complete=stop == len(story.steps) - 1, positive=True)
    if not builder.can_be_faulty(stop):
        raise Rejected("nothing to draw wrong")
    fault = builder.add_corrected_turn(stop)
    return builder.build_record("alignment", complete=False, positive=False, note=f"wrong {fault}")


def make_conflict(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None, positive: bool
) -> Record:
    """Make a trajectory up to a plan that contradicts the prompt, its analysis, the right plan and its picture.

    A positive sample ends with a plan that is right but usually incomplete.
    """
    if positive:
        return _make_positive_conflict(rng, settings, teachers, prompt)
    story = make_story(rng, settings, teachers, prompt)
    if rng.random() < _COUNT_RATE and teachers.placement:
        found = _make_wrong_number(rng, teachers, story)
    else:
        found = _find_wrong_words(rng, settings, teachers, story)
    if found.number + 2 > settings.max_images:
        raise Rejected("too many images")
    builder = RecordBuilder(found.story, teachers, rng)
    for number in range(found.number):
        builder.add_turn(number)
    before, previous = found.story.get_graph_before(found.number), builder.picture
    builder.add_plan(found.wrong, language.write_plan(rng, before, found.wrong), target=False)
    builder.check_verdict(False, builder.judge_plan(), "conflict not seen by the judge")
    builder.add_draft(found.wrong_scene, previous, True, WRONG_PICTURE)
    builder.add_inspection(inspections.write_conflict(rng, story.asked, found.said))
    builder.add_plan_of_step(found.number)
    builder.add_drawn_image(found.story.scenes[found.number], previous, "refine")
    kind = _find_contradictions(story.asked, found.said)[0]
    return builder.build_record("conflict", complete=False, positive=False, note=f"conflict of {kind}")


def _make_positive_conflict(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, prompt: str | None
) -> Record:
    story = make_story(rng, settings, teachers, prompt)
    builder = RecordBuilder(story, teachers, rng)
    last = len(story.steps) - 1
    stop = int(rng.integers(max(last, 1)))  # incomplete if there is more than one step
    for number in range(stop + 1):
        builder.add_turn(number)
        builder.check_verdict(True, builder.judge_plan(), "plan rejected by the judge")
    return builder.build_record("conflict", complete=stop == last, positive=True)


class _WrongPlan(NamedTuple):
    """A wrong version of step ``number`` of a story."""

    story: Story
    number: int
    wrong: Step
    wrong_scene: Scene | None  # None if the painter needs none
    said: SceneGraph  # the graph after the wrong step, with the ids of the prompt's graph


def _find_contradictions(asked: SceneGraph, said: SceneGraph) -> list[str]:
    return [d.kind for d in find_differences(asked, said) if d.said is not None]


def _find_wrong_words(
    rng: np.random.Generator, settings: DatasetSettings, teachers: Teachers, story: Story
) -> _WrongPlan:
    """Find a wrong plan in a rewritten story: a step that contradicts the prompt and is corrected by the next step."""
    vocabulary = OTHER_WORDS if story.task == PROMPT_TASK else SHAPES_VOCABULARY
    steps = rewrite(rng, story.steps, 1.0, vocabulary, max_images=settings.max_images)
    right = next((n for n, step in enumerate(steps) if step.operation != "add"), None)
    if right is None:
        raise Rejected("no conflict found")
    first, second = steps[right - 1 : right + 1]
    new_ids = {second.entities[0]: second.entities[1]} if second.operation == "replace" else {}
    said = renumber(first.graph, {e.id: new_ids.get(e.id, e.id) for e in first.graph.entities})
    entities = tuple(new_ids.get(e, e) for e in first.entities)
    entities = tuple(e for e in entities if any(e == there.id for there in second.graph.entities))
    # The earlier steps must be right, because their pictures are not corrected.
    concerned = {e.id for e in first.graph.entities if e.id in second.entities}
    others = [*(step.graph for step in steps[: right - 1]), second.graph]
    if not entities or not concerned <= {*first.entities} or not _find_contradictions(story.asked, said):
        raise Rejected("no conflict found")
    if any(_find_contradictions(story.asked, graph) for graph in others):
        raise Rejected("no conflict found")
    scenes = place_story(rng, teachers, dataclasses.replace(story, steps=tuple(steps[: right + 1]))).scenes
    corrected = (*steps[: right - 1], Step("add", entities, second.graph))
    story = dataclasses.replace(story, steps=corrected, scenes=(*scenes[: right - 1], scenes[right]))
    return _WrongPlan(story, right - 1, first, scenes[right - 1], said)


def _make_wrong_number(rng: np.random.Generator, teachers: Teachers, story: Story) -> _WrongPlan:
    """Make a plan with a wrong number: one too many, or one missing of several."""
    number = int(rng.integers(len(story.steps)))
    step, scene = story.steps[number], story.scenes[number]
    assert scene is not None and teachers.placement is not None  # only shapes world can corrupt scenes
    entity = step.entities[int(rng.integers(len(step.entities)))]
    for _ in range(_TRIES):
        draft, kind = corrupt(rng, scene, step.graph, entity, teachers.placement)
        if kind == "count":
            break
    else:
        raise Rejected("no conflict found")
    drawn = draft.objects_of(entity)
    right = step.graph.find(entity)
    stated = {"place": join_places(o.place for o in drawn)} if right.places else {}
    wrong = Entity(entity, right.noun, len(drawn), right.attributes | stated)
    entities = tuple(wrong if e.id == entity else e for e in step.graph.entities)
    graph = SceneGraph(entities, step.graph.relations, step.graph.background)
    return _WrongPlan(story, number, Step("add", step.entities, graph), draft, graph)


# They return records without an id, or raise Rejected.
MAKERS = {
    "multi_turn": make_multi_turn,
    "conflict": make_conflict,
    "alignment": make_alignment,
    "text_to_image": base_tasks.make_text_to_image,
    "understand": base_tasks.make_understand,
    "edit": base_tasks.make_edit,
}


def _choose_prompt(rng: np.random.Generator, prompts: Sequence[str], turn: int, attempt: int) -> str:
    if attempt and turn >= len(prompts):
        return prompts[int(rng.integers(len(prompts)))]
    return prompts[turn % len(prompts)]


def make_sample(
    settings: DatasetSettings, teachers: Teachers, subset: str, number: int, prompts: Sequence[str] = ()
) -> tuple[Record, collections.Counter[str]]:
    """Make sample ``number`` of a subset. Returns the record and the number of rejected attempts by reason.

    First attempts use the ``prompts`` of a file in turn, later attempts the unused ones, then random ones.

    Raises:
      SettingsError: ``ATTEMPTS`` attempts were rejected.
    """
    rejected: collections.Counter[str] = collections.Counter()
    count, _ = settings.count_samples(subset)
    positive = is_positive(settings, subset, number)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((settings.seed, SUBSETS.index(subset), number, attempt))
        prompt = _choose_prompt(rng, prompts, number + attempt * count, attempt) if prompts else None
        try:
            record = MAKERS[subset](rng, settings, teachers, prompt, positive)
        except Rejected as fault:
            rejected[fault.reason] += 1
            continue
        return msgspec.structs.replace(record, id=f"{subset}-{settings.seed}-{number:06d}"), rejected
    reasons = ", ".join(f"{reason} {times}" for reason, times in rejected.most_common())
    raise SettingsError(f"{subset}: sample {number}: {ATTEMPTS} attempts were rejected ({reasons})")


def make_samples(
    settings: DatasetSettings,
    teachers: Teachers,
    subset: str,
    numbers: range,
    prompts: Sequence[str] = (),
    threads: int = 1,
) -> Samples:
    """Make samples of a subset, in order. Several ``threads`` make samples of remote teachers in parallel."""
    teachers = dataclasses.replace(teachers, stop=threading.Event())
    make = functools.partial(make_sample, settings, teachers, subset, prompts=prompts)
    if threads == 1:
        samples = [make(number) for number in numbers]
    else:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(make, number) for number in numbers]
            try:
                done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
                samples = [future.result() for future in (done if waiting else futures)]
            except BaseException:  # also KeyboardInterrupt: running requests are still waited for
                teachers.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    rejected = sum((rejected for _, rejected in samples), collections.Counter())
    return Samples([record for record, _ in samples], rejected)
