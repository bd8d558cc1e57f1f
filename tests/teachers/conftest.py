"""A chat endpoint on localhost for the tests of its clients."""

import contextlib
import dataclasses
import json
import sqlite3
import threading

import msgspec
import pytest

from pdgen.teachers import endpoint as ep
from pdgen.teachers.chat import ChatRequest
from tests.support.chat_server import ChatServer, completion

KEY = "sk-very/secret+0123456789"
PLAN = "<ins>Add a red circle.</ins> <des>A red circle.</des>"
YES = '{"analysis": "The plan adds the circle.", "accept": true, "correction": null}'


class Word(msgspec.Struct, frozen=True):
    word: str


def request(text: str = "one", **changes) -> ChatRequest:
    return dataclasses.replace(ChatRequest("word", 1, "Say a word.", (text,), Word, Word("assumed")), **changes)


def echo(handler, body):
    """Perform the usual act: return the question as the word."""
    handler.send(completion(json.dumps({"word": body["messages"][1]["content"][0]["text"]})))


def read_entries(settings) -> list[dict]:
    """Read the entries of a cache, in order, with SQLite alone."""
    with contextlib.closing(sqlite3.connect(f"{settings.cache}/cache.db")) as database:
        return [json.loads(value) for (value,) in database.execute("SELECT value FROM Cache ORDER BY rowid")]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    chat = ChatServer(echo)
    threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield chat
    chat.shutdown()
    chat.server_close()


@pytest.fixture
def settings(server, tmp_path):
    patience = ep.RetryPolicy(timeout=5.0, attempts=4, backoff=0.01, longest_wait=2.0)
    return ep.EndpointSettings(
        server.url,
        "judge-1",
        str(tmp_path / "cache"),
        "TEST_KEY",
        patience=patience,
        concurrency=4,
        input_price=2.0,
        output_price=8.0,
    )
