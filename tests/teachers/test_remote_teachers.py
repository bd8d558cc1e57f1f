"""Requests of the remote judge and writer, and their readings of the answers."""

import json
import pathlib

import msgspec
import numpy as np
import pytest

from pdgen.shapes.graph import GRAPH_SCHEMA, SceneGraph
from pdgen.teachers import endpoint as ep
from pdgen.teachers.chat import make_schema
from pdgen.teachers.protocols import TeacherError, Verdict
from pdgen.teachers.remote_teachers import EndpointJudge, EndpointWriter, JudgeAnswer, ParseAnswer
from tests.support.chat_server import says
from tests.teachers.conftest import PLAN, YES, Word, request

NO = '{"analysis": "The circle is blue.", "accept": false, "correction": "Make it red."}'


def test_a_dry_run_sends_nothing_and_estimates_calls_tokens_and_price(server, settings, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    client = ep.Endpoint(settings, dry_run=True)
    assert client.ask(request()) == Word("assumed")
    client.ask(request())  # in a real run it would be in the cache
    judge = EndpointJudge(client)
    picture = np.zeros((512, 1024, 3), np.uint8)
    assert judge.judge_picture(PLAN, picture, picture).accept
    assert judge.judge_plan("a red circle", [PLAN]).accept
    graph = EndpointWriter(client).parse("three cats in a box")
    assert len(graph.entities) == 3
    assert server.bodies == []
    assert not pathlib.Path(settings.cache).exists()
    ledger = client.ledger
    assert {t: (u.calls, u.cached) for t, u in ledger.tasks.items()} == {
        "word": (1, 1),
        "judge picture": (1, 0),
        "judge plan": (1, 0),
        "parse": (1, 0),
    }
    # Two pictures of two tiles: 2 (85 + 2 * 170) = 850 tokens, and some 600 of text.
    assert 1200 < ledger.tasks["judge picture"].input_tokens < 1800
    total = ledger.total()
    assert total.calls == 4
    assert ledger.price(total) == pytest.approx((2 * total.input_tokens + 8 * total.output_tokens) / 1e6)
    assert f"{total.input_tokens:,}" in ledger.report().splitlines()[-1]
    assert "to send" in ledger.report()


def test_the_judge_sees_prompt_plans_and_pictures(server, settings):
    server.script.extend([says(YES), says(NO), says(NO)])
    judge = EndpointJudge(ep.Endpoint(settings))
    assert judge.name == "judge-1"
    verdict = judge.judge_plan("a red circle and a star", ["<ins>first</ins>", PLAN])
    assert verdict == Verdict(True, "The plan adds the circle.")
    text = server.bodies[0]["messages"][1]["content"][0]["text"]
    assert text.index("a red circle and a star") < text.index("<ins>first</ins>") < text.index(f"Last plan:\n{PLAN}")
    picture = np.full((8, 8, 3), 7, np.uint8)
    assert judge.judge_picture(PLAN, picture) == Verdict(False, "The circle is blue.", "Make it red.")
    judge.judge_picture(PLAN, picture, np.zeros((8, 8, 3), np.uint8))
    kinds = [[part["type"] for part in b["messages"][1]["content"]] for b in server.bodies[1:]]
    assert kinds == [["text", "text", "image_url"], ["text", "text", "image_url", "text", "image_url"]]
    assert server.bodies[1]["messages"][1]["content"][2]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    with pytest.raises(TeacherError, match="no plan"):
        judge.judge_plan("a red circle", [])


@pytest.mark.parametrize(
    "answer",
    [
        '{"analysis": "Fine.", "accept": true, "correction": "But change it."}',
        '{"analysis": "Wrong.", "accept": false, "correction": " "}',
        '{"analysis": " ", "accept": true, "correction": null}',
        '{"analysis": "See <refine>.", "accept": true, "correction": null}',
    ],
)
def test_verdicts_that_contradict_themselves_are_malformed(server, settings, answer):
    server.script.append(says(answer))
    server.usual = says('{"analysis": "Now\\n right.", "accept": true, "correction": ""}')
    client = ep.Endpoint(settings)
    assert EndpointJudge(client).judge_plan("a circle", [PLAN]) == Verdict(True, "Now right.")
    assert client.ledger.rejected == {"against the schema": 1}


def test_the_writer_parses_by_the_graph_schema(server, settings):
    cats = {"id": 0, "noun": "cat", "count": 2, "attributes": {"color": "red"}}
    relation = {"subject": 0, "kind": "on", "reference": 1}
    graph = {"entities": [cats, {"id": 1, "noun": "dog"}], "relations": [relation], "background": None}
    server.script.append(says(json.dumps({"reason": "", "graph": graph})))
    writer = EndpointWriter(ep.Endpoint(settings))
    parsed = writer.parse("two red cats on a dog")
    assert parsed == msgspec.convert(graph, SceneGraph)
    form = server.bodies[0]["response_format"]["json_schema"]
    assert form["strict"] is False  # attributes have free keys
    for name, definition in GRAPH_SCHEMA["$defs"].items():
        assert form["schema"]["$defs"][name]["properties"].keys() == definition["properties"].keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"entities": [{"id": 0, "noun": "Cat"}]},
        {"entities": [{"id": 0, "noun": "cat", "count": 99}]},
        {"entities": [{"id": 0, "noun": "cat"}, {"id": 1, "noun": "cat"}]},
        {"entities": [{"id": 0, "noun": "cat"}], "relations": [{"subject": 0, "kind": "on", "reference": 7}]},
        {"entities": []},
        None,
    ],
)
def test_impossible_graphs_are_malformed_and_a_prompt_without_graph_is_refused(server, settings, wrong):
    server.script.append(says(json.dumps({"reason": "", "graph": wrong})))
    server.usual = says(json.dumps({"reason": "Nothing visible is named.", "graph": None}))
    client = ep.Endpoint(settings)
    with pytest.raises(TeacherError, match=r"'the meaning of it all' has no scene graph: Nothing visible is named."):
        EndpointWriter(client).parse("the meaning of it all")
    assert client.ledger.rejected == {"against the schema": 1}


def test_schemas_omit_docstrings_and_have_an_object_as_root():
    for answer, strict in ((JudgeAnswer, True), (ParseAnswer, False)):
        schema, enforced = make_schema(answer)
        assert enforced is strict
        assert schema["type"] == "object" and schema["required"] == list(schema["properties"])
        assert "description" not in json.dumps(schema) and "default" not in json.dumps(schema)
    assert list(make_schema(JudgeAnswer)[0]["properties"]) == ["analysis", "accept", "correction"]
