"""Strategies: ways to produce a picture of a prompt, to be compared at known cost.

A strategy is a frozen dataclass of its settings that is called with a ``Task``. All strategies run on the same
sampler; planner, critic and verifier are advisers outside the model (``teachers.advisers``). An adviser that declines
is counted, reported through ``progress``, and leaves a default: the prompt itself is the only step, the draft is
accepted, the score is 0.

Costs are sums over everything that was drawn for a trajectory, chosen or not; "questions" and "declined" count the
calls of advisers. "batch_seconds" and "compile_seconds" are those of the whole call, advisers included.
"""

import dataclasses
from typing import Any, ClassVar

import msgspec

from pdgen.sample.compiled import Stopwatch
from pdgen.sample.strategies.outside import OutsideInspector, OutsidePlanner
from pdgen.sample.strategies.search import BestOfN, Parm, StepwiseBestOfN
from pdgen.sample.strategies.task import WHOLE_CALL, Strategy, StrategyError, Task
from pdgen.sequence.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Process:
    """Plan, sketch, inspect, refine: the process that the model was trained for."""

    name: ClassVar[str] = "process"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        return task.draw("process", task.prompts, task.seeds)


@dataclasses.dataclass(frozen=True)
class SinglePass:
    """One image from the prompt alone, as the base model draws it."""

    name: ClassVar[str] = "single_pass"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        return task.draw("single_pass", task.prompts, task.seeds)


@dataclasses.dataclass(frozen=True)
class Think:
    """A thought about the picture, then one image, as the base model's "think" mode draws it."""

    name: ClassVar[str] = "think"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        return task.draw("think", task.prompts, task.seeds)


STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind
    for kind in (Process, SinglePass, Think, OutsidePlanner, OutsideInspector, BestOfN, StepwiseBestOfN, Parm)
}


def make_strategy(name: str, **settings: Any) -> Strategy:
    """Make the strategy of that name with its settings, values as in JSON.

    Raises:
      StrategyError: there is no such strategy or setting, or a value is out of range.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"strategy {name!r} is none of {', '.join(STRATEGIES)}")
    known = [field.name for field in dataclasses.fields(STRATEGIES[name])]
    for key in settings:
        if key not in known:
            raise StrategyError(f"strategy {name} has no setting {key!r}, only {', '.join(known) or 'none at all'}")
    try:
        return msgspec.convert(settings, STRATEGIES[name])
    except msgspec.ValidationError as fault:
        raise StrategyError(f"strategy {name}: {fault}") from None


def run_strategy(strategy: Strategy, task: Task) -> list[Trajectory]:
    """Return one trajectory per prompt; add the strategy to its settings and the call's seconds to its costs.

    Raises:
      StrategyError: the task cannot have the pictures that the strategy needs.
      SampleError: as ``Sampler``.
      TeacherError: an adviser cannot be reached.
    """
    watch = Stopwatch(task.sampler.model.compiler)
    drawn = strategy(task)
    used = {f"strategy.{key}": _flatten(value) for key, value in dataclasses.asdict(strategy).items()}
    whole = dict(zip(WHOLE_CALL, (watch.seconds, watch.compiling)))
    return [
        dataclasses.replace(
            one, settings={"strategy": strategy.name, **used, **one.settings}, costs={**one.costs, **whole}
        )
        for one in drawn
    ]


def _flatten(value: Any) -> Any:
    """Write a sequence as one string, since settings of a trajectory are flat."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else value
