"""Strategies that draw candidates and let a verifier pick: at the end, at every step, or while they are denoised."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pdgen.sample.batch import Batch
from pdgen.sample.drawing import Drawing
from pdgen.sample.strategies.task import (
    Advice,
    Costs,
    StrategyError,
    Task,
    ask_scores,
    at_least,
    candidate_seed,
    check_pictures,
    total,
)
from pdgen.sequence.trajectory import Mode, Trajectory


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """``n`` full trajectories of the settings' mode, of which the verifier picks by the last image.

    The result has the seed of the candidate that was picked.

    Attributes:
      n: candidates, at least 1; the first has the trajectory's own seed.
    """

    name: ClassVar[str] = "best_of_n"
    n: int = 4

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, task.settings.mode, task.advisers.verifier)
        seeds = [candidate_seed(seed, number) for seed in task.seeds for number in range(self.n)]
        prompts = [prompt for prompt in task.prompts for _ in range(self.n)]
        drawn = task.draw(task.settings.mode, prompts, seeds)
        scored = _scored(task, drawn)
        return [self._pick(task, drawn[n : n + self.n], scored[n : n + self.n]) for n in range(0, len(drawn), self.n)]

    def _pick(self, task: Task, candidates: Sequence[Trajectory], scored: Sequence[Advice]) -> Trajectory:
        best = _best(scored)
        costs = total(one.costs for one in (*candidates, *scored))
        return _picked(task, candidates[best], scored[best].answer, costs)


def _scored(task: Task, candidates: Sequence[Trajectory]) -> list[Advice]:
    """The verifier's scores of the last images, 0 where there is none."""
    drawn = [one for one in candidates if one.images]
    advice = iter(ask_scores(task, [one.prompt for one in drawn], [one.images[-1] for one in drawn]))
    return [next(advice) if one.images else Advice(0.0, {}) for one in candidates]


def _best(scored: Sequence[Advice]) -> int:
    """The place of the best score, the first of equals."""
    return max(range(len(scored)), key=lambda number: scored[number].answer)


def _picked(task: Task, chosen: Trajectory, score: float, costs: Costs) -> Trajectory:
    """What the verifier chose, at the costs of all."""
    task.progress(f"seed {chosen.seed}: picked, score {score:.3f}")
    return dataclasses.replace(chosen, costs=costs, settings={**chosen.settings, "strategy.score": score})


@dataclasses.dataclass
class _Search:
    """What becomes of one trajectory's candidates.

    Attributes:
      seeds: of the candidates.
      shared: what the history that all candidates begin with has cost.
      spent: all other costs so far.
    """

    prompt: str
    seed: int
    seeds: list[int]
    shared: Costs = dataclasses.field(default_factory=dict)
    spent: list[Costs] = dataclasses.field(default_factory=list)


def _in_parts(
    task: Task, mode: Mode, n: int, drawn: Callable[[Task, Batch, Sequence[_Search]], list[Trajectory]]
) -> list[Trajectory]:
    """``drawn`` of as many trajectories at a time as have room for all their candidates in rows that work together.

    In its batch slot n * place + c holds candidate c of the trajectory at that place.
    """
    settings = task.sampler.grouped(dataclasses.replace(task.settings, mode=mode), n * len(task.prompts))
    searches = [
        _Search(prompt, seed, [candidate_seed(seed, number) for number in range(n)])
        for prompt, seed in zip(task.prompts, task.seeds, strict=True)
    ]
    results, count = [], max(1, settings.together // n)
    for first in range(0, len(searches), count):
        part = searches[first : first + count]
        prompts, seeds = [one.prompt for one in part for _ in range(n)], [seed for one in part for seed in one.seeds]
        batch = task.sampler.batch(task.sampler.starts(prompts, seeds, settings), settings, task.progress)
        results += drawn(task, batch, part)
    return results


@dataclasses.dataclass(frozen=True)
class StepwiseBestOfN:
    """A process trajectory of which the verifier picks every step among ``n`` candidates, drawn side by side.

    A step is what leads to the next image. All candidates begin it with the same history, each with a seed of its own;
    one that ends instead is judged by its last image, and ends the trajectory if it is picked.

    Attributes:
      n: candidates, at least 1.
    """

    name: ClassVar[str] = "stepwise_best_of_n"
    n: int = 4

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, "process", task.advisers.verifier)
        return _in_parts(task, "process", self.n, self._steps)

    def _steps(self, task: Task, batch: Batch, searches: Sequence[_Search]) -> list[Trajectory]:
        """All steps of some trajectories; those that have ended leave their places to the others."""
        ended: dict[int, Trajectory] = {}
        while going := [number for number in range(len(searches)) if number not in ended]:
            _to_next_image(batch)
            candidates = [batch.trajectory(slot) for slot in range(self.n * len(going))]
            scored = _scored(task, candidates)
            slots, seeds = [], []
            for number, first in zip(going, range(0, len(candidates), self.n)):
                search = searches[number]
                own, advice = (each[first : first + self.n] for each in (candidates, scored))
                search.spent += [_less(one.costs, search.shared) for one in own] + [one.costs for one in advice]
                best = _best(advice)
                if own[best].stop_reason is not None:
                    one = dataclasses.replace(own[best], seed=search.seed)
                    ended[number] = _picked(task, one, advice[best].answer, total(search.spent))
                    continue
                task.progress(f"seed {search.seed}: candidate {best + 1} is picked, score {advice[best].answer:.3f}")
                search.shared = own[best].costs
                slots += [first + best] * self.n
                seeds += search.seeds
            if slots:
                batch.take(slots, seeds)
        return [ended[number] for number in range(len(searches))]


def _to_next_image(batch: Batch) -> None:
    """Every trajectory that has not ended goes on until it has drawn one more image, which is read."""
    waiting = set(batch.going())
    while waiting:
        if texts := [slot for slot in batch.due("text") if slot in waiting]:
            batch.write(texts)
        elif images := [slot for slot in batch.due("image") if slot in waiting]:
            batch.draw(images)
            waiting -= set(images)
        batch.settle()
        waiting &= set(batch.going())


def _less(costs: Costs, before: Costs) -> Costs:
    return {name: value - before.get(name, 0.0) for name, value in costs.items()}


@dataclasses.dataclass(frozen=True)
class Parm:
    """Single-pass candidates, judged while they are denoised: the hopeless stop, of the rest the verifier picks.

    After the PARM of "Can We Generate Images with CoT?" (Guo et al. 2025), with the verifier's score of the estimated
    clean image in the place of its own two classifiers. The result has the seed of the candidate that was picked.

    Attributes:
      n: candidates, at least 1; the first has the trajectory's own seed.
      judged: shares of the steps, ascending within (0, 1), after which all candidates left are judged.
      keep: the share of them that goes on, within (0, 1], rounded up.
    """

    name: ClassVar[str] = "parm"
    n: int = 20
    judged: tuple[float, ...] = (0.25, 0.5, 0.75)
    keep: float = 0.5

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        if list(self.judged) != sorted(set(self.judged)) or not all(0 < share < 1 for share in self.judged):
            raise StrategyError(f"judged={self.judged}: must ascend within (0, 1)")
        if not 0 < self.keep <= 1:
            raise StrategyError(f"keep={self.keep}: must be above 0 and at most 1")

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, "single_pass", task.advisers.verifier)
        return _in_parts(task, "single_pass", self.n, self._denoised)

    def _denoised(self, task: Task, batch: Batch, searches: Sequence[_Search]) -> list[Trajectory]:
        """Some trajectories, all their candidates side by side."""
        drawing = batch.begin(range(self.n * len(searches)))
        for step in sorted({max(1, round(share * drawing.steps)) for share in self.judged} - {drawing.steps}):
            drawing.advance(step)
            self._drop(task, drawing, searches)
        kept = sorted(drawing.slots)
        drawing.finish()
        batch.settle()
        candidates = [batch.trajectory(slot) for slot in range(self.n * len(searches))]
        scored = dict(zip(kept, _scored(task, [candidates[slot] for slot in kept]), strict=True))
        results = []
        for number, search in enumerate(searches):
            slots = [slot for slot in kept if slot // self.n == number]
            best = slots[_best([scored[slot] for slot in slots])]
            costs = [*search.spent, *(scored[slot].costs for slot in slots)]
            costs += [one.costs for slot, one in enumerate(candidates) if slot // self.n == number]
            results.append(_picked(task, candidates[best], scored[best].answer, total(costs)))
        return results

    def _drop(self, task: Task, drawing: Drawing, searches: Sequence[_Search]) -> None:
        """Gives up the worst of each trajectory's candidates."""
        estimates = dict(sorted(drawing.estimates().items()))
        prompts = [searches[slot // self.n].prompt for slot in estimates]
        scored = dict(zip(estimates, ask_scores(task, prompts, list(estimates.values())), strict=True))
        going = []
        for number, search in enumerate(searches):
            slots = [slot for slot in scored if slot // self.n == number]
            search.spent += [scored[slot].costs for slot in slots]
            going += sorted(slots, key=lambda slot: -scored[slot].answer)[: math.ceil(self.keep * len(slots))]
        drawing.keep(going)
        task.progress(f"step {drawing.step} of {drawing.steps}: {len(going)} of {len(scored)} candidates go on")
