"""Planners: the exact judge accepts exact plans at every step; requests to a chat endpoint and its answers."""

import json

import pytest

from pdgen.sequence.trajectory import parse_plan
from pdgen.shapes import language
from pdgen.shapes.parse import canonicalize, parse
from pdgen.teachers.chat import AnswerError, make_schema
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.planner import EndpointPlanner, ExactPlanner, PlanAnswer
from pdgen.teachers.protocols import Declined, Planner
from tests.support.chat_server import says
from tests.support.stories import story

PROMPT = "A picture of two red circles left of a blue square, and a small green star above the blue square."


def answer(*steps):
    return json.dumps({"steps": [{"instruction": i, "description": d} for i, d in steps]})


def test_hand_made_prompt():
    plans = [parse_plan(plan) for plan in ExactPlanner().plan(PROMPT)]
    assert len(plans) > 1  # three entities, at most two in a step
    assert canonicalize(parse(plans[-1][1])) == canonicalize(parse(PROMPT))
    (instruction, description), *more = map(parse_plan, ExactPlanner(max_steps=1).plan(PROMPT))
    assert not more and "two red circles" in instruction and "green star" in instruction and "star" in description


@pytest.mark.parametrize("seed", range(60))
def test_every_plan_agrees_with_its_prompt_and_the_last_one_completes_it(seed):
    rng, (task, asked, _) = story(seed)
    prompt = language.write_prompt(rng, asked, task)
    planner: Planner = ExactPlanner(seed=seed)
    plans = planner.plan(prompt)
    assert plans == planner.plan(prompt)
    assert 1 <= len(plans) <= 5
    for step in range(1, 1 + len(plans)):
        verdict = ExactJudge().judge_plan(prompt, plans[:step])
        assert verdict.accept, (prompt, plans, verdict)
    # The plans state exactly what the prompt asks for.
    assert canonicalize(parse(parse_plan(plans[-1])[1])) == canonicalize(parse(prompt))


def test_seeds_draw_in_other_orders():
    plans = {tuple(ExactPlanner(seed).plan(PROMPT)) for seed in range(8)}
    assert len({parse_plan(steps[0])[1] for steps in plans}) > 1


@pytest.mark.parametrize("prompt", ["a photo of a gnu", "a beige background"])
def test_prompts_without_steps_are_declined(prompt):
    with pytest.raises(Declined, match="planner 'exact'") as fault:
        ExactPlanner().plan(prompt)
    assert "\n" not in str(fault.value)


def test_the_endpoint_is_asked_once_and_its_steps_become_plans(server, settings):
    server.usual = says(answer(("Draw a\n lake.", "A lake."), ("Add a red boat.", "A red boat on a lake.")))
    planner: Planner = EndpointPlanner(Endpoint(settings), max_steps=3)
    for _ in range(2):
        assert planner.plan("a red boat on a lake") == [
            "<ins>Draw a lake.</ins> <des>A lake.</des>",
            "<ins>Add a red boat.</ins> <des>A red boat on a lake.</des>",
        ]
    [body] = server.bodies
    assert "at most 3 steps" in body["messages"][0]["content"]
    assert body["messages"][1]["content"] == [{"type": "text", "text": "Prompt:\na red boat on a lake"}]
    assert body["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ('{"steps": []}', "there is no step"),
        (answer(("Draw a lake.", " ")), "step 1: instruction and description"),
        (answer(("<ins>Draw a lake.</ins>", "A lake.")), "'<ins>' is inside"),
        (answer(*[("Draw.", "A lake.")] * 3), "3 steps, at most 2"),
        ("Draw a lake, then a boat.", "truncated"),
    ],
)
def test_useless_answers_are_requested_again_then_declined(server, settings, wrong, reason):
    server.usual = says(wrong)
    with pytest.raises(AnswerError, match=f"plan steps: .*{reason}"):
        EndpointPlanner(Endpoint(settings), max_steps=2).plan("a lake")
    assert len(server.bodies) == 3
    assert reason in server.bodies[1]["messages"][3]["content"]


def test_a_dry_run_plans_steps_and_sends_nothing(server, settings):
    client = Endpoint(settings, dry_run=True)
    assert len(EndpointPlanner(client).plan("a lake")) == 3
    assert len(EndpointPlanner(client, max_steps=2).plan("a lake")) == 2
    assert server.bodies == [] and client.ledger.tasks["plan steps"].calls == 2


def test_the_schema_is_an_object_that_servers_can_enforce():
    schema, strict = make_schema(PlanAnswer)
    assert strict and schema["required"] == ["steps"]
    assert list(schema["$defs"]["PlanStep"]["properties"]) == ["instruction", "description"]
