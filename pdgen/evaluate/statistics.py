"""How sure a score is: bootstrap intervals by prompt and training seed, differences of two runs, spread over seeds.

A benchmark's prompts are drawn anew, with replacement, within each of its tasks; a prompt keeps its images
together, since they have its difficulty in common. Percentile intervals (Efron and Tibshirani 1993, chapter 13).

Where all prompts of a task score alike, drawing them anew shows no spread: a narrow interval says what these
prompts tell, not that no other prompt could be different.

Where a model was trained from several seeds, seeds are drawn with replacement too, apart from the prompts and for all
tasks at once: each seed answers the same prompts, so the two are crossed (Owen 2007, "The pigeonhole bootstrap"). Of S
seeds S - 1 are drawn, which makes the variance that they add unbiased. What is of one seed and one prompt alone, such
as the noise of an image, counts three times, which is on the safe side. Three seeds still tell little of others: where
nothing but the seeds differs, the interval reaches from the lowest to the highest, and holds the truth in 75 of 100
cases.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
LEVEL = 0.95

# By task, the score of each of its prompts; with several training seeds a row of them for each seed.
Strata = Sequence[Float[np.ndarray, " prompts"] | Float[np.ndarray, "seeds prompts"]]


class Estimate(msgspec.Struct, frozen=True):
    """A score and its interval.

    Attributes:
      value: the score.
      low, high: bounds of the interval; None where a task has a single prompt, which tells nothing of others.
      n: prompts.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def estimate(strata: Strata, weights: Sequence[float] | None = None, seed: int = 0) -> Estimate:
    """The weighted mean of the tasks' means.

    Args:
      strata: by task, one score for each prompt, or for each training seed and prompt; none may be empty.
      weights: of the tasks, in any unit; by default all equal.
      seed: of the draws; equal seeds give equal intervals.

    Raises:
      ValueError: a task has no prompt, or tasks have different numbers of training seeds.
    """
    tasks = [np.atleast_2d(np.asarray(scores, np.float64)) for scores in strata]
    if not tasks or not all(scores.size for scores in tasks):
        raise ValueError("an estimate needs at least one prompt of every task")
    if len({len(scores) for scores in tasks}) > 1:
        raise ValueError(f"the tasks are of {[len(scores) for scores in tasks]} training seeds; give all of each")
    value = float(np.average([scores.mean() for scores in tasks], weights=weights))
    n = sum(scores.shape[1] for scores in tasks)
    if min(scores.shape[1] for scores in tasks) < 2:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    drawn = np.average([_sums(rng, scores)[0] / scores.shape[1] for scores in tasks], axis=0, weights=weights)
    return Estimate(value, *_ends(_over_seeds(rng, drawn)[0]), n)


def _sums(
    rng: np.random.Generator, *tables: Float[np.ndarray, "seeds prompts"]
) -> list[Float[np.ndarray, "seeds resamples"]]:
    """The sums over prompts drawn anew, the same ones for each seed and table."""
    prompts = tables[0].shape[1]
    drawn = rng.integers(prompts, size=(RESAMPLES, prompts))
    return [np.stack([row[drawn].sum(1) for row in table]) for table in tables]


def _over_seeds(
    rng: np.random.Generator, *tables: Float[np.ndarray, "seeds resamples"]
) -> list[Float[np.ndarray, " resamples"]]:
    """The means over seeds drawn anew, the same ones for each table: one fewer than there are, see above."""
    seeds = len(tables[0])
    drawn = rng.integers(seeds, size=(max(1, seeds - 1), RESAMPLES))
    return [np.take_along_axis(table, drawn, 0).mean(0) for table in tables]


def _ends(drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def pooled(runs: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> Estimate:
    """The mean of all values, of which every prompt has its own number (a ratio of sums).

    Args:
      runs: by training seed and prompt its values, the same prompts in all runs; a prompt may have none in some runs,
        but not in all. Prompts are drawn anew with all their values; a draw without any is left out.
      seed: of the draws.

    Raises:
      ValueError: there is no prompt, or one without values.
    """
    counts = np.array([[len(values) for values in run] for run in runs], np.float64)
    sums = np.array([[sum(values) for values in run] for run in runs], np.float64)
    if not counts.size or not counts.sum(0).all():
        raise ValueError("an estimate needs at least one value of every prompt")
    value, n = float(sums.sum() / counts.sum()), counts.shape[1]
    if n < 2:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    summed, counted = _over_seeds(rng, *_sums(rng, sums, counts))
    return Estimate(value, *_ends(summed[counted > 0] / counted[counted > 0]), n)


def difference(first: Strata, second: Strata, weights: Sequence[float] | None = None, seed: int = 0) -> Estimate:
    """How much more the second run scores than the first on the same prompts, in the same order.

    The prompts are drawn for both runs together, so that what makes a prompt hard for both does not widen the
    interval; so are training seeds, where both have them. A run of one seed is compared with each of the other's: the
    interval then says nothing of other seeds of that one run.

    Raises:
      ValueError: the runs have other tasks or numbers of prompts, or different numbers of seeds above one.
    """
    pairs = [[np.atleast_2d(scores) for scores in strata] for strata in (first, second)]
    sizes = [[scores.shape[1] for scores in strata] for strata in pairs]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the runs are not of the same prompts: {sizes[0]} and {sizes[1]} prompts by task")
    seeds = {len(scores) for strata in pairs for scores in strata}
    if len(seeds - {1}) > 1:
        raise ValueError(f"the runs are of {sorted(seeds)} training seeds; compare as many, or one with several")
    return estimate([np.subtract(b, a) for a, b in zip(*pairs)], weights, seed)


class Spread(msgspec.Struct, frozen=True):
    """A score over several seeds: its mean, its standard deviation over them (None of one), extremes, how many."""

    mean: float
    deviation: float | None
    least: float
    most: float
    n: int


def spread(scores: Float[np.ndarray, " seeds"] | Sequence[float]) -> Spread:
    """The spread of the same score measured once for each seed; the deviation is of a sample (n - 1)."""
    scores = np.asarray(scores, np.float64)
    deviation = float(scores.std(ddof=1)) if len(scores) > 1 else None
    return Spread(float(scores.mean()), deviation, float(scores.min()), float(scores.max()), len(scores))
