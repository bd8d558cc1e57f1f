"""What a trajectory's stages are worth: each step, each inspection and each refinement against a judge.

The judge is shapes world's exact one, or any other of that interface. A **step** is a plan, with its rewritings, and
all images drawn for it; what the step must leave alone is seen against the last image of the step before.

Steps       kept: the step's last image shows what its last plan promises, and the plan agrees with the prompt.
Inspections a fault is there where the judge rejects the image or its plan; precision and recall are those of
            ``<refine>``. A false alarm counts as one "on what is not drawn yet" where plan and image are right and the
            prompt asks for more than the image shows.
Refinements an image that follows a ``<refine>`` mends (the verifier's score against the plan rises, or the judge now
            accepts), harms (falls, or the judge accepted before and rejects now) or does nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from pdgen.interleave.trajectory import ImageStage, Trajectory, TrajectoryError, parse_plan, parse_refine
from pdgen.scenes.graph import SceneError
from pdgen.scenes.judge import detected
from pdgen.scenes.parse import parse_instruction
from pdgen.scenes.picture_check import check_untouched
from pdgen.scenes.teachers import Declined, Judge, Picture, Verifier

Effect = Literal["mends", "nothing", "harms"]
Lost = Literal["plan", "picture", "unfinished"]


class Step(msgspec.Struct, frozen=True):
    """One step of a trajectory.

    Attributes:
      images: index in ``stages`` of its images, drafts first.
      planned: the last plan agrees with the prompt; None where the judge does not understand it.
      shown: the last image shows what that plan promises and leaves the rest alone; None as for ``planned``.
      score: the verifier's, of the last image against the prompt; None where it does not understand the prompt.
      untouched: all that the instruction does not concern is as it was in the image before the step; None in the
        first step, where the instruction is not understood, and where nobody can say.
      changed: share of pixels, 0 to 1, that differ from the image before the step; None in the first step.
    """

    images: list[int]
    planned: bool | None
    shown: bool | None
    score: float | None
    untouched: bool | None
    changed: float | None

    @property
    def kept(self) -> bool:
        """Whether plan and picture are right."""
        return bool(self.planned and self.shown)


class Inspection(msgspec.Struct, frozen=True):
    """One inspection: what it says, and what the judge says.

    Attributes:
      stage: its index in ``stages``.
      alarm: it asks for a correction.
      fault: the judge rejects the image or its plan; None where he does not understand the plan.
      unfinished: the image does not yet show all that the prompt asks for.
    """

    stage: int
    alarm: bool
    fault: bool | None
    unfinished: bool


class Refinement(msgspec.Struct, frozen=True):
    """One refined image: its index in ``stages``, and what it did."""

    stage: int
    effect: Effect


class ProcessFacts(msgspec.Struct, frozen=True):
    """What is known of one trajectory.

    Attributes:
      first, final: the verifier's score of the first and the last drawn image against the prompt, None without.
      lost_at: number of the step, from 0, and at what of it, where the trajectory lost the prompt; None if the last
        image shows all of it. "unfinished": every step was kept and something is missing.
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
    """A drawn image: its stage, pixels, the plans so far, and the last image of the step before."""

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
    """``Untouched`` of shapes world, by ``picture_check.check_untouched``."""
    try:
        instruction = parse_instruction(parse_plan(plan)[0])
    except (SceneError, TrajectoryError):
        return None
    before, now = ((one, detected(one)) for one in (previous, picture))
    return check_untouched(np.random.default_rng(0), instruction, before, now) is None


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
    verdicts = {one.stage: _verdict(trajectory.prompt, one, judge) for one in drawn}
    scores = {one.stage: _score(verifier, trajectory.prompt, one.picture) for one in drawn}
    told = [_step(step, verdicts[step[-1].stage], scores[step[-1].stage], untouched) for step in steps]
    final = scores[drawn[-1].stage] if drawn else None
    return ProcessFacts(
        prompt=trajectory.prompt, seed=trajectory.seed, steps=told,
        inspections=list(_inspections(trajectory, verdicts, scores)),
        refinements=list(_refinements(trajectory, drawn, verdicts, verifier)),
        first=scores[drawn[0].stage] if drawn else None, final=final,
        lost_at=_lost(told, final), images=len(drawn), entities=entities,
        finished=trajectory.stop_reason == "finished", costs=dict(trajectory.costs),
    )  # fmt: skip


_Verdicts = dict[int, tuple[bool | None, bool | None]]  # by stage: plan agrees, picture shows it


def _verdict(prompt: str, one: _Drawn, judge: Judge) -> tuple[bool | None, bool | None]:
    if not one.plans:
        return None, None
    try:
        planned = judge.plan(prompt, one.plans).accept
    except Declined:
        planned = None
    try:
        shown = judge.picture(one.plans[-1], one.picture, one.previous).accept
    except Declined:
        shown = None
    return planned, shown


def _score(verifier: Verifier, prompt: str, picture: Picture) -> float | None:
    try:
        return verifier.score(prompt, picture)
    except Declined:
        return None


def _step(
    images: Sequence[_Drawn], verdict: tuple[bool | None, bool | None], score: float | None, untouched: Untouched
) -> Step:
    last, before = images[-1], images[-1].previous
    alone, changed = None, None
    if before is not None and before.shape == last.picture.shape:
        alone = untouched(last.plans[-1], before, last.picture) if last.plans else None
        changed = float((before != last.picture).any(axis=-1).mean())
    return Step([one.stage for one in images], *verdict, score, alone, changed)


def _inspections(
    trajectory: Trajectory, verdicts: _Verdicts, scores: dict[int, float | None]
) -> Iterator[Inspection]:
    image = None
    for number, stage in enumerate(trajectory.stages):
        if isinstance(stage, ImageStage):
            image = number
        elif stage.stage == "inspect" and image in verdicts:
            planned, shown = verdicts[image]
            known = planned is not None and shown is not None
            unfinished = scores[image] is not None and scores[image] < 1
            alarm = parse_refine(stage.text) is not None
            yield Inspection(number, alarm, not (planned and shown) if known else None, unfinished)


def _refinements(
    trajectory: Trajectory, drawn: Sequence[_Drawn], verdicts: _Verdicts, verifier: Verifier
) -> Iterator[Refinement]:
    for draft, refined in itertools.pairwise(drawn):
        if trajectory.stages[refined.stage].stage != "refine" or not refined.plans:
            continue
        (was_planned, was_shown), (planned, shown) = verdicts[draft.stage], verdicts[refined.stage]
        was, now = bool(was_planned and was_shown), bool(planned and shown)
        if was == now:
            scores = [_score(verifier, _description(refined.plans[-1]), one.picture) for one in (draft, refined)]
            was, now = (-1.0 if score is None else score for score in scores)
        yield Refinement(refined.stage, "mends" if now > was else "harms" if now < was else "nothing")


def _description(plan: str) -> str:
    return parse_plan(plan)[1]


def _lost(steps: Sequence[Step], final: float | None) -> tuple[int, Lost] | None:
    if final is None or final >= 1:
        return None
    for number, step in enumerate(steps):
        if not step.planned:
            return number, "plan"
        if not step.shown:
            return number, "picture"
    return len(steps) - 1, "unfinished"
