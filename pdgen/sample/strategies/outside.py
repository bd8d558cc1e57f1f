"""Strategies with advisers outside the model: a planner's steps, a critic's corrections. The model only draws."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import numpy as np

from pdgen.sample.strategies.task import Advice, Task, check_at_least, check_pictures, derive_seed, query, sum_costs
from pdgen.sequence.trajectory import (
    ImageStage,
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
    Step n is drawn with ``derive_seed(seed, n)``.
    """

    name: ClassVar[str] = "planner"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``. Raises TrajectoryError where the planner declines a prompt that contains a tag."""
        check_pictures(task, "process")
        task = task.fix_batch_size()
        advice = query(task, task.advisers.planner.plan, [(prompt,) for prompt in task.prompts])
        plans = [a.answer or [format_plan(prompt, prompt)] for a, prompt in zip(advice, task.prompts)]
        limited = [plan[: task.settings.max_images] for plan in plans]
        drawn: list[list[Trajectory]] = [[] for _ in plans]
        for number in range(max(map(len, limited))):
            rows = [row for row, plan in enumerate(limited) if number < len(plan)]
            for row, step in zip(rows, _draw_step(task, number, rows, limited, drawn)):
                drawn[row].append(step)
        return [
            dataclasses.replace(
                _join_steps(limited[row], drawn[row]),
                prompt=prompt,
                stop_reason="finished" if len(limited[row]) == len(plans[row]) else "step limit",
                costs=sum_costs([advice[row].costs, *(step.costs for step in drawn[row])]),
            )
            for row, prompt in enumerate(task.prompts)
        ]


def _draw_step(
    task: Task, number: int, rows: list[int], plans: list[list[str]], drawn: list[list[Trajectory]]
) -> list[Trajectory]:
    """Draw step ``number`` of these rows, each as a trajectory of its own."""
    instructions = [parse_plan(plans[row][number])[0] for row in rows]
    seeds = [derive_seed(task.seeds[row], number) for row in rows]
    if number == 0:
        return task.draw("single_pass", instructions, seeds)
    return task.draw("edit", instructions, seeds, [[drawn[row][-1].images[-1]] for row in rows])


def _join_steps(plans: Sequence[str], drawn: Sequence[Trajectory]) -> Trajectory:
    """Join the plans and the steps' pictures, latents and guidance to one trajectory of mode "process"."""
    stages: list[Stage] = []
    latents, guidance = {}, {}
    for number, (plan, step) in enumerate(zip(plans, drawn), 1):
        picture, file = step.stages[-1], image_file(number, "sketch")
        assert isinstance(picture, ImageStage)  # a single pass and an edit end with their image
        stages.append(TextStage("plan", plan, origin="outside"))
        stages.append(msgspec.structs.replace(picture, stage="sketch", file=file))
        if step.latents is not None:
            latents[file] = step.latents[picture.file]
        if applied := step.settings.get(f"guidance.{picture.file}"):
            guidance[f"guidance.{file}"] = applied
    return dataclasses.replace(
        drawn[0],
        mode="process",
        stages=stages,
        images=[step.images[-1] for step in drawn],
        latents=latents or None,
        settings={**drawn[0].settings, **guidance},
    )


@dataclasses.dataclass(frozen=True)
class OutsideInspector:
    """A critic inspects a single-pass draft; where it finds a fault, the image is drawn again after its critique.

    Attributes:
      rounds: maximum of critiques, at least 1; an accepting one is the last.
    """

    name: ClassVar[str] = "inspector"
    rounds: int = 1

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, "single_pass", task.advisers.critic)
        task = task.fix_batch_size()
        current = task.draw("single_pass", task.prompts, task.seeds)
        costs = [[one.costs] for one in current]
        waiting = list(range(len(current)))
        for _ in range(self.rounds):
            questions = [(task.prompts[row], np.asarray(current[row].images[-1])) for row in waiting]
            advice = dict(zip(waiting, query(task, task.advisers.critic.critique, questions)))
            for row, (verdict, price) in advice.items():
                costs[row].append(price)
                if verdict is not None and verdict.accept:
                    current[row] = current[row].with_text("inspect", format_inspection(verdict.analysis))
            waiting = [row for row, (verdict, _) in advice.items() if verdict is not None and not verdict.accept]
            if not waiting:
                break
            for row, one in zip(waiting, _redraw(task, waiting, current, advice)):
                current[row] = one
                costs[row].append(one.costs)
        return [dataclasses.replace(one, costs=sum_costs(spent), parent=None) for one, spent in zip(current, costs)]


def _redraw(task: Task, rows: list[int], current: list[Trajectory], advice: Mapping[int, Advice]) -> list[Trajectory]:
    """Resume the trajectories of these rows after the critique."""
    faulty = []
    for row in rows:
        verdict = advice[row].answer
        critique = format_inspection(verdict.analysis, verdict.correction)
        faulty.append(current[row].branch(len(current[row].stages), critique=critique))
    settings = dataclasses.replace(task.settings, mode="single_pass", refine=task.edit_settings)
    return task.sampler.resume_all(faulty, settings, progress=task.progress)
