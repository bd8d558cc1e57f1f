"""The API of the studio, on the nano model and over a real socket."""

import base64
import io
import json
import time
import zipfile

import numpy as np
import PIL.Image
import pytest

from pdgen.data.records import RecordSource
from pdgen.sample.sampler import Sampler
from pdgen.sequence.trajectory_folder import load_trajectory

pytest.importorskip("starlette", reason="the extra studio is not installed")
import httpx2

from tests.studio.running import STUDIO, running_studio

PLAN = "<ins>o</ins> <des>o</des>"


def read_events(running, cursor, until, **query):
    """(id, kind, content) of the events after a cursor, until one satisfies ``until``."""
    found = []
    with running.http.stream("GET", "/api/events", params={"after": cursor, **query}) as answer:
        lines = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            lines[name] = value
            if not line and "data" in lines:
                found.append((lines["id"], lines["event"], json.loads(lines["data"])))
                if until(*found[-1]):
                    return found
                lines = {}
    raise AssertionError("the stream ended")


def get_cursor(running):
    return running.http.get("/api/trajectories").json()["cursor"]


def is_done(name):
    return lambda _, kind, content: kind == "trajectory" and content["id"] == name and content["progress"] == "done"


def png(color, size=(64, 64), **options):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(buffer, options.pop("format", "PNG"), **options)
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_trajectory_is_the_samplers_own_and_is_saved_as_its_folder(running, sampler):
    (name,) = running.create()
    view = running.wait(name, "done")
    (expected,) = sampler(["a red circle"], [22], STUDIO)
    saved = load_trajectory(running.studio.store.folder / name)
    texts = [stage.text for stage in expected.stages if hasattr(stage, "text")]
    assert [stage["text"] for stage in view["stages"] if stage["kind"] == "text"] == texts
    assert [image.tobytes() for image in saved.images] == [image.tobytes() for image in expected.images]
    assert saved.stop_reason == expected.stop_reason == view["summary"]["stop_reason"]
    assert {**saved.settings} == {**expected.settings}
    urls = [stage["url"] for stage in view["stages"] if stage["kind"] == "image"]
    picture = PIL.Image.open(io.BytesIO(running.http.get(urls[0]).content))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.images[0]))


def test_events_tell_texts_token_by_token_pictures_step_by_step_and_every_stage(running):
    cursor = get_cursor(running)
    (name,) = running.create()
    found = read_events(running, cursor, is_done(name))
    own = [(kind, content) for _, kind, content in found if content["id"] == name]
    stages = [content["index"] for kind, content in own if kind == "stage"]
    assert stages == list(range(len(running.view(name)["stages"])))
    numbers = [int(one[0].partition("-")[2]) for one in found]
    assert numbers == sorted(set(numbers))
    whole = running.view(name)["stages"]
    for kind, content in own:
        if kind == "text":
            assert whole[content["index"]]["text"].startswith(content["text"])
    assert {kind for kind, _ in own} >= {"trajectory", "stage"}


def test_who_reconnects_misses_nothing(running):
    cursor = get_cursor(running)
    (name,) = running.create()
    first = read_events(running, cursor, lambda _, kind, content: kind == "stage" and content["id"] == name)
    running.wait(name, "done")
    rest = read_events(running, first[-1][0], is_done(name), trajectory=name)
    stages = [content["index"] for _, kind, content in first + rest if kind == "stage" and content["id"] == name]
    assert stages == list(range(len(running.view(name)["stages"])))
    ((_, kind, _),) = read_events(running, "00000000-5", lambda *_: True)  # of an earlier process
    assert kind == "reset"


def test_a_step_is_one_stage_and_running_on_gives_what_one_run_gives(running):
    (whole,) = running.create()
    (name,) = running.create(stages=1)
    assert len(running.wait(name, "idle")["stages"]) == 1
    running.http.post(f"/api/trajectories/{name}/run", json={"stages": 2}).raise_for_status()
    assert len(running.wait(name, "idle", "done")["stages"]) == 3
    if running.view(name)["summary"]["progress"] == "idle":
        running.http.post(f"/api/trajectories/{name}/run", json={}).raise_for_status()
    stages, expected = running.wait(name, "done")["stages"], running.wait(whole, "done")["stages"]
    assert [stage.get("text") for stage in stages] == [stage.get("text") for stage in expected]
    again = running.http.post(f"/api/trajectories/{name}/run", json={})
    assert again.status_code == 409 and "branch it" in again.json()["error"]


def test_branches_hold_texts_and_images_of_ones_own(running):
    (name,) = running.create()
    before = running.wait(name, "done")["stages"]
    (planned,) = running.branch(name, stage=0, plan=PLAN)
    (drawn,) = running.branch(name, stage=1, image=png("red", (20, 20)), stages=1)
    (judged,) = running.branch(name, stage=2, critique="o <refine>o</refine>", stages=1)
    assert planned == f"{name}-1" and drawn == f"{name}-2"
    view = running.wait(planned)
    assert view["stages"][0]["text"] == PLAN and view["stages"][0]["origin"] == "outside"
    assert view["summary"]["parent"] == name and view["summary"]["stage"] == 0
    width, height = before[1]["width"], before[1]["height"]
    picture = PIL.Image.open(io.BytesIO(running.http.get(running.wait(drawn)["stages"][1]["url"]).content))
    assert picture.size == (width, height) and picture.getpixel((3, 3)) == (255, 0, 0)
    assert running.wait(judged)["stages"][3]["stage"] == "refine" or running.view(judged)["stages"][3]["kind"] == "text"
    assert running.view(name)["stages"] == before


def test_a_stage_is_drawn_n_times_and_one_is_picked(running):
    (name,) = running.create(stages=1)
    running.wait(name)
    several = running.branch(name, stage=1, n=3, seed=5, stages=1)
    pictures = {running.http.get(running.wait(one)["stages"][1]["url"]).content for one in several}
    assert len(several) == len(pictures) == 3
    running.http.post(f"/api/trajectories/{several[1]}/run", json={}).raise_for_status()
    assert len(running.wait(several[1], "done")["stages"]) >= 2


def test_a_trajectory_that_waits_stops_at_once(running):
    names = running.create(n=8)
    view = running.http.post(f"/api/trajectories/{names[-1]}/stop").json()
    assert view["progress"] == "idle" or running.wait(names[-1])
    places = [running.view(name)["summary"]["place"] for name in names]
    assert sorted(place for place in places if place) == list(range(1, 1 + sum(map(bool, places))))
    assert all(running.wait(name, "done") for name in names[:-1])


@pytest.mark.slow
def test_stopping_drops_the_stage_in_work_and_keeps_the_others(running):
    (name,) = running.create(settings={"image.num_timesteps": 250})
    while running.view(name)["summary"]["stages"] < 1:
        time.sleep(0.02)
    running.http.post(f"/api/trajectories/{name}/stop").raise_for_status()
    view = running.wait(name, "idle")
    assert len(load_trajectory(running.studio.store.folder / name).stages) == len(view["stages"]) >= 1


def test_deleting_removes_the_folder_and_keeps_branches(running):
    (name,) = running.create(stages=1)
    running.wait(name)
    (branch,) = running.branch(name, stage=0, plan=PLAN, stages=1)
    running.wait(branch)
    assert running.http.delete(f"/api/trajectories/{name}").status_code == 204
    assert running.http.get(f"/api/trajectories/{name}").status_code == 404
    assert not (running.studio.store.folder / name).exists()
    assert running.view(branch)["stages"]
    assert running.create(stages=1)[0] > name


def test_exports(running):
    (name,) = running.create()
    view = running.wait(name, "done")
    archive = zipfile.ZipFile(io.BytesIO(running.http.get(f"/api/trajectories/{name}/exports/zip").content))
    images = sum(stage["kind"] == "image" for stage in view["stages"])
    assert len(archive.namelist()) == 1 + images and f"{name}/trajectory.json" in archive.namelist()
    for kind in ("strip", "animation"):
        PIL.Image.open(io.BytesIO(running.http.get(f"/api/trajectories/{name}/exports/{kind}").content)).verify()
    command = running.http.get(f"/api/trajectories/{name}/exports/command").text
    assert "--prompt=a red circle" in command.replace("'", "") and "--seed=22" in command
    assert "--num_timesteps=4" in command and "--max_images=3" in command
    assert running.http.get(f"/api/trajectories/{name}/exports/pdf").status_code == 404


def test_the_exported_python_draws_a_trajectory_and_its_branch_again(running, sampler, monkeypatch):
    (root,) = running.create()
    running.wait(root, "done")
    (branch,) = running.branch(root, stage=0, plan=PLAN)
    running.wait(branch, "done")
    monkeypatch.setattr(Sampler, "from_checkpoint", lambda _: sampler)
    for name, kept in ((root, 0), (branch, 1)):
        names = {}
        exec(running.http.get(f"/api/trajectories/{name}/exports/python").text, names)
        assert len(names["start"].stages) == kept
        saved = load_trajectory(running.studio.store.folder / name)
        assert [image.tobytes() for image in names["again"].images] == [image.tobytes() for image in saved.images]
        assert [getattr(one, "text", "") for one in names["again"].stages] == [
            getattr(one, "text", "") for one in saved.stages
        ]


def test_corrections_are_records_and_pairs_that_can_be_packed(running, tmp_path):
    (name,) = running.create()
    running.wait(name, "done")
    (better,) = running.branch(name, stage=0, plan=PLAN, stages=1)
    running.wait(better)
    before = running.corrections.count()
    path = f"/api/trajectories/{name}/corrections"
    wrong = {"stage": 0, "right": False, "reason": "Two are asked for.", "correction": "Draw two.", "better": better}
    assert running.http.post(path, json=wrong).status_code == 201
    assert running.http.post(path, json={"stage": 1, "right": True, "reason": "As planned."}).status_code == 201
    silent = running.http.post(path, json={"stage": 1, "right": False, "reason": "No."})
    assert silent.status_code == 400 and "correction" in silent.json()["error"]
    after = running.corrections.count()
    assert (after.corrections, after.pairs) == (before.corrections + 2, before.pairs + 1)
    zipfile.ZipFile(io.BytesIO(running.http.get("/api/corrections").content)).extractall(tmp_path)
    records = RecordSource(tmp_path / "records")
    conflict = next(one for one in records if one.source == "conflict" and one.segments[4].text == PLAN)
    assert [(s.stage, s.target) for s in conflict.segments] == [
        ("prompt", False),
        ("plan", False),
        ("sketch", False),
        ("inspect", True),
        ("plan", True),
        ("refine", True),
    ]
    assert conflict.segments[3].text == "Two are asked for. <refine>Draw two.</refine>"
    assert conflict.segments[4].text == PLAN and not conflict.complete
    alignment = next(record for record in records if record.source == "alignment")
    assert [(s.stage, s.target) for s in alignment.segments][-2:] == [("sketch", True), ("inspect", True)]
    pairs = RecordSource(tmp_path / "pairs")
    assert set(pairs.subsets) == {"chosen", "rejected"}
    assert [s.target for s in pairs[0].segments] == [False, True, True]


def test_the_description_names_what_there_is(running):
    document = running.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    paths = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert ("post", "/api/trajectories/{id}/branch") in paths and ("get", "/api/events") in paths
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]
    for page in ("/", "/docs", "/static/main.js"):
        answer = running.http.get(page)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert "<script>" not in answer.text and "style=" not in answer.text and "https://" not in answer.text


def test_a_restart_shows_what_was_there_and_goes_on(sampler, tmp_path):
    with running_studio(sampler, tmp_path / "out") as first:
        (name,) = first.create(stages=1)
        stages = first.wait(name)["stages"]
    with running_studio(sampler, tmp_path / "out") as second:
        assert second.view(name)["stages"] == stages
        second.http.post(f"/api/trajectories/{name}/run", json={}).raise_for_status()
        assert second.wait(name, "done")["stages"][0] == stages[0]


def test_other_names_and_missing_tokens_are_refused(sampler, tmp_path):
    with running_studio(sampler, tmp_path / "a", start=False) as local:
        evil = local.http.get("/api/status", headers={"Host": "evil.example"})
        assert evil.status_code == 421
        crossed = local.http.post("/api/trajectories", json={}, headers={"Origin": "http://evil.example"})
        assert crossed.status_code == 403
    with running_studio(sampler, tmp_path / "b", token="x" * 20, hosts=("*",), start=False) as remote:
        assert remote.http.get("/api/status").status_code == 401
        bearer = {"Authorization": f"Bearer {'x' * 20}"}
        assert remote.http.get("/api/status", headers=bearer).status_code == 200
        first = remote.http.get("/", params={"token": "x" * 20})
        assert first.status_code == 303 and "HttpOnly" in first.headers["set-cookie"]
        assert remote.http.get("/api/status").status_code == 200  # by the cookie


def test_more_requests_than_the_burst_are_refused_until_time_has_passed(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr("pdgen.studio.gate.BURST", 5)
    monkeypatch.setattr("pdgen.studio.gate.RATE", 0.0)
    with running_studio(sampler, tmp_path, start=False) as running:
        answers = [running.http.post("/api/trajectories", json={}) for _ in range(7)]
        assert [answer.status_code for answer in answers] == [400] * 5 + [429] * 2
        assert "wait a second" in answers[-1].json()["error"]
        assert running.http.get("/api/trajectories").status_code == 200  # changes alone are counted
        monkeypatch.setattr("pdgen.studio.gate.RATE", 1e6)
        assert running.http.post("/api/trajectories", json={}).status_code == 400


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "empty"),
        ({"prompt": "x", "n": 9}, "n"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x" * 8001}, "length"),
        ({"prompt": "x y " * 200}, "tokens"),
        ({"prompt": "x", "images": ["bm90IGFuIGltYWdl"]}, "image 1"),
        ({"prompt": "x", "settings": {"depth": 3}}, "no setting"),
        ({"prompt": "x", "settings": {"image.text_scale": 0}}, "text_scale"),
        ({"prompt": "x", "settings": {"max_images": 500}}, "lower max_images"),
        ({"prompt": "x", "settings": {"image.num_timesteps": 9999}}, "num_timesteps"),
        ({"prompt": "x", "settings": {"height": 30, "width": 30}}, "height"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(running, request_, words):
    before = running.http.get("/api/trajectories").json()["trajectories"]
    answer = running.http.post("/api/trajectories", json=request_)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert running.http.get("/api/trajectories").json()["trajectories"] == before


def test_a_large_image_is_refused_before_it_is_decoded(running):
    image = png("white", (8000, 8000))  # 64 million pixels in few bytes
    answer = running.http.post("/api/trajectories", json={"prompt": "x", "images": [image]})
    assert answer.status_code == 400 and "smaller" in answer.json()["error"]


def test_an_upload_is_turned_upright_and_loses_its_metadata(running):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    exif[0x010F] = "secret"
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 20), "blue").save(buffer, "JPEG", exif=exif)
    data = base64.b64encode(buffer.getvalue()).decode()
    (name,) = running.create(images=[data], stages=1)
    stage = running.wait(name)["stages"][0]
    assert (stage["width"], stage["height"]) == (20, 40)
    assert b"secret" not in running.http.get(stage["url"]).content


@pytest.mark.slow
def test_a_client_that_goes_away_frees_its_row(running, monkeypatch):
    monkeypatch.setattr("pdgen.studio.studio.GRACE", 0.3)
    headers = {"X-Studio-Client": "leaver"}
    answer = running.http.post(
        "/api/trajectories", json={"prompt": "x", "seed": 1, "settings": {"image.num_timesteps": 250}}, headers=headers
    )
    name = answer.json()["trajectories"][0]["id"]
    assert running.wait(name)["summary"]["progress"] == "idle"


def test_hang_ups_do_no_harm(running):
    for _ in range(5):
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{running.address}/api/events", timeout=0.2)
    assert running.http.get("/api/status").status_code == 200
