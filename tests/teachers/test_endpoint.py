"""The endpoint against a real server on localhost that is slow, refuses, answers wrongly and hangs up."""

import email.utils
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from msgspec import structs

from pdgen.teachers import endpoint as ep
from pdgen.teachers.chat import AnswerError
from pdgen.teachers.protocols import TeacherError
from pdgen.teachers.remote_teachers import EndpointJudge
from tests.support.chat_server import completion, drips, hangs_up, refuses, says, sends
from tests.teachers.conftest import KEY, PLAN, YES, Word, echo, read_entries, request


def with_patience(settings, **changes):
    return structs.replace(settings, patience=structs.replace(settings.patience, **changes))


def test_an_answer_is_paid_once_even_after_a_restart(server, settings):
    first = ep.Endpoint(settings)
    assert first.ask(request()) == Word("one") == first.ask(request())
    again = ep.Endpoint(settings)
    assert again.ask(request()) == Word("one")
    assert len(server.bodies) == 1
    assert first.ledger.total() == ep.Usage(calls=1, cached=1, input_tokens=100, output_tokens=10)
    assert again.ledger.total() == ep.Usage(calls=0, cached=1)
    # 100 tokens at 2 and 10 at 8 a million.
    assert first.ledger.price(first.ledger.total()) == pytest.approx(0.00028)
    assert again.ledger.price(again.ledger.total()) == 0


def test_the_request(server, settings):
    parameters = {**settings.parameters, "of this server alone": [1, None]}
    ep.Endpoint(structs.replace(settings, url=settings.url + "/", parameters=parameters)).ask(request("one"))
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.0, 1024)
    assert body["of this server alone"] == [1, None]
    assert body["messages"][0] == {"role": "system", "content": "Say a word."}
    form = body["response_format"]["json_schema"]
    assert form["schema"] == {
        "type": "object",
        "properties": {"word": {"type": "string"}},
        "required": ["word"],
        "additionalProperties": False,
    }
    assert form["strict"] is True


def test_each_part_of_the_question_is_part_of_its_key(server, settings):
    picture = np.zeros((4, 4, 3), np.uint8)
    other = picture.copy()
    other[3, 3, 2] = 1
    client = ep.Endpoint(settings)
    for changed in (request(), request("two"), request(version=2), request(system="Say it."), request()):
        client.ask(changed)
    assert len(server.bodies) == 4
    server.usual = says(YES)
    for seen in (picture, other, picture):
        EndpointJudge(client).judge_picture(PLAN, seen)
    assert len(server.bodies) == 6
    for changed in ({"model": "judge-2"}, {"parameters": {"temperature": 0.5}}):
        EndpointJudge(ep.Endpoint(structs.replace(settings, **changed))).judge_picture(PLAN, picture)
    assert len(server.bodies) == 8


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (refuses(429, "slow down"), "HTTP 429"),
        (refuses(500, "oops"), "HTTP 500"),
        (refuses(503), "HTTP 503"),
        (refuses(425), "HTTP 425"),  # the OpenAI client itself does not retry this one
        (sends(b"<html>gateway</html>"), "garbage"),
        (sends(b'{"choices": []}'), "garbage"),
        (sends(b'{"object": "error"}'), "garbage"),
        (sends(completion('{"word": "half"}')[:60]), "garbage"),
        (sends(completion('{"word": "half"}')[:60], length=500), "cut connection"),
        (hangs_up, "cut connection"),
    ],
)
def test_temporary_failures_are_retried_and_counted(server, settings, act, reason):
    server.script.extend([act, act])
    client = ep.Endpoint(settings)
    assert client.ask(request()) == Word("one")
    assert client.ledger.retried == {reason: 2}
    assert client.ledger.total().calls == 1
    assert len(server.bodies) == 3
    assert f"retried: 2 {reason}" in client.ledger.report()


@pytest.mark.parametrize("act", [says('{"word": "late"}', delay=3.0), drips(completion('{"word": "late"}'), 0.02)])
def test_a_slow_answer_is_a_timeout_whether_it_waits_or_drips(server, settings, act):
    client = ep.Endpoint(with_patience(settings, timeout=0.2))
    client.ask(request("the first, which makes the cache"))
    client.ledger.retried.clear()
    server.script.append(act)
    start = time.monotonic()
    assert client.ask(request()) == Word("one")
    assert time.monotonic() - start < 2.0
    assert client.ledger.retried["timeout"] >= 1


def test_no_server_at_all(settings):
    client = ep.Endpoint(with_patience(structs.replace(settings, url="http://127.0.0.1:9/v1"), attempts=2))
    with pytest.raises(TeacherError, match=r"127.0.0.1:9/v1/chat/completions: no answer in 2 attempts.*refused"):
        client.ask(request())


def test_retry_after_is_obeyed(server, settings):
    client = ep.Endpoint(settings)
    client.ask(request("the first, which makes the cache"))
    server.script.append(refuses(429, Retry_After="0.4"))
    start = time.monotonic()
    client.ask(request())
    assert 0.4 <= time.monotonic() - start < 1.0
    # Neither a past date nor anything but a number or a date asks for a wait.
    server.script.extend(refuses(503, Retry_After=v) for v in ("Wed, 21 Oct 2015 07:28:00 GMT", "nan", "soon"))
    start = time.monotonic()
    client.ask(request("two"))
    assert time.monotonic() - start < 0.5
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    server.script.append(refuses(503, Retry_After=later))
    with pytest.raises(TeacherError, match=r"asks to wait 3(600|599) s"):
        client.ask(request("three"))


def test_a_server_that_asks_for_too_long_a_wait(server, settings):
    server.script.append(refuses(429, "quota used up", Retry_After="3600"))
    with pytest.raises(TeacherError, match="HTTP 429: quota used up: asks to wait 3600 s, longest_wait is 2 s"):
        ep.Endpoint(settings).ask(request())
    assert len(server.bodies) == 1


def test_attempts_are_limited(server, settings):
    server.usual = refuses(500, "down for\nrepair")
    client = ep.Endpoint(settings)
    with pytest.raises(TeacherError, match="no answer in 4 attempts; the last: HTTP 500: down for repair"):
        client.ask(request())
    assert len(server.bodies) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_other_statuses_are_final(server, settings, status):
    server.script.append(refuses(status, "that is wrong"))
    with pytest.raises(TeacherError, match=f"HTTP {status}: that is wrong") as fault:
        ep.Endpoint(settings).ask(request())
    assert not isinstance(fault.value, AnswerError)
    assert "\n" not in str(fault.value)
    assert len(server.bodies) == 1


def test_a_redirect_is_not_followed_with_the_key(server, settings):
    server.script.append(refuses(302, Location="http://127.0.0.1:9/elsewhere"))
    with pytest.raises(TeacherError, match=r"HTTP 302: redirected to http://127.0.0.1:9/elsewhere; name that in url"):
        ep.Endpoint(settings).ask(request())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (says("I would rather not say."), "no JSON"),
        (says('{"word": 3}'), "against the schema"),
        (says('{"wrod": "x"}'), "against the schema"),
        (says('{"word": "long', finish="length"), "cut off"),
        (says('{"word": "bad"}'), "unsuitable"),
    ],
)
def test_malformed_answers_are_requested_again_with_the_reason_and_counted(server, settings, act, reason):
    def check(answer):
        if answer.word == "bad":
            raise ValueError("the word is bad")

    server.script.append(act)
    client = ep.Endpoint(settings)
    assert client.ask(request(check=check)) == Word("one")
    assert client.ledger.rejected == {reason: 1}
    assert client.ledger.total() == ep.Usage(calls=2, cached=0, input_tokens=200, output_tokens=20)
    roles = [m["role"] for m in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert "cannot be used" in server.bodies[1]["messages"][3]["content"]
    [kept] = read_entries(settings)
    assert (kept["model"], kept["task"]) == ("judge-1", "word")
    assert [a["content"] for a in kept["answers"]] == [server.bodies[1]["messages"][2]["content"], '{"word": "one"}']


def test_an_answer_that_stays_malformed_is_rejected_for_good(server, settings):
    server.usual = says('{"word": 3}')
    for start in range(2):
        client = ep.Endpoint(settings)
        with pytest.raises(AnswerError, match=r"word: Expected `str`, got `int`") as fault:
            client.ask(request())
        assert fault.value.reason == "against the schema"
        assert len(server.bodies) == 3
        assert client.ledger.rejected == ({} if start else {"against the schema": 3})
    # More patience pays for one more answer, not for four.
    server.usual = echo
    assert ep.Endpoint(structs.replace(settings, answers=4)).ask(request()) == Word("one")
    assert len(server.bodies) == 4


@pytest.mark.parametrize("act", [says(None, refusal="I cannot help"), says("", finish="content_filter")])
def test_a_refusal_is_final_and_kept(server, settings, act):
    server.usual = act
    for _ in range(2):
        with pytest.raises(AnswerError, match="word: refused") as fault:
            ep.Endpoint(settings).ask(request())
        assert fault.value.reason == "refused"
    assert len(server.bodies) == 1


def test_wrapped_json_without_a_count_of_tokens(server, settings):
    server.usual = says('Sure!\n```json\n{"word": "wrapped"}\n```', usage=False)
    client = ep.Endpoint(settings)
    assert client.ask(request()) == Word("wrapped")
    assert (client.ledger.total().input_tokens, client.ledger.total().output_tokens) == request().estimate_tokens()


def test_the_server_sees_no_more_than_the_limit(server, settings):
    def act(handler, body):
        time.sleep(0.03)
        echo(handler, body)

    server.usual = act
    client = ep.Endpoint(settings)
    words = [f"word {n}" for n in range(24)]
    assert [a.word for a in client.map(map(request, words))] == words
    assert server.peak == 4
    # The caller's own threads share the limit.
    threads = [threading.Thread(target=client.ask, args=(request(f"own {n}"),)) for n in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert server.peak == 4
    assert client.ledger.total().calls == 36


def test_map_keeps_order_reads_ahead_and_returns_rejections(server, settings):
    def act(handler, body):
        word = body["messages"][1]["content"][0]["text"]
        time.sleep(0.05 if word == "0" else 0)
        handler.send(completion(None, refusal="no") if word == "5" else completion(json.dumps({"word": word})))

    server.usual = act
    taken = []

    def requests():
        for n in range(40):
            taken.append(n)
            yield request(str(n))

    answers = ep.Endpoint(settings).map(requests())
    assert next(answers) == Word("0")
    assert len(taken) == 16
    rest = list(answers)
    assert [a.word for a in rest if isinstance(a, Word)] == [str(n) for n in range(1, 40) if n != 5]
    assert isinstance(rest[4], AnswerError)


def test_map_stops_at_a_fatal_answer_and_when_closed(server, settings):
    server.usual = refuses(401, "no such key")
    with pytest.raises(TeacherError, match="HTTP 401"):
        list(ep.Endpoint(settings).map(request(str(n)) for n in range(1000)))
    assert len(server.bodies) < 32

    server.usual = says('{"word": "x"}', delay=0.02)
    server.bodies.clear()
    answers = ep.Endpoint(settings).map(request(str(n)) for n in range(1000))
    next(answers)
    answers.close()
    seen = len(server.bodies)
    assert seen <= 16
    time.sleep(0.1)
    assert len(server.bodies) == seen
    # Answers in progress reached the cache: of the same questions, only new ones reach the server.
    assert len(read_entries(settings)) == seen
    list(ep.Endpoint(settings).map(request(str(n)) for n in range(20)))
    assert len(server.bodies) == 20


def test_a_malformed_answer_after_closing_is_not_requested_again(server, settings):
    closing = threading.Event()

    def act(handler, body):
        if body["messages"][1]["content"][0]["text"] == "0":
            while len(server.bodies) < 4:
                time.sleep(0.005)
            echo(handler, body)
        else:
            closing.wait(5)
            handler.send(completion("malformed"))

    server.usual = act
    answers = ep.Endpoint(settings).map(request(str(n)) for n in range(4))
    next(answers)
    threading.Timer(0.5, closing.set).start()
    answers.close()
    assert closing.is_set() and len(server.bodies) == 4


def test_closing_does_not_wait_out_a_backoff(server, settings):
    server.usual = refuses(500)
    patience = with_patience(settings, backoff=30.0, longest_wait=60.0)
    answers = ep.Endpoint(patience).map(request(str(n)) for n in range(8))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test suite in the background ignores SIGINT
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(answers)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 10


def test_equal_questions_at_the_same_time_are_paid_once(server, settings):
    server.usual = says('{"word": "x"}', delay=0.05)
    clients = [ep.Endpoint(settings) for _ in range(2)]  # as two processes: locks are of the file, not of the object
    threads = [threading.Thread(target=clients[n % 2].ask, args=(request(),)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(server.bodies) == 1
    assert sum(c.ledger.total().cached for c in clients) == 7


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pdgen.teachers import endpoint as ep
from tests.teachers.test_endpoint import request
settings = ep.EndpointSettings({url!r}, "judge-1", {cache!r}, "TEST_KEY", concurrency=2)
for answer in ep.Endpoint(settings).map(request(str(n)) for n in range(6)):
    print(answer.word, flush=True)
"""


def start_child(server, settings):
    code = CHILD.format(root=str(pathlib.Path(__file__).parents[2]), url=server.url, cache=settings.cache)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_that_ask_the_same_pay_once(server, settings):
    def act(handler, body):
        time.sleep(0.2)
        echo(handler, body)

    server.usual = act
    children = [start_child(server, settings) for _ in range(2)]
    assert [child.communicate()[0].split() for child in children] == [list("012345")] * 2
    assert len(server.bodies) == 6


@pytest.mark.slow
def test_after_a_kill_nothing_is_paid_twice(server, settings):
    release = threading.Event()

    def act(handler, body):
        if body["messages"][1]["content"][0]["text"] not in "012":
            release.wait(10)
        echo(handler, body)

    server.usual = act
    child = start_child(server, settings)
    try:
        assert [child.stdout.readline().strip() for _ in range(3)] == ["0", "1", "2"]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    release.set()
    before = len(server.bodies)
    words = [a.word for a in ep.Endpoint(settings).map(request(str(n)) for n in range(6))]
    assert words == list("012345")
    assert len(server.bodies) == before + 3


def test_a_dry_run_over_a_full_cache_costs_nothing(server, settings):
    ep.Endpoint(settings).ask(request())
    client = ep.Endpoint(settings, dry_run=True)
    assert client.ask(request()) == Word("one")
    assert client.ledger.total() == ep.Usage(cached=1)
