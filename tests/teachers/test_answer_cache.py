"""The cache of paid answers: damaged and hostile files, files of earlier versions, locks."""

import contextlib
import pathlib
import pickle
import shutil
import sqlite3
import threading
import time

import pytest
from msgspec import structs

from pdgen.teachers import endpoint as ep
from pdgen.teachers.answer_cache import AnswerCache
from pdgen.teachers.chat import AnswerError, PaidAnswer
from pdgen.teachers.protocols import TeacherError
from tests.teachers.conftest import Word, read_entries, request

EARLIER = pathlib.Path(__file__).parents[1] / "earlier" / "answers"
ANSWER = PaidAnswer("{}", None, "stop", 1, 1)


def change(folder, statement, *values):
    """Change the database without the cache's knowledge."""
    with contextlib.closing(sqlite3.connect(f"{folder}/cache.db")) as database, database:
        assert database.execute(statement, values).rowcount > 0


@pytest.fixture
def earlier(settings):
    """Settings with a cache written by pdgen 0.3.0, with at most two answers to each question."""
    shutil.copytree(EARLIER, settings.cache)
    return structs.replace(settings, answers=2)


def test_answers_of_earlier_versions_are_not_paid_for_again(server, earlier):
    client = ep.Endpoint(earlier)
    assert client.ask(request("one")) == Word("größer")
    for question, words in (("two", "refused: I cannot help"), ("three", "Expected `str`, got `int`")):
        with pytest.raises(AnswerError, match=words):
            client.ask(request(question))
    assert ep.Endpoint(earlier, dry_run=True).ask(request("one")) == Word("größer")
    assert server.bodies == [] and client.ledger.total() == ep.Usage(cached=3)


def test_an_earlier_entry_is_continued_in_the_new_cache(server, earlier):
    files = {path: path.read_bytes() for path in pathlib.Path(earlier.cache).rglob("*.json")}
    for _ in range(2):
        assert ep.Endpoint(structs.replace(earlier, answers=3)).ask(request("three")) == Word("three")
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert len(server.bodies) == 1
    [entry] = read_entries(earlier)
    assert [answer["content"] for answer in entry["answers"]] == ['{"word": 3}'] * 2 + ['{"word": "three"}']
    assert {path: path.read_bytes() for path in files} == files


DAMAGE = [b"", b"{", b'{"model": 1}', b'{"model":"m","task":"t","answers":[{}]}', b"\xff"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_earlier_versions_is_one_warning_and_a_new_request(server, earlier, caplog, damage):
    path = next(path for path in pathlib.Path(earlier.cache).rglob("*.json") if "größer" in path.read_text())
    path.write_bytes(damage)
    caplog.set_level("WARNING", logger="absl")
    for _ in range(2):
        assert ep.Endpoint(earlier).ask(request("one")) == Word("one")
    assert [r.getMessage().startswith(f"{path}: not readable") for r in caplog.records] == [True]
    assert len(server.bodies) == 1


@pytest.mark.parametrize("damage", [*DAMAGE, 7, "text", None])
def test_a_damaged_entry_is_one_warning_and_a_new_request(server, settings, caplog, damage):
    ep.Endpoint(settings).ask(request())
    whole = read_entries(settings)
    change(settings.cache, "UPDATE Cache SET value = ?", damage)
    caplog.set_level("WARNING", logger="absl")
    assert ep.Endpoint(settings).ask(request()) == Word("one")
    assert [r.getMessage().startswith(f"{settings.cache}/cache.db: not readable") for r in caplog.records] == [True]
    assert len(server.bodies) == 2
    assert read_entries(settings) == whole
    assert [path.name for path in pathlib.Path(settings.cache).iterdir()] == ["cache.db"]


class Bomb:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_planted_pickle_is_not_loaded(server, settings, caplog, tmp_path, in_file):
    ep.Endpoint(settings).ask(request())
    data = pickle.dumps(Bomb(tmp_path / "loaded"))
    (pathlib.Path(settings.cache) / "bomb").write_bytes(data)
    value, name = (None, "bomb") if in_file else (data, None)
    change(settings.cache, "UPDATE Cache SET mode = 4, value = ?, filename = ?", value, name)
    caplog.set_level("WARNING", logger="absl")
    assert ep.Endpoint(settings).ask(request()) == Word("one")
    assert not (tmp_path / "loaded").exists()
    assert caplog.text.count("cache.db: not readable (JSON is malformed") == 1
    assert len(server.bodies) == 2


@pytest.mark.parametrize("use", [lambda c: c.read("ab"), lambda c: c.write("ab", "m", "t", [ANSWER])])
def test_a_damaged_database_is_one_line(tmp_path, use):
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TeacherError, match=r"cache.db: file is not a database; make room, .* move a damaged") as fault:
        use(AnswerCache(tmp_path))
    assert len(str(fault.value)) < 400


def test_no_answer_is_evicted(tmp_path):
    cache = AnswerCache(tmp_path)
    cache.write("ab", "m", "t", [ANSWER])
    change(tmp_path, "UPDATE Settings SET value = 1 WHERE key = 'size_limit'")
    later = AnswerCache(tmp_path)
    for n in range(20):
        later.write(f"{n:02}", "m", "t", [ANSWER])
    assert later.read("ab") == [ANSWER]


def test_a_lock_has_one_holder_at_a_time(tmp_path):
    inside, seen = [], []

    def hold(cache):
        for _ in range(40):
            with cache.locked("ab"):
                inside.append(1)
                time.sleep(0.0002)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=hold, args=(AnswerCache(tmp_path),)) for _ in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert seen == [1] * 240
    assert not list(tmp_path.rglob("*.lock"))
