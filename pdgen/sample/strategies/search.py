"""Strategies that draw candidates for a verifier to select: at the end, at every step, or while they are denoised."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pdgen.sample.batch import TrajectoryBatch
from pdgen.sample.denoising import Denoising
from pdgen.sample.strategies.task import (
    Costs,
    Score,
    StrategyError,
    Task,
    check_at_least,
    check_pictures,
    derive_seed,
    score_pictures,
    sum_costs,
)
from pdgen.sample.strategies.verifier import load_verifier
from pdgen.sequence.trajectory import Mode, Trajectory


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """``n`` full trajectories of the settings' mode; the verifier selects one by its last image.

    The result has the seed of the selected candidate.

    Attributes:
      n: candidates, at least 1; the first has the trajectory's own seed.
    """

    name: ClassVar[str] = "best_of_n"
    n: int = 4

    def __post_init__(self) -> None:
        check_at_least("n", self.n, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, task.settings.mode, task.advisers.verifier)
        seeds = [derive_seed(seed, number) for seed in task.seeds for number in range(self.n)]
        prompts = [prompt for prompt in task.prompts for _ in range(self.n)]
        drawn = task.draw(task.settings.mode, prompts, seeds)
        scores = _score_last_images(task, drawn)
        return [self._select(task, drawn[n : n + self.n], scores[n : n + self.n]) for n in range(0, len(drawn), self.n)]

    def _select(self, task: Task, candidates: Sequence[Trajectory], scores: Sequence[Score]) -> Trajectory:
        best = _find_best(scores)
        costs = sum_costs(one.costs for one in (*candidates, *scores))
        return _make_result(task, candidates[best], scores[best], costs)


def _score_last_images(task: Task, candidates: Sequence[Trajectory]) -> list[Score]:
    """Let the verifier score the last images; a candidate without an image has 0."""
    drawn = [one for one in candidates if one.images]
    scores = iter(score_pictures(task, [one.prompt for one in drawn], [one.images[-1] for one in drawn]))
    return [next(scores) if one.images else Score(0.0, {}) for one in candidates]


def _find_best(scores: Sequence[Score]) -> int:
    """Return the index of the best score, the first of equals."""
    return max(range(len(scores)), key=lambda number: scores[number].value)


def _make_result(task: Task, selected: Trajectory, score: Score, costs: Costs) -> Trajectory:
    """Return the selected candidate with its score and the costs of all candidates."""
    task.progress(f"seed {selected.seed}: picked, score {score.value:.3f}")
    return dataclasses.replace(selected, costs=costs, settings={**selected.settings, "strategy.score": score.value})


@dataclasses.dataclass
class _Search:
    """The search for one trajectory.

    Attributes:
      seeds: of the candidates.
      shared: costs of the history that all candidates share.
      spent: all other costs so far.
    """

    prompt: str
    seed: int
    seeds: list[int]
    shared: Costs = dataclasses.field(default_factory=dict)
    spent: list[Costs] = dataclasses.field(default_factory=list)


def _run_in_parts(
    task: Task, mode: Mode, n: int, search: Callable[[Task, TrajectoryBatch, Sequence[_Search]], list[Trajectory]]
) -> list[Trajectory]:
    """Call ``search`` for as many trajectories at a time as fit, with all ``n`` candidates, into ``batch_size`` rows.

    Slot n * place + c of its batch holds candidate c of the trajectory at that place.
    """
    settings = dataclasses.replace(task.settings, mode=mode)
    settings = task.sampler.resolve_batch_size(settings, n * len(task.prompts))
    searches = [
        _Search(prompt, seed, [derive_seed(seed, number) for number in range(n)])
        for prompt, seed in zip(task.prompts, task.seeds, strict=True)
    ]
    results, count = [], max(1, settings.batch_size // n)
    for first in range(0, len(searches), count):
        part = searches[first : first + count]
        prompts, seeds = [one.prompt for one in part for _ in range(n)], [seed for one in part for seed in one.seeds]
        starts = task.sampler.make_starts(prompts, seeds, settings)
        results += search(task, task.sampler.make_batch(starts, settings, task.progress), part)
    return results


@dataclasses.dataclass(frozen=True)
class StepwiseBestOfN:
    """A process trajectory; the verifier selects every step among ``n`` candidates, drawn side by side.

    A step leads to the next image. All candidates begin it with the same history, each with its own seed. A candidate
    that ends instead is scored by its last image, and ends the trajectory if it is selected.

    Attributes:
      n: candidates, at least 1.
    """

    name: ClassVar[str] = "stepwise_best_of_n"
    n: int = 4

    def __post_init__(self) -> None:
        check_at_least("n", self.n, 1)

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        check_pictures(task, "process", task.advisers.verifier)
        return _run_in_parts(task, "process", self.n, self._search)

    def _search(self, task: Task, batch: TrajectoryBatch, searches: Sequence[_Search]) -> list[Trajectory]:
        """Run all steps of some trajectories; those that have ended leave their slots to the others."""
        ended: dict[int, Trajectory] = {}
        while active := [number for number in range(len(searches)) if number not in ended]:
            _draw_next_images(batch)
            candidates = [batch.make_trajectory(slot) for slot in range(self.n * len(active))]
            all_scores = _score_last_images(task, candidates)
            slots, seeds = [], []
            for number, first in zip(active, range(0, len(candidates), self.n)):
                search = searches[number]
                own, scores = candidates[first : first + self.n], all_scores[first : first + self.n]
                search.spent += [_subtract(one.costs, search.shared) for one in own] + [one.costs for one in scores]
                best = _find_best(scores)
                if own[best].stop_reason is not None:
                    selected = dataclasses.replace(own[best], seed=search.seed)
                    ended[number] = _make_result(task, selected, scores[best], sum_costs(search.spent))
                    continue
                task.progress(f"seed {search.seed}: candidate {best + 1} is picked, score {scores[best].value:.3f}")
                search.shared = own[best].costs
                slots += [first + best] * self.n
                seeds += search.seeds
            if slots:
                batch.copy_rows(slots, seeds)
        return [ended[number] for number in range(len(searches))]


def _draw_next_images(batch: TrajectoryBatch) -> None:
    """Continue every active trajectory until it has drawn one more image and read it, or has ended."""
    waiting = set(batch.list_active())
    while waiting:
        if texts := [slot for slot in batch.list_due("text") if slot in waiting]:
            batch.write_texts(texts)
        elif images := [slot for slot in batch.list_due("image") if slot in waiting]:
            batch.draw_images(images)
            waiting -= set(images)
        batch.settle()
        waiting &= set(batch.list_active())


def _subtract(costs: Costs, before: Costs) -> Costs:
    return {name: value - before.get(name, 0.0) for name, value in costs.items()}


@dataclasses.dataclass(frozen=True)
class Parm:
    """Single-pass candidates, scored while they are denoised: the worst are dropped, the verifier selects the result.

    After the PARM of "Can We Generate Images with CoT?" (Guo et al. 2025); the verifier's score of the estimated clean
    image replaces its two classifiers. The result has the seed of the selected candidate.

    Attributes:
      n: candidates, at least 1; the first has the trajectory's own seed.
      judged: shares of the steps, ascending within (0, 1), after which the remaining candidates are scored.
      keep: the share of them that continues, within (0, 1], rounded up.
      verifier: checkpoint of a learned verifier (configs/shapes_verifier.py); "" asks the task's.
    """

    name: ClassVar[str] = "parm"
    n: int = 20
    judged: tuple[float, ...] = (0.25, 0.5, 0.75)
    keep: float = 0.5
    verifier: str = ""

    def __post_init__(self) -> None:
        check_at_least("n", self.n, 1)
        if list(self.judged) != sorted(set(self.judged)) or not all(0 < share < 1 for share in self.judged):
            raise StrategyError(f"judged={self.judged}: must ascend within (0, 1)")
        if not 0 < self.keep <= 1:
            raise StrategyError(f"keep={self.keep}: must be above 0 and at most 1")

    def __call__(self, task: Task) -> list[Trajectory]:
        """See ``Strategy``."""
        if self.verifier:
            learned = load_verifier(self.verifier)
            task = dataclasses.replace(task, advisers=task.advisers._replace(verifier=learned))
        check_pictures(task, "single_pass", task.advisers.verifier)
        return _run_in_parts(task, "single_pass", self.n, self._search)

    def _search(self, task: Task, batch: TrajectoryBatch, searches: Sequence[_Search]) -> list[Trajectory]:
        """Draw the candidates of some trajectories side by side and select one of each."""
        denoising = batch.begin_images(range(self.n * len(searches)))
        for step in sorted({max(1, round(share * denoising.steps)) for share in self.judged} - {denoising.steps}):
            denoising.advance(step)
            self._drop_worst(task, denoising, searches)
        remaining = sorted(denoising.slots)
        batch.finish_images(denoising)
        batch.settle()
        candidates = [batch.make_trajectory(slot) for slot in range(self.n * len(searches))]
        scores = dict(zip(remaining, _score_last_images(task, [candidates[slot] for slot in remaining]), strict=True))
        results = []
        for number, search in enumerate(searches):
            slots = [slot for slot in remaining if slot // self.n == number]
            best = slots[_find_best([scores[slot] for slot in slots])]
            costs = [*search.spent, *(scores[slot].costs for slot in slots)]
            costs += [one.costs for slot, one in enumerate(candidates) if slot // self.n == number]
            results.append(_make_result(task, candidates[best], scores[best], sum_costs(costs)))
        return results

    def _drop_worst(self, task: Task, denoising: Denoising, searches: Sequence[_Search]) -> None:
        """Score the estimated images and drop the worst of each trajectory's candidates."""
        estimates = dict(sorted(denoising.decode_estimates().items()))
        prompts = [searches[slot // self.n].prompt for slot in estimates]
        scores = dict(zip(estimates, score_pictures(task, prompts, list(estimates.values())), strict=True))
        kept = []
        for number, search in enumerate(searches):
            slots = [slot for slot in scores if slot // self.n == number]
            search.spent += [scores[slot].costs for slot in slots]
            kept += sorted(slots, key=lambda slot: -scores[slot].value)[: math.ceil(self.keep * len(slots))]
        denoising.keep(kept)
        task.progress(f"step {denoising.step} of {denoising.steps}: {len(kept)} of {len(scores)} candidates continue")
