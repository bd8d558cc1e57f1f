"""Strategies: ways to come to a picture of a prompt, to be compared at known cost.

A strategy is a frozen dataclass of its settings that is called with a ``Task``. All run on the same sampler; planner,
critic and verifier are asked from outside (``scenes.advisers``). What an adviser declines is counted, said through
``progress``, and treated as no advice: the prompt itself is the only step, the draft stands, the score is 0.

Costs are the sums over all that was drawn for a trajectory, chosen or not; "questions" and "declined" count what
advisers were asked. "batch_seconds" and "compile_seconds" are those of the whole call, advisers included.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import PIL.Image

from pdgen.interleave.trajectory import (
    Mode,
    TextStage,
    Trajectory,
    format_inspection,
    format_plan,
    image_file,
    parse_plan,
)
from pdgen.sample.compiled import Stopwatch
from pdgen.sample.engine import Sampler, SampleSettings
from pdgen.scenes.advisers import Advisers, exact_advisers
from pdgen.scenes.teachers import Declined

Costs = Mapping[str, float]
T = TypeVar("T")
_ASKED_TOGETHER = 16  # questions under way at a time; an endpoint has a limit of its own


class StrategyError(ValueError):
    """No such strategy, or a setting that it does not have or that is out of range; one line says which there are."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a strategy is called with.

    Attributes:
      prompts, seeds: of the trajectories; ``candidate_seed`` derives all other seeds.
      settings: of every trajectory that is drawn; most strategies choose the mode themselves.
      advisers: shapes world's exact ones by default.
      progress: called with a line after every segment and every pick.
    """

    sampler: Sampler
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: SampleSettings = SampleSettings()
    advisers: Advisers = exact_advisers()
    progress: Callable[[str], None] = lambda line: None

    def draw(
        self,
        mode: Mode,
        prompts: Sequence[str],
        seeds: Sequence[int],
        given: Sequence[Sequence[PIL.Image.Image]] | None = None,
    ) -> list[Trajectory]:
        """One trajectory per prompt, all in one batch."""
        settings = dataclasses.replace(self.settings, mode=mode)
        return self.sampler(prompts, seeds, settings, given=given, progress=self.progress)


class Strategy(Protocol):
    """A strategy with its settings, a frozen dataclass."""

    name: ClassVar[str]

    def __call__(self, task: Task) -> list[Trajectory]:
        """One trajectory per prompt. Raises SampleError; TeacherError where an adviser cannot be asked at all."""


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a trajectory's ``number``-th candidate, within [0, 2^32); that of number 0 is ``seed`` itself."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed


class Advice(NamedTuple):
    """An adviser's answer, None where he declined, and what asking cost."""

    answer: Any
    costs: Costs


def ask(task: Task, question: Callable[..., Any], about: Iterable[tuple]) -> list[Advice]:
    """An adviser's answer to ``question(*arguments)`` for each of ``about``; several are asked at a time."""

    def one(arguments: tuple) -> Advice:
        try:
            return Advice(question(*arguments), {"questions": 1.0, "declined": 0.0})
        except Declined as fault:
            task.progress(f"declined: {fault}")
            return Advice(None, {"questions": 1.0, "declined": 1.0})

    with concurrent.futures.ThreadPoolExecutor(_ASKED_TOGETHER) as pool:
        return list(pool.map(one, about))


def ask_scores(task: Task, prompts: Sequence[str], pictures: Sequence[PIL.Image.Image]) -> list[Advice]:
    """The verifier's score of each picture, 0 where he declines."""
    about = [(prompt, np.asarray(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
    return [a._replace(answer=a.answer or 0.0) for a in ask(task, task.advisers.verifier.score, about)]


def total(costs: Iterable[Costs]) -> dict[str, float]:
    """The sum, name by name."""
    summed: dict[str, float] = collections.defaultdict(float)
    for name, value in itertools.chain.from_iterable(c.items() for c in costs):
        summed[name] += value
    return dict(summed)


def filled(rows: Sequence[T], size: int) -> list[T]:
    """``rows`` with the first one repeated up to ``size``, so that a smaller batch needs no compiling of its own."""
    return [*rows, *[rows[0]] * (size - len(rows))]


@dataclasses.dataclass(frozen=True)
class Process:
    """Plan, sketch, inspect, refine: what the model was trained to do."""

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
class OutsidePlanner:
    """A planner gives the steps: the first is drawn from its instruction, each later one edits the last picture.

    The result is a trajectory of mode "process" whose plans come from outside; ``max_images`` limits the steps.
    Step n is drawn with ``candidate_seed(seed, n)``.
    """

    name: ClassVar[str] = "planner"

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``. Raises TrajectoryError where the planner declines a prompt that holds a tag."""
        advice = ask(task, task.advisers.planner.plan, [(prompt,) for prompt in task.prompts])
        plans = [a.answer or [format_plan(prompt, prompt)] for a, prompt in zip(advice, task.prompts)]
        kept = [plan[: max(1, task.settings.max_images)] for plan in plans]
        drawn: list[list[Trajectory]] = [[] for _ in plans]
        for number in range(max(map(len, kept))):
            rows = [row for row, plan in enumerate(kept) if number < len(plan)]
            for row, step in zip(rows, self._step(task, number, filled(rows, len(plans)), kept, drawn)):
                drawn[row].append(step)
        results = []
        for row, prompt in enumerate(task.prompts):
            stop = "finished" if len(kept[row]) == len(plans[row]) else "step limit"
            one = dataclasses.replace(
                drawn[row][0], prompt=prompt, mode="process", stop_reason=stop, latents=None,
                images=[step.images[-1] for step in drawn[row]], stages=_planned_stages(kept[row], drawn[row]),
                costs=total([advice[row].costs, *(step.costs for step in drawn[row])]),
            )  # fmt: skip
            results.append(one)
        return results

    def _step(
        self, task: Task, number: int, rows: list[int], plans: list[list[str]], drawn: list[list[Trajectory]]
    ) -> list[Trajectory]:
        words = [parse_plan(plans[row][number])[0] for row in rows]
        seeds = [candidate_seed(task.seeds[row], number) for row in rows]
        if number == 0:
            return task.draw("single_pass", words, seeds)
        return task.draw("edit", words, seeds, [[drawn[row][number - 1].images[-1]] for row in rows])


def _planned_stages(plans: Sequence[str], drawn: Sequence[Trajectory]) -> list:
    stages = []
    for number, (plan, step) in enumerate(zip(plans, drawn), 1):
        picture = msgspec.structs.replace(step.stages[-1], stage="sketch", file=image_file(number, "sketch"))
        stages += [TextStage("plan", plan, origin="outside"), picture]
    return stages


@dataclasses.dataclass(frozen=True)
class OutsideInspector:
    """A critic inspects a single-pass draft; where he finds a fault his words are put in and the image drawn anew.

    Attributes:
      rounds: of critique, at least 1; one that accepts is the last.
    """

    name: ClassVar[str] = "inspector"
    rounds: int = 1

    def __post_init__(self) -> None:
        _at_least("rounds", self.rounds, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
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
            for row, one in zip(waiting, self._redraw(task, waiting, current, advice)):
                current[row] = one
                costs[row].append(one.costs)
        return [
            dataclasses.replace(one, costs=total(spent), parent=None) for one, spent in zip(current, costs, strict=True)
        ]

    def _redraw(
        self, task: Task, rows: list[int], current: list[Trajectory], advice: Mapping[int, Advice]
    ) -> list[Trajectory]:
        faulty = []
        for row in rows:
            verdict, _ = advice[row]
            words = format_inspection(verdict.analysis, verdict.correction)
            faulty.append(current[row].branch(len(current[row].stages), critique=words))
        settings = dataclasses.replace(task.settings, mode="single_pass")
        return task.sampler.resume(filled(faulty, len(current)), settings, progress=task.progress)


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """``n`` full trajectories of the settings' mode, of which the verifier picks by the last image.

    Attributes:
      n: candidates, at least 1; the first has the trajectory's own seed.
    """

    name: ClassVar[str] = "best_of_n"
    n: int = 4

    def __post_init__(self) -> None:
        _at_least("n", self.n, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``; each result has the seed of the candidate that was picked."""
        pairs = list(itertools.product(range(len(task.prompts)), range(self.n)))
        together = max(len(task.prompts), self.n)  # divides the number of pairs
        drawn: list[Trajectory] = []
        for first in range(0, len(pairs), together):
            rows = pairs[first : first + together]
            seeds = [candidate_seed(task.seeds[row], number) for row, number in rows]
            drawn += task.draw(task.settings.mode, [task.prompts[row] for row, _ in rows], seeds)
        judged = [one for one in drawn if one.images]
        advice = iter(ask_scores(task, [one.prompt for one in judged], [one.images[-1] for one in judged]))
        scored = [next(advice) if one.images else Advice(0.0, {}) for one in drawn]
        return [
            picked(task, drawn[first : first + self.n], scored[first : first + self.n])
            for first in range(0, len(drawn), self.n)
        ]


def picked(task: Task, candidates: Sequence[Trajectory], scored: Sequence[Advice]) -> Trajectory:
    """The candidate with the best score, the first one of equals, at the costs of all."""
    best = max(range(len(candidates)), key=lambda number: scored[number].answer)
    chosen, score = candidates[best], scored[best].answer
    task.progress(f"seed {chosen.seed}: candidate {best + 1} of {len(candidates)} is picked, score {score:.3f}")
    return dataclasses.replace(
        chosen,
        costs=total([*(one.costs for one in candidates), *(one.costs for one in scored)]),
        settings={**chosen.settings, "strategy.picked": best, "strategy.score": score},
    )


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise StrategyError(f"{name}={value}: must be at least {least}")


STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Process, SinglePass, OutsidePlanner, OutsideInspector, BestOfN)
}


def make_strategy(name: str, **settings: Any) -> Strategy:
    """The strategy of that name with its settings.

    Raises:
      StrategyError: there is no such strategy or setting, or a value is out of range.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"strategy {name!r} is none of {', '.join(STRATEGIES)}")
    known = [field.name for field in dataclasses.fields(STRATEGIES[name])]
    for key in settings:
        if key not in known:
            raise StrategyError(f"strategy {name} has no setting {key!r}, only {', '.join(known) or 'none at all'}")
    return STRATEGIES[name](**settings)


def run(strategy: Strategy, task: Task) -> list[Trajectory]:
    """One trajectory per prompt, with the strategy's name and settings among the trajectory's, and the call's seconds.

    Raises:
      SampleError: as ``Sampler``.
      TeacherError: an adviser cannot be asked at all.
    """
    watch = Stopwatch(task.sampler.compiler)
    drawn = strategy(task)
    used = {f"strategy.{key}": value for key, value in dataclasses.asdict(strategy).items()}
    whole = {"batch_seconds": watch.seconds, "compile_seconds": watch.compiling}
    return [
        dataclasses.replace(
            one, settings={"strategy": strategy.name, **used, **one.settings}, costs={**one.costs, **whole}
        )
        for one in drawn
    ]
