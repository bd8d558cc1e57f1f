"""Measures of a trajectory's stages: each step, inspection and refinement compared with a judge's verdict.

The judge is shapes world's exact one, or any other with the same interface. A **step** is a plan with its revisions,
and all images drawn for it. What the step must leave unchanged is compared with the last image of the step before. A
step without a plan has the prompt as its plan: its images are correct if the verifier finds all of the prompt in them.
If the judge or the verifier declines to answer, the result is unknown (None), neither correct nor wrong.

Steps: A step is kept if its last image shows what its last plan promises, and the plan agrees with the prompt.

Inspections: An image has a fault if the judge rejects it or its plan. Precision and recall are those of ``<refine>``. A
false alarm counts as "on what is not drawn yet" if plan and image are correct and the prompt asks for more than the
image shows.

Refinements: An image that follows a ``<refine>`` mends if the judge rejected the previous image and accepts this one,
or if the verdict is the same and the verifier's score against the plan rises. It harms in the reverse case. Otherwise
it does nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from pdgen.sequence.images import Picture, changed_pixels
from pdgen.sequence.trajectory import ImageStage, Trajectory, TrajectoryError, parse_plan, parse_refine
from pdgen.shapes.graph import SceneError
from pdgen.shapes.parse import parse_instruction
from pdgen.teachers.exact.judge import detect_cached
from pdgen.teachers.exact.picture_check import check_unchanged
from pdgen.teachers.protocols import Declined, Judge, Verifier

Effect = Literal["mends", "nothing", "harms"]
LossCause = Literal["plan", "picture", "unfinished", "unknown"]
_Answer = TypeVar("_Answer")


class ProcessStep(msgspec.Struct, frozen=True):
    """A step of a trajectory.

    Attributes:
      images: The indices of its images in ``stages``, drafts first.
      plan: The last plan. None if the prompt replaces it.
      planned: Whether the last plan agrees with the prompt; true without a plan. None if the judge cannot read it.
      shown: Whether the last image shows what the plan promises and leaves the rest unchanged. None as for ``planned``.
      score: The verifier's score of the last image against the prompt. None if it cannot read the prompt.
      untouched: Whether all that the instruction does not concern is unchanged since the image before the step. None in
        the first step, if the instruction cannot be read, or if there is no check.
      changed: The share of pixels, 0 to 1, that changed since the image before the step (``changed_pixels``). None in
        the first step.
    """

    images: list[int]
    plan: str | None
    planned: bool | None
    shown: bool | None
    score: float | None
    untouched: bool | None
    changed: float | None

    @property
    def kept(self) -> bool | None:
        """Whether plan and picture are correct; None if either is unknown."""
        return _combine_verdicts(self.planned, self.shown)


class Inspection(msgspec.Struct, frozen=True):
    """An inspection and the judge's verdict on the same image.

    Attributes:
      stage: Its index in ``stages``.
      alarm: Whether it asks for a correction.
      fault: Whether the judge rejects the image or its plan. None if either verdict is unknown.
      unfinished: Whether the image has a plan and does not yet show all that the prompt asks for.
    """

    stage: int
    alarm: bool
    fault: bool | None
    unfinished: bool


class Refinement(msgspec.Struct, frozen=True):
    """A refined image: its index in ``stages``, and its effect, None if unknown."""

    stage: int
    effect: Effect | None


class ProcessFacts(msgspec.Struct, frozen=True):
    """The measures of one trajectory.

    Attributes:
      first: The verifier's score of the first drawn image against the prompt. None if unknown.
      final: The same of the last drawn image.
      lost_at: The index of the step that first deviates from the prompt, and the cause. None if the last image shows
        all of the prompt or has no score. "unfinished": all steps were kept and something is missing. "unknown": all
        steps before were kept, and the verdict on this one is unknown.
      images: The number of drawn images.
      entities: The number of entities that the prompt asks for.
      finished: Whether the model itself ended the trajectory.
    """

    prompt: str
    seed: int
    steps: list[ProcessStep]
    inspections: list[Inspection]
    refinements: list[Refinement]
    first: float | None
    final: float | None
    lost_at: tuple[int, LossCause] | None
    images: int
    entities: int
    finished: bool
    costs: dict[str, float]


class _DrawnImage(NamedTuple):
    """A drawn image."""

    stage: int  # its index in ``stages``
    picture: Picture
    plans: tuple[str, ...]  # those so far
    previous: Picture | None  # the last image of the step before; None without plans


def group_by_step(trajectory: Trajectory) -> list[list[_DrawnImage]]:
    """Return the drawn images of every step. A trajectory without plans is one step."""
    images = iter(trajectory.images)
    steps: list[list[_DrawnImage]] = []
    plans: list[str] = []
    before, last = None, None  # the last image of the step before, and of all so far
    # A plan after an inspection that asks for a correction revises the current step's plan.
    rewriting, fresh = False, True
    for number, stage in enumerate(trajectory.stages):
        if isinstance(stage, ImageStage):
            picture = np.asarray(next(images), np.uint8)
            if stage.stage != "given":
                if fresh:
                    steps.append([])
                steps[-1].append(_DrawnImage(number, picture, tuple(plans), before))
                fresh = False
            last = picture
        elif stage.stage == "plan":
            fresh = not rewriting or not steps
            if fresh:
                before = last
                plans.append(stage.text)
            else:
                plans[-1] = stage.text
            rewriting = False
        elif stage.stage == "inspect":
            rewriting = parse_refine(stage.text) is not None
    return steps


# (plan, picture before, picture) -> whether all that the plan's instruction does not concern is unchanged
UntouchedCheck = Callable[[str, Picture, Picture], bool | None]


def check_shapes_untouched(plan: str, previous: Picture, picture: Picture) -> bool | None:
    """Run ``picture_check.check_unchanged`` on shapes world's pictures. See ``UntouchedCheck``."""
    try:
        instruction = parse_instruction(parse_plan(plan)[0])
    except (SceneError, TrajectoryError):
        return None
    before, now = (previous, detect_cached(previous)), (picture, detect_cached(picture))
    return check_unchanged(np.random.default_rng(0), instruction, before, now) is None


def judge_trajectory(
    trajectory: Trajectory,
    judge: Judge,
    verifier: Verifier,
    untouched: UntouchedCheck = lambda plan, previous, picture: None,
    entities: int = 0,
) -> ProcessFacts:
    """Judge every stage of a trajectory.

    Args:
      trajectory: The trajectory, with its images.
      judge: Judges plans and pictures.
      verifier: Scores pictures against a text.
      untouched: Checks what a step must leave unchanged. By default the result is unknown.
      entities: The number of entities that the prompt asks for, for the table of length against complexity.
    """
    steps = group_by_step(trajectory)
    drawn = [one for step in steps for one in step]
    judged = {one.stage: _judge_image(trajectory.prompt, one, judge, verifier) for one in drawn}
    facts = [_make_step(step, judged[step[-1].stage], untouched) for step in steps]
    final = judged[drawn[-1].stage].score if drawn else None
    return ProcessFacts(
        prompt=trajectory.prompt,
        seed=trajectory.seed,
        steps=facts,
        inspections=list(_judge_inspections(trajectory, judged)),
        refinements=list(_judge_refinements(trajectory, drawn, judged, verifier)),
        first=judged[drawn[0].stage].score if drawn else None,
        final=final,
        lost_at=_locate_loss(facts, final),
        images=len(drawn),
        entities=entities,
        finished=trajectory.stop_reason == "finished",
        costs=dict(trajectory.costs),
    )


def _combine_verdicts(planned: bool | None, shown: bool | None) -> bool | None:
    # A fault does not count if the other verdict is unknown: shares would then include unknown steps only if wrong.
    return None if planned is None or shown is None else planned and shown


class _ImageJudgement(NamedTuple):
    """The judgement of a drawn image. For the attributes see ``ProcessStep``."""

    plan: str | None
    planned: bool | None
    shown: bool | None
    score: float | None

    @property
    def right(self) -> bool | None:
        return _combine_verdicts(self.planned, self.shown)


def _judge_image(prompt: str, one: _DrawnImage, judge: Judge, verifier: Verifier) -> _ImageJudgement:
    score = _query(verifier.score, prompt, one.picture)
    if not one.plans:
        return _ImageJudgement(None, True, None if score is None else score >= 1, score)
    planned = _query(judge.judge_plan, prompt, one.plans)
    shown = _query(judge.judge_picture, one.plans[-1], one.picture, one.previous)
    accepted = (None if verdict is None else verdict.accept for verdict in (planned, shown))
    return _ImageJudgement(one.plans[-1], *accepted, score)


def _query(ask: Callable[..., _Answer], *about: object) -> _Answer | None:
    try:
        return ask(*about)
    except Declined:
        return None


def _make_step(images: Sequence[_DrawnImage], judged: _ImageJudgement, untouched: UntouchedCheck) -> ProcessStep:
    last, before = images[-1], images[-1].previous
    unchanged, changed = None, None
    if before is not None and before.shape == last.picture.shape:
        unchanged = untouched(last.plans[-1], before, last.picture)
        changed = float(changed_pixels(before, last.picture).mean())
    return ProcessStep([one.stage for one in images], *judged, unchanged, changed)


def _judge_inspections(trajectory: Trajectory, judged: Mapping[int, _ImageJudgement]) -> Iterator[Inspection]:
    image = None
    for number, stage in enumerate(trajectory.stages):
        if isinstance(stage, ImageStage):
            image = number
        elif stage.stage == "inspect" and image is not None and image in judged:
            one = judged[image]
            fault = None if one.right is None else not one.right
            unfinished = one.plan is not None and one.score is not None and one.score < 1
            yield Inspection(number, parse_refine(stage.text) is not None, fault, unfinished)


def _judge_refinements(
    trajectory: Trajectory, drawn: Sequence[_DrawnImage], judged: Mapping[int, _ImageJudgement], verifier: Verifier
) -> Iterator[Refinement]:
    for draft, refined in itertools.pairwise(drawn):
        if trajectory.stages[refined.stage].stage == "refine":
            was, now = judged[draft.stage], judged[refined.stage]
            scores = (was.score, now.score)
            if now.plan is not None:
                promised = parse_plan(now.plan)[1]
                before, after = (_query(verifier.score, promised, one.picture) for one in (draft, refined))
                scores = (before, after)
            yield Refinement(refined.stage, _measure_effect((was.right, now.right), scores))


def _measure_effect(*measured: tuple[float | None, float | None]) -> Effect | None:
    """Return the direction of the first (before, after) measure that changed; None if one is unknown instead."""
    known = [(was, now) for was, now in measured if was is not None and now is not None]
    for was, now in known:
        if was != now:
            return "mends" if now > was else "harms"
    return "nothing" if len(known) == len(measured) else None


def _locate_loss(steps: Sequence[ProcessStep], final: float | None) -> tuple[int, LossCause] | None:
    if final is None or final >= 1:
        return None
    for number, step in enumerate(steps):
        if step.planned is False:
            return number, "plan"
        if step.shown is False:
            return number, "picture"
        if step.kept is None:
            return number, "unknown"
    return len(steps) - 1, "unfinished"
