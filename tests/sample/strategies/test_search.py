"""Strategies on the golden nano model: selection, continuation, and evaluations counted by hand.

Every Euler step of the settings lies in the guidance interval: two branches without an image in the context, three
with one. All batches have four slots and work on two rows at a time, so that they share compiled functions.
"""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.flow.rectified import schedule
from pdgen.models import autoencoder
from pdgen.sample.image import make_grid
from pdgen.sample.strategies.outside import OutsideInspector, OutsidePlanner
from pdgen.sample.strategies.search import BestOfN, Parm, StepwiseBestOfN
from pdgen.sample.strategies.table import Process, SinglePass, make_strategy, run_strategy
from pdgen.sample.strategies.task import StrategyError, Task, derive_seed
from pdgen.sequence.images import from_pixels, unpatchify
from pdgen.sequence.trajectory import format_plan
from pdgen.teachers.advisers import make_exact_advisers
from tests.sample.conftest import SETTINGS, recording

pytestmark = pytest.mark.slow

PROMPT, SEED = "a red circle left of a blue square", 17
CANDIDATES = [derive_seed(SEED, number) for number in range(4)]
STEPS = 3  # Euler steps of an image
TWO = dataclasses.replace(SETTINGS, max_images=2, batch_size=2)


class Favour:
    """A verifier that scores by a function of the picture and keeps the pictures."""

    name = "favour"

    def __init__(self, score):
        self.of, self.seen = score, []

    def score(self, prompt, picture):
        self.seen.append(picture)
        return self.of(picture)


class TwoSteps:
    """A planner of two steps."""

    name = "two steps"

    def plan(self, prompt):
        return [format_plan("Draw a circle.", "There is a circle."), format_plan("Add a star.", "And a star.")]


def brightness(picture):
    return float(np.mean(picture) / 255)


def task(sampler, seeds=(SEED,), **advisers):
    return Task(sampler, [PROMPT] * len(seeds), seeds, TWO, make_exact_advisers()._replace(**advisers))


def outcome(trajectory):
    """Return all but times, costs and settings."""
    stages = [(stage.stage, getattr(stage, "text", None)) for stage in trajectory.stages]
    return stages, [np.asarray(image).tobytes() for image in trajectory.images], trajectory.stop_reason


def same(picture, image):
    return np.array_equal(picture, np.asarray(image))


@pytest.fixture(scope="module")
def processes(sampler):
    """The trajectory that the model draws from each candidate's seed."""
    return run_strategy(Process(), task(sampler, CANDIDATES))


@pytest.fixture(scope="module")
def singles(sampler):
    """The same in a single pass."""
    return run_strategy(SinglePass(), task(sampler, CANDIDATES))


def recorded(sampler, strategy, given):
    """A strategy's trajectories and the compiled calls."""
    with recording(sampler) as recorder:
        return run_strategy(strategy, given), recorder


def evaluated(record):
    """Count the forward passes of all draws: rows times steps times branches."""
    passes = 0
    for call in record.named("draw"):
        _, _, (first, last), image_guidance = call.static
        passes += len(call.rows) * (last - first) * (3 if image_guidance else 2)
    return passes


def written(record):
    """Count the tokens of all texts."""
    return sum(int(call.result[1].count[place]) for call in record.named("write_text") for place, _ in call.rows)


# Best of n.


def test_best_of_n_is_the_best_of_the_trajectories_of_its_seeds(sampler, processes):
    [best] = run_strategy(BestOfN(n=4), task(sampler, verifier=Favour(brightness)))
    assert outcome(best) == outcome(max(processes, key=lambda one: brightness(one.images[-1])))
    assert best.seed in CANDIDATES
    for name in ("network_evaluations", "guidance_branches", "text_tokens", "prefilled_tokens"):
        assert best.costs[name] == sum(one.costs[name] for one in processes) > 0


# Stepwise.


def test_stepwise_with_equal_scores_is_the_first_candidate_s_trajectory(sampler, processes):
    """The first candidate has the trajectory's own seed, so it equals a trajectory sampled without a search."""
    [stepwise] = run_strategy(StepwiseBestOfN(n=4), task(sampler, verifier=Favour(lambda picture: 0.5)))
    assert outcome(stepwise) == outcome(processes[0])


@pytest.fixture(scope="module")
def stepwise(sampler):
    """The brightest of four at every step, with its verifier and the compiled calls."""
    verifier = Favour(brightness)
    [one], record = recorded(sampler, StepwiseBestOfN(n=4), task(sampler, verifier=verifier))
    return one, verifier, record


def test_the_verifier_selects_every_step_and_all_candidates_continue_from_it(stepwise):
    one, verifier, _ = stepwise
    one.check()
    assert one.seed == SEED and len(one.images) == 2
    for number, image in enumerate(one.images):
        candidates = verifier.seen[4 * number : 4 * number + 4]
        assert len({candidate.tobytes() for candidate in candidates}) == 4
        assert same(max(candidates, key=brightness), image)
    assert one.settings["strategy.score"] == brightness(one.images[-1])


def test_candidates_of_the_second_step_share_the_winner_s_history(stepwise):
    """Their contexts up to the first image are identical, whichever rows they occupied."""
    _, _, record = stepwise
    first, second = [], []
    for call in record.named("draw"):
        slots = [slot for _, slot in call.rows]
        views = [call.state.full.k[:, slot, : call.state.view_length[slot]].tobytes() for slot in slots]
        (second if call.static[-1] else first).extend(views)
    assert len(first) == len(second) == 4
    assert len(set(second)) == 1 and len(next(iter(second))) > len(first[0])


def test_stepwise_costs_are_those_of_all_candidates(stepwise):
    one, verifier, record = stepwise
    assert one.costs["network_evaluations"] == evaluated(record) == 4 * STEPS * 2 + 4 * STEPS * 3
    assert one.costs["guidance_branches"] == 4 * STEPS * 1 + 4 * STEPS * 2
    assert one.costs["text_tokens"] == written(record) > 0
    assert one.costs["questions"] == len(verifier.seen)


def test_a_candidate_that_ends_at_once_gets_the_trajectory_s_seed(sampler):
    """The darkest of two, which is the second."""
    [one] = run_strategy(
        StepwiseBestOfN(n=2), task(sampler, [33], verifier=Favour(lambda picture: -brightness(picture)))
    )
    [alone] = run_strategy(Process(), task(sampler, [derive_seed(33, 1)]))
    assert outcome(one) == outcome(alone) and one.seed == 33


# Several trajectories at once.


@pytest.mark.parametrize("strategy", [StepwiseBestOfN(n=2), Parm(n=2, judged=(0.5,))])
def test_trajectories_searched_together_equal_those_searched_alone(sampler, strategy):
    """Two at a time fill the four rows, and the third has them to itself; one ends before the others."""
    prompts, seeds = [PROMPT, "two cats", PROMPT], [33, 5, SEED]

    def searched(chosen):
        return recorded(
            sampler,
            strategy,
            Task(
                sampler,
                [prompts[n] for n in chosen],
                [seeds[n] for n in chosen],
                dataclasses.replace(TWO, batch_size=4),
                make_exact_advisers()._replace(verifier=Favour(brightness)),
            ),
        )

    together, record = searched([0, 1, 2])
    each = [searched([n]) for n in range(3)]
    for one, prompt, ([alone], _) in zip(together, prompts, each, strict=True):
        assert outcome(one) == outcome(alone) and (one.prompt, one.seed) == (prompt, alone.seed)
        for name in ("network_evaluations", "guidance_branches", "text_tokens", "prefilled_tokens", "questions"):
            assert one.costs[name] == alone.costs[name] > 0 or (name, strategy.name) == ("text_tokens", "parm")
    counts = [sum(len(call.rows) for call in calls.named("draw")) for calls in (record, *(r for _, r in each))]
    assert counts[0] == sum(counts[1:]) and len(record.named("draw")) < sum(len(r.named("draw")) for _, r in each)


# Drawing in stretches.


@pytest.fixture
def clock(monkeypatch):
    """A clock by which every stretch and every decoding takes a second."""
    monkeypatch.setattr("pdgen.sample.denoising.Stopwatch", lambda compiler: types.SimpleNamespace(seconds=1.0))


@pytest.fixture
def drawing(sampler, clock):
    """The first image of four rows, before its first step, and its batch."""
    settings = dataclasses.replace(TWO, mode="single_pass")
    batch = sampler.make_batch(sampler.make_starts([PROMPT] * 4, CANDIDATES, settings), settings)
    return batch.begin_images(range(4)), batch


def test_an_estimate_follows_the_last_velocity(sampler, drawing):
    """x - t v at the current timestep, decoded; at the end the image itself."""
    now, batch = drawing
    grid, coder = make_grid(sampler.model.config, 32, 32), sampler.model.params["autoencoder"]
    for step in (1, 2, STEPS):
        with recording(sampler) as recorder:
            now.advance(step)
        estimates = now.decode_estimates()
        t = schedule(TWO.image.num_timesteps, TWO.image.timestep_shift)[step]
        for call in recorder.named("draw"):
            values = unpatchify(call.result.x - t * call.result.v, grid.latents, sampler.model.config.latent_patch_size)
            pixels = autoencoder.decode(sampler.model.config.autoencoder, coder, jnp.asarray(values))
            for place, slot in call.rows:
                wanted = from_pixels(np.clip(pixels[place], -1, 1))
                assert np.abs(np.asarray(estimates[slot], int) - np.asarray(wanted, int)).max() <= 1
    batch.finish_images(now)
    assert [same(estimates[slot], batch.rows[slot].images[0]) for slot in range(4)] == [True] * 4


def test_an_image_has_the_seconds_of_all_its_stretches(drawing):
    now, batch = drawing
    for step in (1, STEPS):
        now.advance(step)
    batch.finish_images(now)
    assert [row.stages[0].seconds for row in batch.rows.values()] == [3.0] * 4  # two stretches and the decoding


def test_an_abandoned_row_costs_its_seconds(drawing):
    """It costs two stretches and an estimate; the others also cost another stretch and the decoding."""
    now, batch = drawing
    now.advance(1)
    now.decode_estimates()
    now.advance(2)
    now.keep([0, 2])
    batch.finish_images(now)
    assert [row.costs["seconds"] for row in batch.rows.values()] == [5.0, 3.0, 5.0, 3.0]
    assert [row.stages[0].seconds for row in map(batch.rows.get, (0, 2))] == [5.0] * 2


def test_taylorseer_extrapolates_over_a_cut_from_each_row_s_own_steps(sampler):
    """Five full steps and two extrapolated ones: in one stretch, and by two rows from different groups."""
    image = dataclasses.replace(TWO.image, num_timesteps=8, text_scale=1.0, taylorseer=True)
    settings = dataclasses.replace(TWO, mode="single_pass", image=image, keep_latents=True)
    whole = sampler([PROMPT] * 4, CANDIDATES, settings)
    batch = sampler.make_batch(sampler.make_starts([PROMPT] * 4, CANDIDATES, settings), settings)
    now = batch.begin_images(range(4))
    now.advance(5)
    now.keep([1, 2])
    batch.finish_images(now)
    assert [one.costs["network_evaluations"] for one in whole] == [5] * 4
    assert [row.costs["network_evaluations"] for row in batch.rows.values()] == [5] * 4
    for slot in (1, 2):
        [latents] = batch.rows[slot].latents.values()
        np.testing.assert_allclose(latents, whole[slot].latents["01_sketch.png"], atol=1e-4)
        assert np.abs(latents - whole[3 - slot].latents["01_sketch.png"]).max() > 0.1


# PARM.


@pytest.mark.parametrize(("n", "drawn"), [(4, [2, 2, 2, 1]), (3, [2, 1, 2, 1])])
def test_parm_s_stopped_candidates_cost_only_their_steps(sampler, clock, n, drawn):
    """Four or three for a step, two for the next, one for the last; two branches each. All are decoded to be judged."""
    verifier = Favour(brightness)
    strategy = Parm(n=n, judged=(0.3, 0.7), keep=0.5)
    [one], record = recorded(sampler, strategy, task(sampler, verifier=verifier))
    one.check()
    assert one.costs["network_evaluations"] == evaluated(record) == 2 * (n + 2 + 1)
    assert one.costs["guidance_branches"] == n + 2 + 1
    assert one.costs["seconds"] == 2 * (n + 2 + 1)
    assert one.costs["questions"] == len(verifier.seen) == n + 2 + 1
    assert [len(call.rows) for call in record.named("draw")] == drawn
    assert same(verifier.seen[-1], one.images[-1])
    assert one.settings["strategy.judged"] == "0.3 0.7" and one.stop_reason == "finished"


@pytest.mark.parametrize("favourite", [0, 1, 3])
def test_parm_selects_the_candidate_that_the_verifier_prefers(sampler, singles, favourite):
    """The verifier scores likeness to the finished image of that candidate."""
    target = np.asarray(singles[favourite].images[0], np.float32)
    verifier = Favour(lambda picture: 1 - float(np.abs(picture - target).mean()) / 255)
    [one] = run_strategy(Parm(n=4, judged=(0.3, 0.7), keep=0.5), task(sampler, verifier=verifier))
    assert one.seed == CANDIDATES[favourite]
    assert np.abs(np.asarray(one.images[0], np.float32) - target).max() <= 1  # one level, by rounding


def test_parm_judges_no_step_twice_and_never_the_last(sampler, singles):
    """Steps 1 and 2 of 3 are judged; all candidates continue, and the best finished one is selected."""
    strategy = Parm(n=4, judged=(0.1, 0.3, 0.7, 0.99), keep=1.0)
    [one] = run_strategy(strategy, task(sampler, verifier=Favour(brightness)))
    assert one.costs["questions"] == 3 * 4 and one.costs["network_evaluations"] == 4 * STEPS * 2
    assert one.seed == max(singles, key=lambda single: brightness(single.images[0])).seed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"judged": [0.5, 0.2]}, r"judged=\(0.5, 0.2\): must ascend within \(0, 1\)"),
        ({"judged": [1.0]}, "must ascend"),
        ({"keep": 0.0}, "keep=0.0: must be above 0"),
        ({"n": 0}, "n=0: must be at least 1"),
        ({"n": "many"}, "strategy parm: Expected `int`, got `str`"),
    ],
)
def test_impossible_settings(wrong, message):
    with pytest.raises(StrategyError, match=message):
        make_strategy("parm", **wrong)


# Planners and inspectors other than the model.


def test_the_planner_s_first_step_is_drawn_and_the_second_edits_it(sampler):
    given = task(sampler, CANDIDATES[:3], planner=TwoSteps())
    drawn, record = recorded(sampler, OutsidePlanner(), given)
    for one in drawn:
        one.check()
        assert [stage.stage for stage in one.stages] == ["plan", "sketch"] * 2
        assert one.costs["network_evaluations"] == STEPS * 2 + STEPS * 3
    assert evaluated(record) == sum(one.costs["network_evaluations"] for one in drawn)
    edits = [call.static[0].settings for call in record.named("draw") if call.static[-1]]
    for edit in edits:
        assert (edit.image_scale, edit.interval, edit.renorm) == (2.0, (0.0, 1.0), "text_channel")
        assert edit.num_timesteps == STEPS + 1
    firsts = [call for call in record.named("draw") if not call.static[-1]]
    assert {call.static[0].settings for call in firsts} == {TWO.image} and edits


def test_the_inspector_s_critique_separates_draft_and_refinement(sampler, singles):
    drawn = run_strategy(OutsideInspector(), task(sampler, CANDIDATES[:3]))
    for one, draft in zip(drawn, singles):
        one.check()
        assert [stage.stage for stage in one.stages] == ["sketch", "inspect", "refine"]
        assert outcome(one)[1][0] == outcome(draft)[1][0] != outcome(one)[1][1]
        assert one.costs["network_evaluations"] == draft.costs["network_evaluations"] + STEPS * 3
        assert one.costs["prefilled_tokens"] > 2 * draft.costs["prefilled_tokens"]  # the history is read again
