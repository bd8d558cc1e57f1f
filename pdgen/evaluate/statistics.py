"""How sure a score is: bootstrap intervals by prompt, differences of two runs, spread over seeds.

A benchmark's prompts are drawn anew, with replacement, within each of its tasks; a prompt keeps its images
together, since they have its difficulty in common. Percentile intervals (Efron and Tibshirani 1993, chapter 13).

Where all prompts of a task score alike, drawing them anew shows no spread: a narrow interval says what these
prompts tell, not that no other prompt could be different.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
LEVEL = 0.95

Strata = Sequence[Float[np.ndarray, " prompts"]]  # by task, the score of each of its prompts


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
      strata: by task, one score for each prompt; none may be empty.
      weights: of the tasks, in any unit; by default all equal.
      seed: of the draws; equal seeds give equal intervals.
    """
    strata = [np.asarray(scores, np.float64) for scores in strata]
    if not strata or not all(len(scores) for scores in strata):
        raise ValueError("an estimate needs at least one prompt of every task")
    value = float(np.average([scores.mean() for scores in strata], weights=weights))
    n = sum(map(len, strata))
    if min(map(len, strata)) < 2:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    drawn = np.average([_means(rng, scores) for scores in strata], axis=0, weights=weights)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def _means(rng: np.random.Generator, scores: Float[np.ndarray, " prompts"]) -> Float[np.ndarray, " resamples"]:
    return scores[rng.integers(len(scores), size=(RESAMPLES, len(scores)))].mean(1)


def pooled(groups: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of all values, of which every prompt has its own number (a ratio of sums).

    Args:
      groups: by prompt, at least one value each; prompts are drawn anew, with all their values.
      seed: of the draws.
    """
    if not groups or not all(map(len, groups)):
        raise ValueError("an estimate needs at least one value of every prompt")
    sums, counts = np.array([sum(group) for group in groups], np.float64), np.array([len(group) for group in groups])
    value = float(sums.sum() / counts.sum())
    if len(groups) < 2:
        return Estimate(value, None, None, len(groups))
    drawn = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(groups))


def difference(first: Strata, second: Strata, weights: Sequence[float] | None = None, seed: int = 0) -> Estimate:
    """How much more the second run scores than the first on the same prompts, in the same order.

    The prompts are drawn for both runs together, so that what makes a prompt hard for both does not widen the
    interval.

    Raises:
      ValueError: the runs have other tasks or numbers of prompts.
    """
    sizes = [[len(scores) for scores in strata] for strata in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the runs are not of the same prompts: {sizes[0]} and {sizes[1]} prompts by task")
    return estimate([np.subtract(b, a) for a, b in zip(first, second)], weights, seed)


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
