"""The endpoint's settings: impossible ones are refused, and its key is never shown."""

import json
import sys

import pytest
from msgspec import structs

from pdgen.teachers import endpoint as ep
from pdgen.teachers.protocols import TeacherError
from tests.support.chat_server import refuses, says, sends
from tests.teachers.conftest import KEY, read_entries, request


def test_the_key_is_never_shown(server, settings, tmp_path, caplog, capfd):
    caplog.set_level("DEBUG")
    echoed = f"Incorrect key {KEY}, also written {json.dumps(KEY)} and {KEY.replace('/', chr(92) + '/')}"
    faults = []
    client = ep.Endpoint(settings)
    server.script.extend([says(json.dumps({"word": echoed})), refuses(500, echoed), sends(echoed.encode())])
    assert "[key]" in client.ask(request()).word
    client.ask(request("two"))
    location = f"http://127.0.0.1:9/?key={KEY}"
    for act in (refuses(401, echoed), refuses(302, Location=location), says(None, refusal=echoed)):
        server.script.append(act)
        with pytest.raises(TeacherError) as fault:
            client.ask(request(f"fault {len(faults)}"))
        faults.append(str(fault.value))
    texts = [*faults, repr(client), repr(vars(client)), repr(settings), repr(vars(client.ledger)), caplog.text]
    texts += [client.ledger.report(), *capfd.readouterr()]
    texts += [p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file()]
    assert len(read_entries(settings)) == 3
    for text in texts:
        assert "very" not in text and "0123456789" not in text


@pytest.mark.parametrize("value", [None, "", "two words", "new\nline", 'quo"te', "ключ"])
def test_a_missing_or_impossible_key_is_named_by_its_variable(settings, monkeypatch, value):
    monkeypatch.delenv("TEST_KEY")
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(TeacherError, match="environment variable TEST_KEY holds no key; export it") as fault:
        ep.Endpoint(settings)
    assert not value or value not in str(fault.value)
    ep.Endpoint(settings, dry_run=True)


def test_without_a_key_variable_no_credentials_are_sent(server, settings, monkeypatch):
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "sk-other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")
    ep.Endpoint(structs.replace(settings, key_variable="")).ask(request())
    assert "Authorization" not in server.headers[0]
    ep.Endpoint(settings).ask(request("two"))
    assert server.headers[1].get_all("Authorization") == [f"Bearer {KEY}"]
    assert not any("sk-other" in str(headers) for headers in server.headers)


@pytest.mark.parametrize(("package", "module"), [("openai", "transport"), ("diskcache", "answer_cache")])
def test_without_the_extra(settings, monkeypatch, package, module):
    monkeypatch.delitem(sys.modules, f"pdgen.teachers.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TeacherError, match=rf"needs the extra 'endpoint' .*{package}.*pip install 'pdgen\[endpoint\]'"):
        ep.Endpoint(settings)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9", "http://127.0.0.1:port"])
def test_a_proxy_that_cannot_be_used_is_one_line(settings, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(TeacherError, match="check it and HTTP_PROXY, HTTPS_PROXY and ALL_PROXY") as fault:
        ep.Endpoint(settings)
    assert len(str(fault.value)) < 400 and "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "api.openai.com/v1"}, "not the base of an interface"),
        ({"url": "ftp://host/v1"}, "not the base of an interface"),
        ({"url": "http://host/v1\r\nX: y"}, "not the base of an interface"),
        ({"url": "http://host:port/v1"}, "not the base of an interface"),
        ({"url": "https://me:hidden@host/v1"}, "url of host: holds credentials"),
        ({"url": "https://host/v1?key=hidden"}, "url of host: holds credentials"),
        ({"model": ""}, "must be named"),
        ({"concurrency": 0}, "concurrency = 0: at least 1"),
        ({"answers": 0}, "answers = 0: at least 1"),
    ],
)
def test_impossible_settings(settings, changes, words):
    with pytest.raises(TeacherError, match=words) as fault:
        structs.replace(settings, **changes)
    assert "hidden" not in str(fault.value)


@pytest.mark.parametrize("changes", [{"attempts": 0}, {"timeout": 0.0}, {"backoff": -1.0}, {"longest_wait": -1.0}])
def test_impossible_patience(changes):
    with pytest.raises(TeacherError, match="at least one attempt"):
        ep.RetryPolicy(**changes)
