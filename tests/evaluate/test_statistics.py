"""Intervals against closed forms, scipy's bootstrap and their coverage; paired differences; prompts and seeds."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.evaluate.statistics import compute_spread, estimate, estimate_difference, estimate_pooled

RNG = np.random.default_rng(3)


def half(one):
    return (one.high - one.low) / 2


def test_a_share_has_the_interval_of_the_binomial():
    right = (np.arange(400) < 300).astype(float)
    one = estimate([right])
    # 1.96 sqrt(p (1 - p) / n), to the 2% that 10,000 draws leave of a quantile.
    assert (one.value, one.n) == (0.75, 400)
    assert half(one) == pytest.approx(1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_the_mean_of_tasks_has_the_variance_of_a_sum():
    tasks = [RNG.random(80) ** 2, RNG.random(200), RNG.random(50) * 3]
    weights = [0.5, 0.2, 0.3]
    variance = sum(w**2 * t.var() / len(t) for w, t in zip(weights, tasks))
    one = estimate(tasks, weights)
    assert one.value == pytest.approx(sum(w * t.mean() for w, t in zip(weights, tasks)))
    assert half(one) == pytest.approx(1.96 * np.sqrt(variance), rel=0.05)
    assert estimate(tasks).value == pytest.approx(np.mean([t.mean() for t in tasks]))
    assert estimate(tasks).n == 330


def test_scipy_draws_the_same_interval():
    tasks = [RNG.exponential(size=30), RNG.random(25) < 0.2]

    def statistic(a, b, axis=-1):
        return (np.mean(a, axis=axis) + np.mean(b, axis=axis)) / 2

    theirs = scipy.stats.bootstrap(
        tuple(t.astype(float) for t in tasks), statistic, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    ours = estimate(tasks)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * (theirs.high - theirs.low))


def test_intervals_have_their_nominal_coverage():
    inside = 0
    for seed in range(200):
        drawn = (np.random.default_rng(seed).random(100) < 0.7).astype(float)
        one = estimate([drawn], seed=seed)
        inside += one.low <= 0.7 <= one.high
    # 0.95 of 200 with a standard deviation of 3.1; the percentile interval of a share is a little narrow.
    assert 178 <= inside <= 199


def test_images_of_a_prompt_are_drawn_together():
    # Four images that agree carry no more information than one.
    right = (np.arange(100) < 40).astype(float)
    together = np.repeat(right[:, None], 4, axis=1)
    assert half(estimate([together.mean(1)])) == pytest.approx(half(estimate([right])))
    assert half(estimate([together.ravel()])) == pytest.approx(half(estimate([right])) / 2, rel=0.1)


def test_a_prompt_is_compared_with_itself():
    """Two prompts swap results: no difference, but a quarter of the draws gives +1 and a quarter -1."""
    found = estimate_difference([np.array([0.0, 1.0])], [np.array([1.0, 0.0])])
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)


def test_pairs_are_drawn_together():
    hard = RNG.random(100)
    better = hard + 0.1
    one = estimate_difference([hard], [better])
    assert (one.value, one.low, one.high) == pytest.approx((0.1, 0.1, 0.1))
    noise = RNG.normal(0.05, 0.2, 400)
    one = estimate_difference([np.zeros(400)], [noise])
    assert half(one) == pytest.approx(1.96 * noise.std() / 20, rel=0.05)
    assert estimate_difference([better], [hard]).value == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="do not have the same prompts"):
        estimate_difference([hard], [better[1:]])


def test_equal_seeds_give_equal_intervals():
    scores = [RNG.random(20)]
    assert estimate(scores, seed=1) == estimate(scores, seed=1) != estimate(scores, seed=2)


def test_one_prompt_has_no_interval():
    one = estimate([np.array([1.0]), np.array([0.0, 1.0])])
    assert (one.value, one.low, one.high, one.n) == (0.75, None, None, 3)
    with pytest.raises(ValueError, match="at least one prompt"):
        estimate([np.array([])])


@settings(max_examples=20)
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=8), min_size=1, max_size=4))
def test_an_interval_stays_within_the_scores(tasks):
    one = estimate([np.array(t) for t in tasks])
    assert min(map(min, tasks)) - 1e-9 <= one.low <= one.high <= max(map(max, tasks)) + 1e-9


def test_the_spread_over_seeds():
    one = compute_spread([0.5, 0.7, 0.6])
    assert (one.mean, one.deviation, one.least, one.most, one.n) == pytest.approx((0.6, 0.1, 0.5, 0.7, 3))
    assert compute_spread([0.5]).deviation is None


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ([[1.0, 1.0, 1.0], [0.0], [0.0, 1.0]], 4 / 6),
        ([[1.0] * 8 + [0.0], [0.0, 0.0, 1.0], [0.0, 1.0], [0.5]], 10.5 / 15),
    ],
)
def test_pooled_is_the_mean_of_all_values_with_prompts_drawn_whole(groups, value):
    found = estimate_pooled([groups])
    assert found.value == pytest.approx(value) and found.n == len(groups)
    # All equally likely draws of that many prompts.
    ways = [np.concatenate(way).mean() for way in itertools.product(groups, repeat=len(groups))]
    low, high = np.quantile(ways, [0.025, 0.975], method="inverted_cdf")
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)
    assert estimate_pooled([[[1.0, 0.0]]]).low is None
    with pytest.raises(ValueError, match="at least one value"):
        estimate_pooled([[[1.0], []]])


def crossed(rng, seeds, prompts, of_seed, of_prompt, of_both):
    """Draw scores [seeds, prompts] about 0: effects of each seed, prompt and pair, with these deviations."""
    both = rng.normal(0, of_both, (seeds, prompts))
    return rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_prompt, prompts) + both


def crossed_variance(scores):
    """Return the variance of a mean over S - 1 seeds and C prompts, drawn independently, from the effects' squares."""
    seeds, prompts = scores.shape
    of_seed, of_prompt = scores.mean(1, keepdims=True) - scores.mean(), scores.mean(0, keepdims=True) - scores.mean()
    of_both = scores - scores.mean() - of_seed - of_prompt
    parts = (of_seed, seeds - 1), (of_prompt, prompts), (of_both, (seeds - 1) * prompts)
    return sum(np.mean(effect**2) / drawn for effect, drawn in parts)


def test_seeds_and_prompts_are_drawn_independently():
    tasks = [crossed(RNG, 30, 80, *deviations) for deviations in ((0.3, 1, 2), (0.1, 2, 1))]
    one = estimate(tasks[:1])
    assert (one.value, one.n) == (pytest.approx(tasks[0].mean()), 80)
    assert half(one) == pytest.approx(1.96 * np.sqrt(crossed_variance(tasks[0])), rel=0.05)
    # Prompts are drawn for each task, seeds for all tasks at once: two tasks with equal scores share only the seeds.
    seeds, prompts = RNG.normal(size=(30, 1)) + np.zeros(80), RNG.normal(size=80) + np.zeros((30, 1))
    assert half(estimate([seeds, seeds])) == pytest.approx(half(estimate([seeds])), rel=0.05)
    assert half(estimate([prompts, prompts])) == pytest.approx(half(estimate([prompts])) / np.sqrt(2), rel=0.05)
    with pytest.raises(ValueError, match=r"the tasks have \[30, 29\] training seeds"):
        estimate([tasks[0], tasks[1][1:]])


def test_with_one_seed_only_prompts_are_drawn():
    scores = [RNG.random(40), RNG.random(20)]
    assert estimate([one[None] for one in scores]) == estimate(scores)


def test_intervals_over_seeds_cover_a_crossed_model():
    """Three seeds with effects a little larger than those of 50 prompts; drawing prompts alone misses them."""
    held = {"prompts and seeds": 0, "prompts": 0}
    for seed in range(200):
        scores = crossed(np.random.default_rng(seed), 3, 50, 0.15, 0.5, 0.3)
        for name, strata in (("prompts and seeds", [scores]), ("prompts", [scores.mean(0)])):
            one = estimate(strata, seed=seed)
            held[name] += one.low <= 0 <= one.high
    # 0.95 of 200 with a standard deviation of 3.1; three seeds are few. Prompts alone: their deviation is 0.075 of
    # 0.114 in all, and 1.96 times 0.075 covers the truth in 0.80 of the cases.
    assert 178 <= held["prompts and seeds"] <= 199
    assert held["prompts"] == pytest.approx(160, abs=3 * np.sqrt(200 * 0.8 * 0.2))


def test_one_seed_fewer_is_drawn_than_there_are():
    seeds = np.array([[0.0], [1.0], [10.0], [20.0]])
    one = estimate([seeds + np.zeros(2)])
    ways = [np.mean(way) for way in itertools.product(seeds[:, 0], repeat=3)]
    assert one.value == 7.75
    assert (one.low, one.high) == pytest.approx(np.quantile(ways, [0.025, 0.975], method="inverted_cdf"))


def test_three_seeds_alone_cover_the_truth_in_three_cases_of_four():
    """They miss it when all lie above or all below: 2 / 2**3."""
    held = 0
    for seed in range(300):
        one = estimate([crossed(np.random.default_rng(seed), 3, 4, 1, 0, 0)], seed=seed)
        held += one.low <= 0 <= one.high
    assert held == pytest.approx(225, abs=3 * np.sqrt(300 * 0.75 * 0.25))


def test_a_difference_over_seeds_is_paired_in_both():
    first, effect = crossed(RNG, 25, 60, 0.5, 1, 0.2), crossed(RNG, 25, 60, 0.1, 0.2, 0.3) + 0.25
    one = estimate_difference([first], [first + effect])
    assert one.value == pytest.approx(effect.mean())
    assert half(one) == pytest.approx(1.96 * np.sqrt(crossed_variance(effect)), rel=0.05)
    base = first[:1]
    for alone in (base, base[0]):
        found = estimate_difference([alone], [base + effect])
        assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high))
    with pytest.raises(ValueError, match=r"have \[24, 25\] training seeds; compare equal numbers, or one"):
        estimate_difference([first[1:]], [first])


def test_pooled_draws_seeds_too():
    """Equally many values of each prompt give a plain mean; a run without values of a prompt gives it no weight."""
    scores = crossed(RNG, 30, 80, 0.3, 1, 0.5)
    one = estimate_pooled([[[value, value] for value in run] for run in scores])
    assert one.value == pytest.approx(scores.mean())
    assert half(one) == pytest.approx(1.96 * np.sqrt(crossed_variance(scores)), rel=0.05)
    found = estimate_pooled([[[1.0, 0.0], []], [[], [1.0]]])
    assert found.value == pytest.approx(2 / 3) and found.n == 2 and 0.5 <= found.low <= found.high <= 1
