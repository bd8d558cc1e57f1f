"""Chat endpoints: replies of servers, answers of a judge, the cache of answers, settings."""

import itertools
import json
import pathlib

import pytest
from msgspec import structs

from pdgen.evaluate.wise import Grades
from pdgen.teachers.answer_cache import AnswerCache
from pdgen.teachers.endpoint import Endpoint, read_endpoint_settings
from tests.robustness.calls import call, find_fault, survey
from tests.robustness.mutations import mutate
from tests.support.chat_server import completion
from tests.teachers.conftest import request, server, settings  # noqa: F401

pytestmark = pytest.mark.slow  # hundreds of damaged copies

GRADES = '{"consistency": 1, "realism": 2, "aesthetic_quality": 0}'
EARLIER = pathlib.Path(__file__).parents[1] / "earlier" / "answers"
NAMES = ("word: ", "http://127.0.0.1")
SETTINGS = {
    "url": "http://127.0.0.1:9/v1",
    "model": "judge",
    "cache": "answers",
    "parameters": {"temperature": 0.0},
    "input_price": 2.5,
    "patience": {"timeout": 5.0, "attempts": 2},
}


@pytest.fixture
def ask(settings, server, tmp_path):  # noqa: F811
    """Ask a new question of a server that replies with the bytes of ``reply``."""
    file = tmp_path / "server" / "reply"
    file.parent.mkdir()
    server.usual = lambda handler, body: handler.send(file.read_bytes())
    once = structs.replace(settings, answers=1, patience=structs.replace(settings.patience, attempts=1))
    numbers = itertools.count()

    def read():
        endpoint = Endpoint(once)
        endpoint.ask(request(f"question {next(numbers)}", answer=Grades))
        endpoint.ledger.report()

    return file, read


def test_replies_of_servers(ask, capfd):
    file, read = ask
    file.write_bytes(completion(GRADES))
    survey(file, mutate(file.read_bytes(), 61), read, capfd, NAMES)


def test_answers_of_a_judge(ask, capfd):
    file, read = ask
    file.write_bytes(completion(GRADES))
    answers = ((name, completion(data.decode(errors="replace"))) for name, data in mutate(GRADES.encode(), 62))
    survey(file, answers, read, capfd, NAMES)


@pytest.mark.parametrize("tokens", [-1, 10**400], ids=["negative", "huge"])
def test_impossible_numbers_of_tokens(ask, capfd, tokens):
    """An answer without a computable price counts as garbage."""
    file, read = ask
    file.write_bytes(completion(GRADES).replace(b'"prompt_tokens": 100', b'"prompt_tokens": %d' % tokens))
    outcome = call(read, capfd)
    assert find_fault(outcome, NAMES) == "" and outcome.status == 2 and "garbage" in outcome.err


def test_answers_in_the_cache(settings, tmp_path, capfd):  # noqa: F811
    Endpoint(settings).ask(request())
    file = tmp_path / "cache" / "cache.db"
    mutated = mutate(file.read_bytes(), 63)
    survey(file, mutated, lambda: Endpoint(settings).ask(request()), capfd, NAMES, notes=("asking again",))


def test_answers_in_files_of_earlier_versions(tmp_path, capfd):
    (source, *_) = sorted(EARLIER.rglob("*.json"))
    file = tmp_path / source.parent.name / source.name
    file.parent.mkdir()
    file.write_bytes(source.read_bytes())
    assert AnswerCache(tmp_path).read(file.stem)
    mutated = mutate(file.read_bytes(), 65)
    survey(file, mutated, lambda: AnswerCache(tmp_path).read(file.stem), capfd, notes=("asking again",))


def test_settings_of_endpoints(tmp_path, capfd):
    file = tmp_path / "endpoint.json"
    file.write_text(json.dumps(SETTINGS))

    def read():
        Endpoint(read_endpoint_settings(file))

    survey(file, mutate(file.read_bytes(), 64), read, capfd, ("environment", "HTTP_PROXY"))
