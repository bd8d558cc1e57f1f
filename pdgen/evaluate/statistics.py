"""Bootstrap intervals over prompts and training seeds, differences of two runs, and the spread over seeds.

The bootstrap resamples a benchmark's prompts with replacement within each task. The images of a prompt stay together,
since they share its difficulty. Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).

If all prompts of a task have the same score, resampling shows no spread. The narrow interval then describes these
prompts only; other prompts may differ.

If a model was trained from several seeds, the seeds are resampled too, independently of the prompts and for all tasks
at once. Each seed answers the same prompts, so the two factors are crossed (Owen 2007, "The pigeonhole bootstrap"). Of
S seeds S - 1 are drawn, so that the variance that they add is unbiased. Noise of one seed and one prompt, such as the
noise of an image, counts three times, which is conservative. Three seeds still say little about other seeds: if only
the seeds differ, the interval spans the lowest to the highest and covers the truth in 75 of 100 cases.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float, Shaped

RESAMPLES = 10_000
LEVEL = 0.95

# By task, the score of each of its prompts: floats, ints or bools. With several training seeds there is a row for each.
# Tasks have different numbers of prompts; a leading underscore keeps the shape check from comparing them.
Strata = Sequence[Shaped[np.ndarray, " _prompts"] | Shaped[np.ndarray, "_seeds _prompts"]]


class Estimate(msgspec.Struct, frozen=True):
    """A score of n prompts and the bounds of its interval, which are None if a task has a single prompt."""

    value: float
    low: float | None
    high: float | None
    n: int


def estimate(strata: Strata, weights: Sequence[float] | None = None, seed: int = 0) -> Estimate:
    """Compute the weighted mean of the tasks' means.

    Args:
      strata: By task, one score for each prompt, or for each training seed and prompt. None may be empty.
      weights: The tasks' weights, in any unit. By default all are equal.
      seed: Equal seeds give equal intervals.

    Raises:
      ValueError: A task has no prompt, or tasks have different numbers of training seeds.
    """
    tasks = [np.atleast_2d(np.asarray(scores, np.float64)) for scores in strata]
    if not tasks or not all(scores.size for scores in tasks):
        raise ValueError("an estimate needs at least one prompt of every task")
    if len({len(scores) for scores in tasks}) > 1:
        raise ValueError(f"the tasks have {[len(scores) for scores in tasks]} training seeds; give equally many")
    value = float(np.average([scores.mean() for scores in tasks], weights=weights))
    n = sum(scores.shape[1] for scores in tasks)
    if min(scores.shape[1] for scores in tasks) < 2:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    resampled = np.average(
        [_resample_prompts(rng, scores)[0] / scores.shape[1] for scores in tasks], axis=0, weights=weights
    )
    return Estimate(value, *_compute_interval(_resample_seeds(rng, resampled)[0]), n)


def _resample_prompts(
    rng: np.random.Generator, *tables: Float[np.ndarray, "seeds prompts"]
) -> list[Float[np.ndarray, "seeds resamples"]]:
    """Return the tables' sums over resampled prompts, which are the same for each seed and table."""
    prompts = tables[0].shape[1]
    drawn = rng.integers(prompts, size=(RESAMPLES, prompts))
    return [np.stack([row[drawn].sum(1) for row in table]) for table in tables]


def _resample_seeds(
    rng: np.random.Generator, *tables: Float[np.ndarray, "seeds resamples"]
) -> list[Float[np.ndarray, " resamples"]]:
    """Return the means over resampled seeds, the same for each table. One fewer is drawn than there are."""
    seeds = len(tables[0])
    drawn = rng.integers(seeds, size=(max(1, seeds - 1), RESAMPLES))
    return [np.take_along_axis(table, drawn, 0).mean(0) for table in tables]


def _compute_interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate_pooled(runs: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> Estimate:
    """Compute the mean of all values, where prompts may have different numbers of values (a ratio of sums).

    Args:
      runs: By training seed and prompt its values, with the same prompts in all runs. A prompt may have no value in
        some runs, but not in all. A prompt is resampled with all its values. A resample without values is dropped.
      seed: As for ``estimate``.

    Raises:
      ValueError: There is no prompt, or a prompt has no value.
    """
    counts = np.array([[len(values) for values in run] for run in runs], np.float64)
    sums = np.array([[sum(values) for values in run] for run in runs], np.float64)
    if not counts.size or not counts.sum(0).all():
        raise ValueError("an estimate needs at least one value of every prompt")
    value, n = float(sums.sum() / counts.sum()), counts.shape[1]
    if n < 2:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    total, count = _resample_seeds(rng, *_resample_prompts(rng, sums, counts))
    return Estimate(value, *_compute_interval(total[count > 0] / count[count > 0]), n)


def estimate_difference(
    first: Strata, second: Strata, weights: Sequence[float] | None = None, seed: int = 0
) -> Estimate:
    """Compute how much higher the second run scores than the first, on the same prompts in the same order.

    Prompts are resampled for both runs together, so that a prompt's difficulty does not widen the interval. So are
    training seeds if both runs have several. A run of one seed is compared with each seed of the other. The interval
    then does not cover other seeds of that one run.

    The scores of both runs, weights and seed are as for ``estimate``.

    Raises:
      ValueError: The runs have other tasks or numbers of prompts, or different numbers of seeds above one.
    """
    pairs = [[np.atleast_2d(scores) for scores in strata] for strata in (first, second)]
    sizes = [[scores.shape[1] for scores in strata] for strata in pairs]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the runs do not have the same prompts: {sizes[0]} and {sizes[1]} prompts by task")
    seeds = {len(scores) for strata in pairs for scores in strata}
    if len(seeds - {1}) > 1:
        raise ValueError(f"the runs have {sorted(seeds)} training seeds; compare equal numbers, or one with several")
    return estimate([np.subtract(b, a) for a, b in zip(*pairs)], weights, seed)


class Spread(msgspec.Struct, frozen=True):
    """A score over n seeds: mean, standard deviation (None for a single seed), lowest and highest score."""

    mean: float
    deviation: float | None
    least: float
    most: float
    n: int


def compute_spread(scores: Float[np.ndarray, " seeds"] | Sequence[float]) -> Spread:
    """Compute the spread of a score that was measured once for each seed. The deviation is a sample's (n - 1)."""
    scores = np.asarray(scores, np.float64)
    deviation = float(scores.std(ddof=1)) if len(scores) > 1 else None
    return Spread(float(scores.mean()), deviation, float(scores.min()), float(scores.max()), len(scores))
