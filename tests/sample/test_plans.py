"""First plans, as whole trajectories begin with them."""

import dataclasses

from pdgen.sample.plans import make_plan_writer
from tests.sample.conftest import PROMPTS, SEEDS, SETTINGS, recording


def test_plans_equal_the_first_plans_of_trajectories(sampler, monkeypatch):
    whole = [one.stages[0].text for one in sampler(PROMPTS, SEEDS, SETTINGS)]
    asked = []

    def narrow(prompts, seeds, settings):
        asked.append(len(prompts))
        assert settings.max_images == 0
        return sampler(prompts, seeds, dataclasses.replace(SETTINGS, max_images=0))

    write = make_plan_writer(narrow, SETTINGS.text.temperature, batch_size=2)
    assert write(PROMPTS, SEEDS) == whole
    assert set(asked) == {2}


def test_the_longest_prompt_leaves_room_for_a_plan(sampler):
    longest = "e " * (SETTINGS.max_prompt_tokens // 2)
    with recording(sampler) as recorder:
        (trajectory,) = sampler([longest], SEEDS[:1], dataclasses.replace(SETTINGS, max_images=0))
    context = recorder.named("write_text")[-1].result[0].full
    tokens = SETTINGS.max_prompt_tokens + 2 + trajectory.stages[0].tokens + 2
    assert context.length[0] == tokens <= context.k.shape[2]


def test_nothing_is_drawn(sampler):
    for trajectory in sampler(PROMPTS, SEEDS, dataclasses.replace(SETTINGS, max_images=0)):
        assert ([stage.stage for stage in trajectory.stages], len(trajectory.images)) == (["plan"], 0)
        assert trajectory.stop_reason == "step limit"
