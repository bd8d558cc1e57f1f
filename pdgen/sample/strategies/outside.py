"""Strategies in which others think and the model only draws: a planner's steps, a critic's corrections."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import numpy as np

from pdgen.sample.strategies.task import Advice, Task, ask, at_least, candidate_seed, check_pictures, total
from pdgen.sequence.trajectory import (
    Stage,
    TextStage,
    Trajectory,
    format_inspection,
    format_plan,
    image_file,
    parse_plan,
)


@dataclasses.dataclass(frozen=True)
class OutsidePlanner:
    """A planner gives the steps: the first is drawn from its instruction, each later one edits the last picture.

    The result is a trajectory of mode "process" whose plans come from outside; ``max_images`` limits the steps.
    Step n is drawn with ``candidate_seed(seed, n)``.
    """

    name: ClassVar[str] = "planner"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``. Raises TrajectoryError where the planner declines a prompt that holds a tag."""
        check_pictures(task, "process")
        task = task.grouped()
        advice = ask(task, task.advisers.planner.plan, [(prompt,) for prompt in task.prompts])
        plans = [a.answer or [format_plan(prompt, prompt)] for a, prompt in zip(advice, task.prompts)]
        kept = [plan[: task.settings.max_images] for plan in plans]
        drawn: list[list[Trajectory]] = [[] for _ in plans]
        for number in range(max(map(len, kept))):
            rows = [row for row, plan in enumerate(kept) if number < len(plan)]
            for row, step in zip(rows, _step(task, number, rows, kept, drawn)):
                drawn[row].append(step)
        results = []
        for row, prompt in enumerate(task.prompts):
            stop = "finished" if len(kept[row]) == len(plans[row]) else "step limit"
            one = dataclasses.replace(
                drawn[row][0],
                prompt=prompt,
                mode="process",
                stop_reason=stop,
                latents=_latents(drawn[row]),
                images=[step.images[-1] for step in drawn[row]],
                stages=_planned_stages(kept[row], drawn[row]),
                costs=total([advice[row].costs, *(step.costs for step in drawn[row])]),
            )
            results.append(one)
        return results


def _step(
    task: Task, number: int, rows: list[int], plans: list[list[str]], drawn: list[list[Trajectory]]
) -> list[Trajectory]:
    """Step ``number`` of these rows, each a trajectory of its own."""
    words = [parse_plan(plans[row][number])[0] for row in rows]
    seeds = [candidate_seed(task.seeds[row], number) for row in rows]
    if number == 0:
        return task.draw("single_pass", words, seeds)
    return task.draw("edit", words, seeds, [[drawn[row][-1].images[-1]] for row in rows])


def _planned_stages(plans: Sequence[str], drawn: Sequence[Trajectory]) -> list[Stage]:
    stages: list[Stage] = []
    for number, (plan, step) in enumerate(zip(plans, drawn), 1):
        picture = msgspec.structs.replace(step.stages[-1], stage="sketch", file=image_file(number, "sketch"))
        stages += [TextStage("plan", plan, origin="outside"), picture]
    return stages


def _latents(drawn: Sequence[Trajectory]) -> dict[str, np.ndarray] | None:
    """What the pictures of the steps were decoded from, named as in ``_planned_stages``; None where it was not kept."""
    if any(step.latents is None for step in drawn):
        return None
    return {image_file(number, "sketch"): step.latents[step.stages[-1].file] for number, step in enumerate(drawn, 1)}


@dataclasses.dataclass(frozen=True)
class OutsideInspector:
    """A critic inspects a single-pass draft; where he finds a fault his words are put in and the image drawn anew.

    Attributes:
      rounds: of critique, at least 1; one that accepts is the last.
    """

    name: ClassVar[str] = "inspector"
    rounds: int = 1

    def __post_init__(self) -> None:
        at_least("rounds", self.rounds, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, "single_pass", task.advisers.critic)
        task = task.grouped()
        current = task.draw("single_pass", task.prompts, task.seeds)
        costs = [[one.costs] for one in current]
        waiting = list(range(len(current)))
        for _ in range(self.rounds):
            about = [(task.prompts[row], np.asarray(current[row].images[-1])) for row in waiting]
            advice = dict(zip(waiting, ask(task, task.advisers.critic.critique, about)))
            for row, (verdict, price) in advice.items():
                costs[row].append(price)
                if verdict is not None and verdict.accept:
                    current[row] = current[row].with_text("inspect", format_inspection(verdict.analysis))
            waiting = [row for row, (verdict, _) in advice.items() if verdict is not None and not verdict.accept]
            if not waiting:
                break
            for row, one in zip(waiting, _redrawn(task, waiting, current, advice)):
                current[row] = one
                costs[row].append(one.costs)
        return [dataclasses.replace(one, costs=total(spent), parent=None) for one, spent in zip(current, costs)]


def _redrawn(task: Task, rows: list[int], current: list[Trajectory], advice: Mapping[int, Advice]) -> list[Trajectory]:
    """The trajectories of these rows, gone on with after the critique."""
    faulty = []
    for row in rows:
        verdict, _ = advice[row]
        words = format_inspection(verdict.analysis, verdict.correction)
        faulty.append(current[row].branch(len(current[row].stages), critique=words))
    settings = dataclasses.replace(task.settings, mode="single_pass", refine=task.edit_image)
    return task.sampler.resume_all(faulty, settings, progress=task.progress)
