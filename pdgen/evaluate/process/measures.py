"""What a trajectory's stages are worth: each step, each inspection and each refinement against a judge.

The judge is shapes world's exact one, or any other of that interface. A **step** is a plan, with its rewritings, and
all images drawn for it; what the step must leave alone is seen against the last image of the step before. A step
without a plan has the prompt as its plan: its images are right where the verifier finds all of the prompt in them.
What judge or verifier decline to answer is unknown (None), neither right nor wrong.

Steps       kept: the step's last image shows what its last plan promises, and the plan agrees with the prompt.
Inspections a fault is there where the judge rejects the image or its plan; precision and recall are those of
            ``<refine>``. A false alarm counts as one "on what is not drawn yet" where plan and image are right and the
            prompt asks for more than the image shows.
Refinements an image that follows a ``<refine>`` mends (the judge rejected before and accepts now, or his verdict stays
            and the verifier's score against the plan rises), harms (the reverse) or does nothing.
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
Lost = Literal["plan", "picture", "unfinished", "unknown"]
_Answer = TypeVar("_Answer")


class Step(msgspec.Struct, frozen=True):
    """One step of a trajectory.

    Attributes:
      images: index in ``stages`` of its images, drafts first.
      plan: the last plan; None where the prompt stands in its place.
      planned: the last plan agrees with the prompt, as the prompt itself does; None where the judge does not
        understand it.
      shown: the last image shows what that plan promises and leaves the rest alone; None as for ``planned``.
      score: the verifier's, of the last image against the prompt; None where it does not understand the prompt.
      untouched: all that the instruction does not concern is as it was in the image before the step; None in the
        first step, where the instruction is not understood, and where nobody can say.
      changed: share of pixels, 0 to 1, that have changed since the image before the step (``changed_pixels``); None in
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
        """Whether plan and picture are right; None where that is unknown of either."""
        return _both(self.planned, self.shown)


class Inspection(msgspec.Struct, frozen=True):
    """One inspection: what it says, and what the judge says.

    Attributes:
      stage: its index in ``stages``.
      alarm: it asks for a correction.
      fault: the judge rejects the image or its plan; None where either verdict is unknown.
      unfinished: the image does not yet show all that the prompt asks for, and has a plan that need not promise it.
    """

    stage: int
    alarm: bool
    fault: bool | None
    unfinished: bool


class Refinement(msgspec.Struct, frozen=True):
    """One refined image: its index in ``stages``, and what it did; None where nobody can say."""

    stage: int
    effect: Effect | None


class ProcessFacts(msgspec.Struct, frozen=True):
    """What is known of one trajectory.

    Attributes:
      first, final: the verifier's score of the first and the last drawn image against the prompt, None without.
      lost_at: number of the step, from 0, and at what of it, where the trajectory lost the prompt; None if the last
        image shows all of it or has no score. "unfinished": every step was kept and something is missing. "unknown":
        every step before was kept, and whether this one was nobody can tell.
      entities: asked for by the prompt, as far as the verifier's reader counts them.
    """

    prompt: str
    seed: int
    steps: list[Step]
    inspections: list[Inspection]
    refinements: list[Refinement]
    first: float | None
    final: float | None
    lost_at: tuple[int, Lost] | None
    images: int
    entities: int
    finished: bool
    costs: dict[str, float]


class _Drawn(NamedTuple):
    """A drawn image: its stage, pixels, the plans so far, and the last image of the step before.

    Without plans there is no step before.
    """

    stage: int
    picture: Picture
    plans: tuple[str, ...]
    previous: Picture | None


def _pixels(image: object) -> Picture:
    return np.asarray(image, np.uint8)


def drawn_by_step(trajectory: Trajectory) -> list[list[_Drawn]]:
    """The drawn images of every step; a trajectory without plans is one step whose plan is the prompt."""
    images = iter(trajectory.images)
    steps: list[list[_Drawn]] = []
    plans: list[str] = []
    before, last, rewriting, fresh = None, None, False, True
    for number, stage in enumerate(trajectory.stages):
        if isinstance(stage, ImageStage):
            picture = _pixels(next(images))
            if stage.stage != "given":
                if fresh:
                    steps.append([])
                steps[-1].append(_Drawn(number, picture, tuple(plans), before))
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


# Whether a plan's picture leaves alone what its instruction does not concern: (plan, picture before, picture).
Untouched = Callable[[str, Picture, Picture], bool | None]


def shapes_untouched(plan: str, previous: Picture, picture: Picture) -> bool | None:
    """``Untouched`` of shapes world, by ``picture_check.check_unchanged``."""
    try:
        instruction = parse_instruction(parse_plan(plan)[0])
    except (SceneError, TrajectoryError):
        return None
    before, now = (previous, detect_cached(previous)), (picture, detect_cached(picture))
    return check_unchanged(np.random.default_rng(0), instruction, before, now) is None


def process_facts(
    trajectory: Trajectory,
    judge: Judge,
    verifier: Verifier,
    untouched: Untouched = lambda plan, previous, picture: None,
    entities: int = 0,
) -> ProcessFacts:
    """Judges every stage of a trajectory.

    Args:
      untouched: by default nobody can say.
      entities: that the prompt asks for, for the table of length against complexity.
    """
    steps = drawn_by_step(trajectory)
    drawn = [one for step in steps for one in step]
    judged = {one.stage: _judged(trajectory.prompt, one, judge, verifier) for one in drawn}
    told = [_step(step, judged[step[-1].stage], untouched) for step in steps]
    final = judged[drawn[-1].stage].score if drawn else None
    return ProcessFacts(
        prompt=trajectory.prompt,
        seed=trajectory.seed,
        steps=told,
        inspections=list(_inspections(trajectory, judged)),
        refinements=list(_refinements(trajectory, drawn, judged, verifier)),
        first=judged[drawn[0].stage].score if drawn else None,
        final=final,
        lost_at=_lost(told, final),
        images=len(drawn),
        entities=entities,
        finished=trajectory.stop_reason == "finished",
        costs=dict(trajectory.costs),
    )


def _both(planned: bool | None, shown: bool | None) -> bool | None:
    # Where one is unknown the other's fault does not count either: shares would count the unknown that are wrong alone.
    return None if planned is None or shown is None else planned and shown


class _Judged(NamedTuple):
    """The judgement of a drawn image; for the attributes see ``Step``."""

    plan: str | None
    planned: bool | None
    shown: bool | None
    score: float | None

    @property
    def right(self) -> bool | None:
        return _both(self.planned, self.shown)


def _judged(prompt: str, one: _Drawn, judge: Judge, verifier: Verifier) -> _Judged:
    score = _answer(verifier.score, prompt, one.picture)
    if not one.plans:
        return _Judged(None, True, None if score is None else score >= 1, score)
    planned = _answer(judge.judge_plan, prompt, one.plans)
    shown = _answer(judge.judge_picture, one.plans[-1], one.picture, one.previous)
    accepted = (None if verdict is None else verdict.accept for verdict in (planned, shown))
    return _Judged(one.plans[-1], *accepted, score)


def _answer(ask: Callable[..., _Answer], *about: object) -> _Answer | None:
    try:
        return ask(*about)
    except Declined:
        return None


def _step(images: Sequence[_Drawn], judged: _Judged, untouched: Untouched) -> Step:
    last, before = images[-1], images[-1].previous
    alone, changed = None, None
    if before is not None and before.shape == last.picture.shape:
        alone = untouched(last.plans[-1], before, last.picture)
        changed = float(changed_pixels(before, last.picture).mean())
    return Step([one.stage for one in images], *judged, alone, changed)


def _inspections(trajectory: Trajectory, judged: Mapping[int, _Judged]) -> Iterator[Inspection]:
    image = None
    for number, stage in enumerate(trajectory.stages):
        if isinstance(stage, ImageStage):
            image = number
        elif stage.stage == "inspect" and image is not None and image in judged:
            one = judged[image]
            fault = None if one.right is None else not one.right
            unfinished = one.plan is not None and one.score is not None and one.score < 1
            yield Inspection(number, parse_refine(stage.text) is not None, fault, unfinished)


def _refinements(
    trajectory: Trajectory, drawn: Sequence[_Drawn], judged: Mapping[int, _Judged], verifier: Verifier
) -> Iterator[Refinement]:
    for draft, refined in itertools.pairwise(drawn):
        if trajectory.stages[refined.stage].stage == "refine":
            was, now = judged[draft.stage], judged[refined.stage]
            scores = (was.score, now.score)
            if now.plan is not None:
                promised = parse_plan(now.plan)[1]
                before, after = (_answer(verifier.score, promised, one.picture) for one in (draft, refined))
                scores = (before, after)
            yield Refinement(refined.stage, _effect((was.right, now.right), scores))


def _effect(*measured: tuple[float | None, float | None]) -> Effect | None:
    """What the first of the measures, each before and after, that has changed says; None if one is unknown instead."""
    known = [(was, now) for was, now in measured if was is not None and now is not None]
    for was, now in known:
        if was != now:
            return "mends" if now > was else "harms"
    return "nothing" if len(known) == len(measured) else None


def _lost(steps: Sequence[Step], final: float | None) -> tuple[int, Lost] | None:
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
