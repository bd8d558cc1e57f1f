"""The conflict subset by self-sampling: plans of a trained model, judged against the prompt.

An accepted plan gives a positive sample. A rejected plan gives a negative sample with the judge's analysis and
correction, then the right plan and its picture. A plan with a held-out combination gives no sample.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from pdgen.sequence.trajectory import Record, TrajectoryError, format_inspection, parse_plan
from pdgen.shapes.graph import SceneError, Step, extract_subgraph
from pdgen.shapes.held_out import is_held_out
from pdgen.shapes.instruction import apply_instruction
from pdgen.shapes.matching import align
from pdgen.shapes.parse import parse_instruction
from pdgen.shapes.world import Scene
from pdgen.synthesis.edits import make_first_step
from pdgen.synthesis.prompts import make_story, place_story
from pdgen.synthesis.settings import SUBSETS, DatasetSettings, SettingsError
from pdgen.synthesis.story import HELD_OUT, WRONG_PICTURE, RecordBuilder, Rejected, Story, Teachers
from pdgen.synthesis.subsets import ATTEMPTS, Samples, is_positive
from pdgen.teachers.protocols import Declined

# Writes the first plan for each prompt, given the prompts and one seed for each.
PlanWriter = Callable[[Sequence[str], Sequence[int]], list[str]]
PLAN_BATCH_SIZE = 32  # plans written at a time


def _refuse_held_out(words: str) -> None:
    """Raise Rejected if an instruction, or the graph after it, contains a held-out combination."""
    try:
        instruction = parse_instruction(words)
        new = {"add": instruction.entities, "replace": instruction.entities[1:]}.get(instruction.operation, ())
        before = extract_subgraph(instruction.graph, {e.id for e in instruction.graph.entities} - {*new})
        after = apply_instruction(before, instruction)
    except SceneError:
        raise Rejected("plan not understood") from None
    if is_held_out(instruction.graph) or is_held_out(after):
        raise Rejected(HELD_OUT)


def _read_plan(rng: np.random.Generator, teachers: Teachers, plan: str) -> tuple[Step, Scene | None]:
    """Parse a plan to a step and place its scene if the painter needs one. Raises Rejected."""
    try:
        instruction, description = parse_plan(plan)
        graph = teachers.writer.parse(description)
        if teachers.placement:
            _refuse_held_out(instruction)
        step = make_first_step(graph)
    except (TrajectoryError, Declined):
        raise Rejected("plan not understood") from None
    except SceneError:
        raise Rejected("not a scene of shapes world") from None
    return step, place_story(rng, teachers, Story("", "", graph, (step,))).scenes[0]


def _correct_story(rng: np.random.Generator, teachers: Teachers, story: Story, wrong: Step) -> Story:
    """Make the story of the right plan, which draws the entities of the prompt that the wrong plan seems to mean."""
    whole = story.steps[-1].graph
    asked = {e.id for e in whole.entities}
    meant = [e.id for e in align(story.asked, wrong.graph).entities if e.id in asked] or story.steps[0].entities
    step = Step("add", tuple(meant), extract_subgraph(whole, meant))
    return place_story(rng, teachers, dataclasses.replace(story, steps=(step,)))


def judge_sampled_plan(rng: np.random.Generator, teachers: Teachers, story: Story, plan: str) -> tuple[bool, Record]:
    """Judge a story's first plan. Returns whether it is accepted, and its record without an id.

    Raises:
      Rejected: the plan gives no sample.
    """
    step, scene = _read_plan(rng, teachers, plan)
    builder = RecordBuilder(story, teachers, rng)
    builder.add_plan(step, plan)
    verdict = builder.judge_plan()
    if verdict.accept:
        builder.add_drawn_image(scene, None)
        builder.add_inspection(format_inspection(verdict.analysis))
        return True, builder.build_record("conflict", complete=False, positive=True)
    builder = RecordBuilder(_correct_story(rng, teachers, story, step), teachers, rng)
    builder.add_plan(step, plan, target=False)
    builder.verdicts[1] = verdict
    builder.add_draft(scene, None, True, WRONG_PICTURE)
    builder.add_inspection(format_inspection(verdict.analysis, verdict.correction))
    builder.add_plan_of_step(0)
    builder.add_drawn_image(builder.story.scenes[0], None, "refine")
    return False, builder.build_record("conflict", complete=False, positive=False)


def make_self_sampled(
    settings: DatasetSettings, teachers: Teachers, numbers: range, write: PlanWriter, prompts: Sequence[str] = ()
) -> Samples:
    """Make samples of the conflict subset, in order.

    Candidates are numbered 0, 1, ... and depend only on (settings, seed, ``numbers.start``) and their number. If there
    are enough samples of a candidate's verdict, it is counted as rejected.

    Raises:
      SettingsError: ``ATTEMPTS`` candidates per sample gave too few of one verdict.
    """
    wanted = {kind: [n for n in numbers if is_positive(settings, "conflict", n) == kind] for kind in (True, False)}
    found: dict[int, Record] = {}
    rejected: collections.Counter[str] = collections.Counter()
    for first in range(0, ATTEMPTS * len(numbers), PLAN_BATCH_SIZE):
        if len(found) == len(numbers):
            break
        for rng, story, plan in _draw_candidates(settings, teachers, numbers.start, first, write, prompts, rejected):
            try:
                kind, record = judge_sampled_plan(rng, teachers, story, plan)
            except Rejected as fault:
                rejected[fault.reason] += 1
                continue
            if not wanted[kind]:
                rejected[f"{'positive' if kind else 'negative'} samples are enough"] += 1
                continue
            number = wanted[kind].pop(0)
            found[number] = msgspec.structs.replace(record, id=f"conflict-{settings.seed}-{number:06d}")
    if len(found) < len(numbers):
        short = {kind: len(numbers_left) for kind, numbers_left in wanted.items()}
        raise SettingsError(
            f"conflict: {short[True]} positive and {short[False]} negative samples are missing after "
            f"{ATTEMPTS * len(numbers):,} plans of the checkpoint ({dict(rejected.most_common(4))}); raise "
            "conflict.temperature, or take conflict.variant=graph"
        )
    return Samples([found[number] for number in numbers], rejected)


def _draw_candidates(
    settings: DatasetSettings,
    teachers: Teachers,
    start: int,
    first: int,
    write: PlanWriter,
    prompts: Sequence[str],
    rejected: collections.Counter[str],
) -> list[tuple[np.random.Generator, Story, str]]:
    """Draw ``PLAN_BATCH_SIZE`` stories and let the model write their plans."""
    stories = []
    for candidate in range(first, first + PLAN_BATCH_SIZE):
        rng = np.random.default_rng((settings.seed, SUBSETS.index("conflict"), start, candidate))
        prompt = prompts[int(rng.integers(len(prompts)))] if prompts else None
        try:
            stories.append((rng, make_story(rng, settings, teachers, prompt), int(rng.integers(2**32))))
        except Rejected as fault:
            rejected[fault.reason] += 1
    if not stories:
        return []
    plans = write([story.prompt for _, story, _ in stories], [seed for _, _, seed in stories])
    return [(rng, story, plan) for (rng, story, _), plan in zip(stories, plans)]
