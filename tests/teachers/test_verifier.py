"""Critics and verifiers: scores counted by hand, corrections that mend a picture, and strict remote answers."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pdgen.shapes import language
from pdgen.shapes.graph import Step
from pdgen.shapes.instruction import apply_instruction
from pdgen.shapes.painter import paint
from pdgen.shapes.parse import parse, parse_instruction
from pdgen.shapes.placement import PLACEMENTS
from pdgen.shapes.world import Scene, SceneObject, place_scenes
from pdgen.synthesis.faults import corrupt
from pdgen.synthesis.sample import sample_graph
from pdgen.teachers.chat import AnswerError, make_schema
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.exact.plan_check import resolve_instruction
from pdgen.teachers.protocols import Critic, Declined, Verdict, Verifier
from pdgen.teachers.verifier import EndpointCritic, EndpointVerifier, ExactCritic, ExactVerifier, VerifierAnswer
from tests.support.chat_server import says

CRITIC: Critic = ExactCritic()
VERIFIER: Verifier = ExactVerifier()
TWO = "a photo of a red circle left of a blue square"


def picture(*objects, background="beige"):
    """Paint objects given as (shape, colour, size, x, y)."""
    made = [SceneObject(i, i, shape, color, size, x, y) for i, (shape, color, size, x, y) in enumerate(objects)]
    return paint(Scene(tuple(made), background), 32)


CIRCLE, SQUARE = ("circle", "red", 10, 2, 12), ("square", "blue", 10, 20, 12)


@pytest.mark.parametrize(
    ("prompt", "shown", "score"),
    [
        # Number, noun and colour of two things, and a relation: 7 promises.
        (TWO, picture(CIRCLE, SQUARE), 1),
        (TWO, picture(CIRCLE, ("square", "green", 10, 20, 12)), 6 / 7),
        (TWO, picture(("circle", "red", 10, 20, 12), ("square", "blue", 10, 2, 12)), 6 / 7),
        (TWO, picture(CIRCLE), 3 / 7),  # no square: its three promises and the relation are broken
        (TWO, picture(CIRCLE, SQUARE, ("star", "yellow", 10, 11, 1)), 7 / 8),  # one more than was asked for
        (TWO, picture(), 0),
        ("three red circles", picture(CIRCLE, ("circle", "red", 10, 20, 2)), 2 / 3),
        ("a red circle on a beige background", picture(CIRCLE), 1),
        ("a red circle on a beige background", picture(CIRCLE, background="dark grey"), 3 / 4),
        ("a small red circle", picture(("circle", "red", 14, 2, 12)), 3 / 4),
    ],
)
def test_scores_counted_by_hand(prompt, shown, score):
    assert VERIFIER.score(prompt, shown) == pytest.approx(score)


def test_a_critique_names_every_fault_and_its_correction():
    verdict = CRITIC.critique(TWO, picture(CIRCLE, ("star", "yellow", 10, 20, 2)))
    assert not verdict.accept
    assert "blue square" in verdict.analysis and "yellow star" in verdict.analysis
    missing, extra = re.findall(r"[^.]+\.", verdict.correction)
    assert "blue square" in missing and "yellow star" in extra
    assert CRITIC.critique(TWO, picture(CIRCLE, SQUARE)).accept


def scenes(seed, placement):
    """(prompt, its graph, a placed scene of it)."""
    for number in itertools.count():
        rng = np.random.default_rng((5, seed, number))
        graph = sample_graph(rng, "composition")
        if (
            placed := place_scenes(rng, [Step("add", tuple(e.id for e in graph.entities), graph)], placement)
        ) is not None:
            return rng, language.write_prompt(rng, graph, "composition"), graph, placed[0]


@pytest.mark.parametrize(("name", "size"), [("lattice", 64), ("free", 32)])
@given(st.integers(0, 10_000))
@hypothesis_settings(max_examples=30)
def test_right_pictures_are_accepted_and_wrong_ones_lose_score(name, size, seed):
    rng, prompt, graph, scene = scenes(seed, PLACEMENTS[name])
    right = paint(scene, size)
    assert VERIFIER.score(prompt, right) == 1 and CRITIC.critique(prompt, right).accept
    entity = graph.entities[int(rng.integers(len(graph.entities)))].id
    wrong = paint(corrupt(rng, scene, graph, entity, PLACEMENTS[name])[0], size)
    assert 0 <= VERIFIER.score(prompt, wrong) < 1
    verdict = CRITIC.critique(prompt, wrong)
    assert not verdict.accept and verdict == CRITIC.critique(prompt, wrong)


@pytest.mark.parametrize("color", ["green", "yellow", "pink"])
def test_a_correction_applied_to_the_picture_fulfils_the_prompt(color):
    there = parse(f"a {color} circle left of a blue square")
    verdict = CRITIC.critique(TWO, picture(("circle", color, 10, 2, 12), SQUARE))
    after = apply_instruction(there, resolve_instruction(there, parse_instruction(verdict.correction)))
    assert after == parse(TWO)


@pytest.mark.parametrize("ask", [CRITIC.critique, VERIFIER.score])
def test_prompts_that_are_not_understood_are_declined(ask):
    with pytest.raises(Declined, match=r"'exact': .*gnu"):
        ask("a photo of a gnu", picture(CIRCLE))


def checks(*right):
    return json.dumps({"checks": [{"what": f"thing {n}", "right": r} for n, r in enumerate(right)]})


def test_the_endpoint_s_verifier_counts_checks_and_pays_once(server, settings):
    server.usual = says(checks(True, True, False, True))
    client = Endpoint(settings)
    verifier: Verifier = EndpointVerifier(client)
    assert verifier.score(TWO, picture(CIRCLE)) == 0.75 == verifier.score(TWO, picture(CIRCLE))
    [body] = server.bodies
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "text", "image_url"] and TWO in body["messages"][1]["content"][0]["text"]
    assert client.ledger.tasks["verify"].calls == 1
    verifier.score(TWO, picture(SQUARE))
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        "0.8",
        '{"score": 0.8}',
        checks(),
        '{"checks": [{"what": " ", "right": true}]}',
        '{"checks": [{"what": "a cat", "right": 1}]}',
        '{"checks": [{"what": "a cat", "right": "yes"}]}',
    ],
)
def test_scores_of_another_form_are_refused(server, settings, wrong):
    server.usual = says(wrong)
    with pytest.raises(AnswerError, match="verify: "):
        EndpointVerifier(Endpoint(settings)).score(TWO, picture(CIRCLE))
    assert len(server.bodies) == 3


def test_the_endpoint_s_critic_gives_verdicts(server, settings):
    fault = {"analysis": "The square\n is missing.", "accept": False, "correction": "Add a blue square."}
    server.script.append(says(json.dumps(fault)))
    server.usual = says('{"analysis": "All is there.", "accept": true, "correction": null}')
    critic: Critic = EndpointCritic(Endpoint(settings))
    assert critic.critique(TWO, picture(CIRCLE)) == Verdict(False, "The square is missing.", "Add a blue square.")
    assert critic.critique(TWO, picture(CIRCLE, SQUARE)).accept


def test_a_dry_run_accepts_and_sends_nothing(server, settings):
    client = Endpoint(settings, dry_run=True)
    assert EndpointCritic(client).critique(TWO, picture()).accept
    assert EndpointVerifier(client).score(TWO, picture()) == 1
    assert server.bodies == [] and client.ledger.total().calls == 2


def test_the_schema_is_an_object_that_servers_can_enforce():
    schema, strict = make_schema(VerifierAnswer)
    assert strict and schema["required"] == ["checks"]
    assert list(schema["$defs"]["Check"]["properties"]) == ["what", "right"]
