"""Strategies: selected candidates, requests to advisers, and costs counted by hand.

A fake sampler draws pictures of one colour: red is the last byte of the seed, so the right choice is known.
"""

import dataclasses
import types

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdgen.sample.compiled import Compiler
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.outside import OutsideInspector, OutsidePlanner
from pdgen.sample.strategies.table import STRATEGIES, make_strategy, run_strategy
from pdgen.sample.strategies.task import StrategyError, Task, derive_seed
from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, format_plan
from pdgen.teachers.advisers import make_exact_advisers
from pdgen.teachers.protocols import Declined, Verdict

PROMPTS = ["a red circle", "a blue square"]
SEEDS = [7, 1000]


def tint(seed):
    return int(seed) % 256


class FakeSampler(Sampler):
    """A sampler that draws in no time; a trajectory costs as many evaluations as its tint, and a token."""

    def __init__(self):
        self.model = types.SimpleNamespace(compiler=Compiler())
        self.calls, self.keeps_latents = [], False

    def resolve_batch_size(self, settings, rows):
        return settings

    def __call__(self, prompts, seeds, settings, given=None, progress=print):
        self.keeps_latents = settings.keep_latents
        self.calls.append((settings.mode, list(prompts), list(seeds), given))
        rows = zip(prompts, seeds, given or [()] * len(prompts), strict=True)
        return [self.drawn(settings.mode, *row) for row in rows]

    def drawn(self, mode, prompt, seed, given):
        stages = [ImageStage("given", f"{n:02d}_given.png", *image.size) for n, image in enumerate(given, 1)]
        if mode == "process":
            stages.append(TextStage("plan", format_plan("Draw.", "Drawn.")))
        stages.append(ImageStage("sketch", f"{len(given) + 1:02d}_sketch.png", 32, 32))
        images = [*given, PIL.Image.new("RGB", (32, 32), (tint(seed), 0, 0))]
        costs = {"network_evaluations": float(tint(seed)), "text_tokens": 1.0}
        return Trajectory(
            prompt=prompt,
            stages=stages,
            stop_reason="finished",
            seed=seed,
            checkpoint="fake",
            mode=mode,
            images=images,
            costs=costs,
            settings={"max_images": 8, f"guidance.{stages[-1].file}": f"of seed {seed}"},
            latents={stages[-1].file: np.array([seed])} if self.keeps_latents else None,
        )

    def resume_all(self, trajectories, settings, progress=print):
        """Return the same pictures with a little more green."""
        self.calls.append(("resume", [one.stages[-1].text for one in trajectories]))
        return [self.redrawn(one) for one in trajectories]

    def redrawn(self, one):
        red, green, _ = one.images[-1].getpixel((0, 0))
        stage = ImageStage("refine", f"{len(one.images) + 1:02d}_refine.png", 32, 32)
        image = PIL.Image.new("RGB", (32, 32), (red, green + 1, 0))
        return dataclasses.replace(
            one,
            stages=[*one.stages, stage],
            images=[*one.images, image],
            stop_reason="finished",
            costs={"network_evaluations": 1000.0, "text_tokens": 0.0},
        )


class Script:
    """An adviser that answers by a function and records its requests."""

    name = "script"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, *question):
        self.asked.append(question)
        return self.answer(*question)

    plan = critique = score = __call__


def decline(*question):
    raise Declined("no idea")


def task(prompts=PROMPTS, seeds=SEEDS, advisers=None, **changes):
    return Task(FakeSampler(), prompts, seeds, advisers=advisers or make_exact_advisers(), **changes)


def with_adviser(kind, answer):
    return make_exact_advisers()._replace(**{kind: Script(answer)})


def red(picture):
    return int(np.asarray(picture)[0, 0, 0])


# Seeds.


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 99), min_size=2, max_size=2, unique=True))
def test_seeds_of_candidates_are_distinct_and_in_range(seed, numbers):
    seeds = [derive_seed(seed, number) for number in numbers]
    assert seeds == [derive_seed(seed, number) for number in numbers]
    assert seeds[0] != seeds[1] and all(0 <= s < 2**32 for s in seeds)
    assert derive_seed(seed, 0) == seed


def test_seeds_of_candidates_never_change():
    """numpy's SeedSequence gives the same streams in every version."""
    assert [derive_seed(7, n) for n in range(3)] == [
        7,
        *(int(np.random.SeedSequence([7, n]).generate_state(1)[0]) for n in (1, 2)),
    ]


# Process and single pass.


@pytest.mark.parametrize("name", ["process", "single_pass", "think"])
def test_the_model_alone(name):
    given_task = task()
    drawn = run_strategy(make_strategy(name), given_task)
    assert given_task.sampler.calls == [(name, PROMPTS, SEEDS, None)]
    assert [one.costs["network_evaluations"] for one in drawn] == [tint(seed) for seed in SEEDS]
    settings = {key: value for key, value in drawn[0].settings.items() if not key.startswith("guidance.")}
    assert settings == {"strategy": name, "max_images": 8}
    assert drawn[0].costs["batch_seconds"] > 0 and drawn[0].costs["compile_seconds"] == 0


# Best of n.


@pytest.mark.parametrize("best", [0, 2, 3])
def test_the_verifier_s_favourite_is_selected_at_the_cost_of_all(best):
    seeds = [[derive_seed(seed, n) for n in range(4)] for seed in SEEDS]
    favourites = {tint(row[best]) for row in seeds}
    advisers = with_adviser("verifier", lambda prompt, picture: 0.9 if red(picture) in favourites else 0.2)
    given_task = task(advisers=advisers, settings=SampleSettings(mode="single_pass"))
    drawn = run_strategy(make_strategy("best_of_n", n=4), given_task)
    assert [one.seed for one in drawn] == [row[best] for row in seeds]
    assert [tint(one.seed) for one in drawn] == [red(one.images[-1]) for one in drawn]
    for one, row in zip(drawn, seeds):
        assert one.costs["network_evaluations"] == sum(tint(seed) for seed in row)
        assert (one.costs["text_tokens"], one.costs["questions"], one.costs["declined"]) == (4, 4, 0)
        assert (one.settings["strategy.n"], one.settings["strategy.score"]) == (4, 0.9)
    assert {prompt for prompt, _ in advisers.verifier.asked} == set(PROMPTS)
    assert {call[0] for call in given_task.sampler.calls} == {"single_pass"}


def test_candidates_are_those_of_their_own_prompt_and_seed():
    """Each is the same as drawn alone."""
    given_task = task(["a", "b", "c"], [5, 6, 7], with_adviser("verifier", lambda prompt, picture: red(picture) / 255))
    drawn = run_strategy(make_strategy("best_of_n", n=4), given_task)
    assert [one.prompt for one in drawn] == ["a", "b", "c"]
    for seed, one in zip(given_task.seeds, drawn):
        assert tint(one.seed) == max(tint(derive_seed(seed, number)) for number in range(4))


def test_a_verifier_that_declines_leaves_the_first_candidate_and_is_counted():
    lines = []
    given_task = task(advisers=with_adviser("verifier", decline), progress=lines.append)
    drawn = run_strategy(make_strategy("best_of_n", n=3), given_task)
    assert [one.seed for one in drawn] == SEEDS
    assert all(one.costs["declined"] == one.costs["questions"] == 3 for one in drawn)
    assert sum("declined: no idea" in line for line in lines) == 6


def test_a_candidate_without_an_image_scores_nothing():
    given_task = task(PROMPTS[:1], SEEDS[:1], with_adviser("verifier", lambda prompt, picture: 0.1))
    drawn = given_task.sampler.drawn

    def first_ends_early(mode, prompt, seed, given):
        one = drawn(mode, prompt, seed, given)
        return dataclasses.replace(one, stages=[], images=[]) if seed == SEEDS[0] else one

    given_task.sampler.drawn = first_ends_early
    [best] = run_strategy(make_strategy("best_of_n", n=2), given_task)
    assert best.seed == derive_seed(SEEDS[0], 1) and len(best.images) == 1
    assert (best.costs["questions"], best.settings["strategy.score"]) == (1, 0.1)


# Planner.


def plans(*words):
    return [format_plan(f"Draw {word}.", f"There is {word}.") for word in words]


STEPS = {"a red circle": plans("one"), "a blue square": plans("one", "two", "three")}


def test_each_step_of_the_planner_edits_the_last_picture():
    given_task = task(advisers=with_adviser("planner", STEPS.get))
    drawn = run_strategy(OutsidePlanner(), given_task)
    modes, words, seeds, pictures = zip(*given_task.sampler.calls)
    assert modes == ("single_pass", "edit", "edit")
    assert words == (["Draw one."] * 2, ["Draw two."], ["Draw three."])
    tints = [tint(derive_seed(1000, n)) for n in range(3)]
    assert seeds[0] == SEEDS and [tint(s[0]) for s in seeds[1:]] == tints[1:]
    assert pictures[0] is None and [red(p[0][0]) for p in pictures[1:]] == tints[:2]
    one, three = drawn
    for trajectory in drawn:
        trajectory.check()
        assert trajectory.mode == "process" and trajectory.stop_reason == "finished"
    assert [red(image) for image in three.images] == tints
    assert [stage.text for stage in three.stages[::2]] == STEPS["a blue square"]
    assert all(stage.origin == "outside" for stage in three.stages[::2])
    assert [stage.file for stage in three.stages[1::2]] == ["01_sketch.png", "02_sketch.png", "03_sketch.png"]
    assert (one.prompt, three.prompt) == tuple(PROMPTS) and (one.seed, three.seed) == tuple(SEEDS)
    assert one.costs["network_evaluations"] == tint(7) and three.costs["network_evaluations"] == sum(tints)
    assert (three.costs["text_tokens"], three.costs["questions"], one.costs["questions"]) == (3, 1, 1)


def test_the_planner_s_pictures_have_their_own_latents():
    """Under their names among all steps."""
    advisers = with_adviser("planner", STEPS.get)
    _, three = run_strategy(OutsidePlanner(), task(advisers=advisers, settings=SampleSettings(keep_latents=True)))
    files = [stage.file for stage in three.stages[1::2]]
    assert {file: int(values[0]) for file, values in three.latents.items()} == {
        file: derive_seed(1000, number) for number, file in enumerate(files)
    }
    assert {file: three.settings[f"guidance.{file}"] for file in files} == {
        file: f"of seed {derive_seed(1000, number)}" for number, file in enumerate(files)
    }
    assert [one.latents for one in run_strategy(OutsidePlanner(), task(advisers=advisers))] == [None, None]


def test_the_planner_s_steps_end_at_the_limit_of_images():
    given_task = task(advisers=with_adviser("planner", STEPS.get), settings=SampleSettings(max_images=2))
    drawn = run_strategy(OutsidePlanner(), given_task)
    assert [(len(one.images), one.stop_reason) for one in drawn] == [(1, "finished"), (2, "step limit")]
    for one in drawn:
        one.check()


def test_without_a_plan_the_prompt_is_the_only_step():
    given_task = task(advisers=with_adviser("planner", decline))
    drawn = run_strategy(OutsidePlanner(), given_task)
    assert [call[:2] for call in given_task.sampler.calls] == [("single_pass", PROMPTS)]
    assert [one.costs["declined"] for one in drawn] == [1, 1]
    assert drawn[0].stages[0].text == "<ins>a red circle</ins> <des>a red circle</des>"


# Inspector.


FAULT = Verdict(accept=False, analysis="It is blue.", correction="Make it red.")
FINE = Verdict(accept=True, analysis="All is there.")


def greens(least):
    """A critic that finds a fault in the first prompt's picture until it is green enough."""
    return lambda prompt, picture: FINE if picture[0, 0, 1] >= least or prompt != PROMPTS[0] else FAULT


def test_a_faulty_draft_is_redrawn_after_the_critique():
    given_task = task(advisers=with_adviser("critic", greens(9)))
    faulty, fine = run_strategy(OutsideInspector(), given_task)
    words = "It is blue. <refine>Make it red.</refine>"
    assert given_task.sampler.calls == [("single_pass", PROMPTS, SEEDS, None), ("resume", [words])]
    assert [stage.stage for stage in faulty.stages] == ["sketch", "inspect", "refine"]
    assert faulty.stages[1].text == words and faulty.stages[1].origin == "outside"
    assert [stage.stage for stage in fine.stages] == ["sketch", "inspect"] and fine.stages[1].text == "All is there."
    for one in (faulty, fine):
        one.check()
        assert one.stop_reason == "finished" and one.mode == "single_pass" and one.parent is None
    assert faulty.costs["network_evaluations"] == tint(7) + 1000 and faulty.costs["questions"] == 1
    assert fine.costs["network_evaluations"] == tint(1000) and fine.costs["questions"] == 1


@pytest.mark.parametrize(("rounds", "stages", "redrawn"), [(3, 6, 2), (2, 5, 2), (1, 3, 1)])
def test_rounds_end_with_the_critic_s_consent(rounds, stages, redrawn):
    """Two redraws satisfy the critic; a third round only confirms it."""
    faulty, fine = run_strategy(OutsideInspector(rounds), task(advisers=with_adviser("critic", greens(2))))
    assert len(faulty.stages) == stages and len(fine.stages) == 2
    faulty.check()
    assert faulty.costs["network_evaluations"] == tint(7) + 1000 * redrawn
    assert faulty.costs["questions"] == rounds and fine.costs["questions"] == 1


def test_a_critic_that_declines_leaves_the_draft():
    drawn = run_strategy(OutsideInspector(), task(advisers=with_adviser("critic", decline)))
    assert [len(one.stages) for one in drawn] == [1, 1] and [one.costs["declined"] for one in drawn] == [1, 1]


# Tasks without the pictures that a strategy needs.

NEED_PICTURES = ["planner", "inspector", "best_of_n", "stepwise_best_of_n", "parm"]


class Untouchable(Script):
    """An adviser that must not be called."""

    def __init__(self):
        super().__init__(lambda *question: pytest.fail(f"asked {question}"))


def refused(name, settings, advisers=None):
    """Return a strategy's refusal of settings, without any drawing or request."""
    given_task = task(advisers=advisers, settings=settings)
    with pytest.raises(StrategyError) as fault:
        run_strategy(make_strategy(name), given_task)
    assert given_task.sampler.calls == [] and "\n" not in str(fault.value)
    return str(fault.value)


@pytest.mark.parametrize("name", NEED_PICTURES)
def test_a_mode_without_images_has_nothing_to_judge_or_edit(name):
    advisers = make_exact_advisers()._replace(**dict.fromkeys(("planner", "critic", "verifier"), Untouchable()))
    settings = SampleSettings(max_images=0, mode="single_pass" if name != "stepwise_best_of_n" else "process")
    assert " with max_images=0 draws no picture, which this strategy needs" in refused(name, settings, advisers)


def test_a_mode_of_answers_has_no_pictures_to_select():
    assert refused("best_of_n", SampleSettings(mode="understand")).startswith("mode understand with max_images=8 draws")


@pytest.mark.parametrize(("height", "width"), [(32, 64), (28, 28)])
@pytest.mark.parametrize("name", NEED_PICTURES[1:])
def test_pictures_that_exact_advisers_cannot_read_are_not_drawn(name, height, width):
    expected = f"height={height} and width={width}: shapes world's exact advisers read squares of 32 pixels or more"
    assert expected in refused(name, SampleSettings(height=height, width=width))


def test_pictures_of_any_size_go_to_other_advisers():
    oblong = SampleSettings(height=32, width=64)
    assert len(run_strategy(OutsidePlanner(), task(settings=oblong))) == 2
    advisers = make_exact_advisers()._replace(
        critic=Script(lambda *question: FINE), verifier=Script(lambda *question: 0.5)
    )
    for name in ("inspector", "best_of_n"):
        assert len(run_strategy(make_strategy(name), task(advisers=advisers, settings=oblong))) == 2


# The registry.


def test_unknown_names_and_settings():
    with pytest.raises(
        StrategyError, match="strategy 'best_of_m' is none of process, single_pass, think, planner"
    ) as fault:
        make_strategy("best_of_m")
    assert "\n" not in str(fault.value)
    with pytest.raises(StrategyError, match="strategy best_of_n has no setting 'rounds', only n"):
        make_strategy("best_of_n", rounds=2)
    with pytest.raises(StrategyError, match="strategy process has no setting 'n', only none at all"):
        make_strategy("process", n=2)
    for name, wrong in (("best_of_n", {"n": 0}), ("inspector", {"rounds": 0})):
        with pytest.raises(StrategyError, match=r"=0: must be at least 1"):
            make_strategy(name, **wrong)


def test_every_strategy_has_its_name():
    assert [make_strategy(name).name for name in STRATEGIES] == list(STRATEGIES)
