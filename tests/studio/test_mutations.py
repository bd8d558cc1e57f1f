"""Two hundred damaged requests: each is served or refused with one line, and none breaks the server."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("starlette", reason="the extra studio is not installed")

from tests.studio.running import running_studio

SHARE = 5  # parts, so that a failure is found again quickly


def _png():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    return buffer.getvalue()


VALUES = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x" * 9000,
    "\u0000",
    "../../etc/passwd",
    "<script>",
    [],
    {},
    [[]],
    "\ud83d\ude00",
)
PATHS = (
    "/api/trajectories",
    "/api/trajectories/{}",
    "/api/trajectories/{}/run",
    "/api/trajectories/{}/branch",
    "/api/trajectories/{}/corrections",
    "/api/trajectories/{}/stop",
    "/api/trajectories/{}/images/{}",
    "/api/trajectories/{}/exports/{}",
    "/api/trajectories/{}/preview",
    "/api/events?after={}",
    "/static/{}",
)
NAMES = (
    "000",
    "999",
    "..",
    "../000",
    "%2e%2e%2f",
    "000%00",
    "000/..",
    "x" * 5000,
    "-1",
    "000-1-1-1",
    "\u2603",
    "run.json",
)
SETTINGS = ("mode", "image.interval_from", "text.top_k", "height", "system")
BODIES = (
    {"prompt": "o", "seed": 22, "n": 1, "stages": 1, "settings": {"image.num_timesteps": 3}, "images": []},
    {"stage": 0, "plan": "<ins>o</ins> <des>o</des>", "seed": 1, "n": 1, "stages": 1, "settings": {}},
    {"stage": 1, "right": False, "reason": "o", "correction": "o", "better": None},
    {"stages": 1},
)


def _damage(rng, data):
    """Change, cut or repeat some bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(3)
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            del data[at:]
        else:
            data[at:at] = data[: rng.integers(1, 40)]
        if not data:
            return b""
    return bytes(data)


def make_request(rng):
    """(method, path, body, content type)."""
    path = str(rng.choice(PATHS))
    path = path.replace("{}", str(rng.choice(NAMES))).replace("{}", str(rng.choice(NAMES)))
    body = json.loads(json.dumps(BODIES[rng.integers(len(BODIES))]))
    kind = rng.integers(4)
    if kind == 0:
        body[str(rng.choice([*body, "more"]))] = VALUES[rng.integers(len(VALUES))]
    elif kind == 1:
        body["images" if "prompt" in body else "image"] = (
            [base64.b64encode(_damage(rng, _png())).decode()] if "prompt" in body else str(rng.choice(NAMES))
        )
    elif kind == 2:
        body.setdefault("settings", {})
        body["settings"] = {str(rng.choice(SETTINGS)): VALUES[rng.integers(len(VALUES))]}
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    if kind == 3:
        data = _damage(rng, data)
    method = str(rng.choice(["POST", "POST", "POST", "GET", "DELETE", "PUT"]))
    return method, path, data, str(rng.choice(["application/json"] * 9 + ["text/plain"]))


@pytest.fixture(scope="module")
def target(sampler, tmp_path_factory):
    """A server of their own, whose limit on requests they exceed, with a trajectory to work on."""
    with running_studio(sampler, tmp_path_factory.mktemp("mutations") / "out") as running:
        running.wait(running.create(stages=2)[0])
        yield running


@pytest.mark.parametrize("part", range(SHARE))
def test_no_damaged_request_is_a_fault_of_the_server(target, part):
    rng = np.random.default_rng(part)
    statuses = []
    for number in range(200 // SHARE):
        method, path, data, media = make_request(rng)
        with target.http.stream(method, path, content=data, headers={"Content-Type": media}) as answer:
            statuses.append(answer.status_code)
            assert answer.status_code < 500, (part, number, method, path, data)
            if "event-stream" in answer.headers.get("content-type", ""):
                continue  # it is served, and hung up on
            text = answer.read()
            if answer.status_code >= 400:
                line = json.loads(text)["error"]
                assert line and "\n" not in line and len(line) <= 500, (method, path, line)
    assert sum(status >= 400 for status in statuses) > len(statuses) // 2
    assert target.http.get("/api/status").status_code == 200
