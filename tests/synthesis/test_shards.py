"""Shards of the subsets: the choice of teachers, latents, leaks, order of archives, dry runs, remote teachers."""

import io
import json
import pathlib
import pickle
import threading
import time

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.sequence.trajectory import Image
from pdgen.shapes.detector import detect
from pdgen.shapes.parse import parse
from pdgen.shapes.placement import FREE, LATTICE
from pdgen.synthesis import shards
from pdgen.synthesis.build import Shard
from pdgen.synthesis.settings import Alignment, Conflict, DatasetSettings, MultiTurn, SettingsError, TeacherSettings
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import make_samples
from pdgen.teachers.endpoint import Endpoint, EndpointSettings
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import Stroke, TeacherError, Verdict
from pdgen.teachers.remote_teachers import EndpointJudge
from tests.support.chat_server import ChatServer, says
from tests.support.shapes_records import Trusting
from tests.synthesis.importers.made import write_tar
from tests.synthesis.importers.test_genref import SEEING, sample

PROMPTS = ("a red circle left of a blue square", "two green stars", "a photo of a bench")


class Blank:
    """A painter that paints nothing."""

    name = "blank"

    def paint(self, stroke):
        return np.zeros((8, 8, 3), np.uint8)


def answer(handler, body):
    """Answer as the writer by rules, and as a judge that accepts all but conflicts, marked by "crosses"."""
    text = body["messages"][1]["content"]
    text = text if isinstance(text, str) else text[0]["text"]
    kind = body["response_format"]["json_schema"]["name"]
    if kind == "ParseAnswer":
        said = {"reason": "", "graph": msgspec.to_builtins(parse(text.partition("\n")[2]))}
    else:
        said = {"analysis": "As planned, says the server.", "accept": True, "correction": None}
    says(json.dumps(said))(handler, body)


@pytest.fixture
def server():
    with ChatServer(answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def remote(tmp_path, url):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    endpoint = EndpointSettings(url=url, model="m", cache=str(tmp_path / "answers"), concurrency=3, input_price=1e4)
    teachers = TeacherSettings("kontext", "endpoint", "endpoint", prompts=str(prompts), endpoint=endpoint)
    return DatasetSettings(latents=False, rewritten=0, multi_turn=MultiTurn(count=6, fault_rate=0), teachers=teachers)


def test_teachers_are_those_of_shapes_world_or_chosen_by_name(tmp_path):
    own = shards.make_teachers(DatasetSettings())
    assert (type(own.painter), type(own.judge), type(own.writer)) == (ShapesPainter, ExactJudge, RulesWriter)
    assert (own.placement, own.judge_explains, own.painter.size) == (LATTICE, False, 64)
    assert shards.make_teachers(DatasetSettings(positions="free")).placement == FREE
    settings = remote(tmp_path, "http://127.0.0.1:1/v1")
    teachers = msgspec.structs.replace(settings.teachers, redraws=2)
    others = shards.make_teachers(msgspec.structs.replace(settings, teachers=teachers))
    assert isinstance(others.judge, EndpointJudge) and others.painter.settings.size == 1024
    assert (others.placement, others.judge_explains, others.redraws) == (None, True, 2)


@pytest.mark.parametrize(("positions", "sizes"), [("lattice", {7, 15}), ("free", {7, 10, 11, 14, 15})])
def test_pictures_show_things_where_the_settings_place_them(positions, sizes):
    settings = DatasetSettings(positions=positions, multi_turn=MultiTurn(count=12, fault_rate=0.5))
    records = make_samples(settings, shards.make_teachers(settings), "multi_turn", range(12)).records
    shown = [PIL.Image.open(io.BytesIO(s.png)) for r in records for s in r.segments if isinstance(s, Image)]
    assert {picture.size for picture in shown} == {(64, 64)}
    boxes = [found.box for picture in shown for found in detect(np.asarray(picture))]
    assert {right - left for left, _, right, _ in boxes} == sizes
    assert ({v % 8 for box in boxes for v in box[:2]} == {0}) is (positions == "lattice")


def test_a_missing_key_is_reported_before_any_request(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    settings = remote(tmp_path, "http://127.0.0.1:1/v1")
    endpoint = msgspec.structs.replace(settings.teachers.endpoint, key_variable="NO_SUCH_KEY")
    teachers = msgspec.structs.replace(settings.teachers, endpoint=endpoint)
    settings = msgspec.structs.replace(settings, teachers=teachers)
    with pytest.raises(TeacherError, match="NO_SUCH_KEY"):
        shards.make_teachers(settings)


def test_a_shard_has_latents_and_is_the_same_in_any_process():
    make = pickle.loads(pickle.dumps(shards.make_shard_maker(DatasetSettings(multi_turn=MultiTurn(count=4)))))
    made = make(Shard("multi_turn", 0, 1, 3))
    assert [r.id for r in made.records] == ["multi_turn-0-000001", "multi_turn-0-000002"]
    assert all(s.latent_shape == (8, 8, 16) for r in made.records for s in r.segments if isinstance(s, Image))
    assert made.noted == {}
    assert make(Shard("multi_turn", 0, 2, 3)).records == made.records[1:]


def test_remote_teachers_are_asked_once_and_write_the_inspections(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shards, "KontextPainter", lambda settings: Blank())
    make = shards.make_shard_maker(remote(tmp_path, server.url))
    made = make(Shard("multi_turn", 0, 0, 6))
    prompts = [r.segments[0].text for r in made.records]
    assert prompts[:2] == list(PROMPTS[:2]) and set(prompts) == set(PROMPTS[:2])  # one is a benchmark's
    assert made.rejected == {"benchmark prompt": made.rejected["benchmark prompt"]}
    inspections = {s.text for r in made.records for s in r.segments if s.stage == "inspect"}
    assert inspections == {"As planned, says the server."}
    asked = len(server.bodies)
    assert asked == len({json.dumps(body) for body in server.bodies})
    shards._decode_settings.cache_clear()  # as in another process
    assert make(Shard("multi_turn", 0, 0, 6)).records == made.records
    assert len(server.bodies) == asked and server.peak <= 3


@pytest.mark.parametrize("variant", ["graph", "self"])
def test_a_dry_run_sends_nothing_and_counts_a_build_s_requests(tmp_path, server, variant):
    settings = remote(tmp_path, server.url)
    settings = msgspec.structs.replace(
        settings, conflict=Conflict(positive=2, negative=2, variant=variant, checkpoint="none")
    )
    endpoint = Endpoint(settings.teachers.endpoint, dry_run=True)
    teachers = shards.make_teachers(settings, endpoint)
    prompts = shards.read_prompts(settings)
    for subset, count in (("multi_turn", 6), ("conflict", 4)):
        shards.run_dry(settings, teachers, subset, range(count), prompts)
    assert server.bodies == []
    calls = {task: usage.calls for task, usage in endpoint.ledger.tasks.items()}
    assert calls["parse"] >= 2 and calls["judge picture"] >= 2 and calls["judge plan"] >= 1
    assert endpoint.ledger.price(endpoint.ledger.total()) > 0


def test_a_dry_run_paints_nothing():
    painter = shards.BlankPainter(24)
    assert painter.paint(Stroke("Draw a star.", None, None, 0)).shape == (24, 24, 3) and painter.pictures == 1


def test_leaks_are_recorded_by_record():
    settings = DatasetSettings(allow_leaks=True, multi_turn=MultiTurn(count=3, fault_rate=0), rewritten=0)
    teachers = Teachers(Blank(), Trusting(), RulesWriter(), placement=None)
    texts = ("a photo of a bench", "A photo of a cow.", "a red bench")
    records = make_samples(settings, teachers, "multi_turn", range(3), texts).records
    assert shards.find_leaks(records) == {"exact": ["multi_turn-0-000000"], "normalised": ["multi_turn-0-000001"]}


def test_shards_of_an_archive_do_not_depend_on_which_are_remade(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {str(n): sample(f"{n} dogs") for n in range(9)})
    pathlib.Path(archive).with_name("b.tar").write_bytes(pathlib.Path(archive).read_bytes())
    alignment = Alignment(positive=2, negative=4, archive=str(tmp_path))
    settings = DatasetSettings(latents=False, alignment=alignment)
    cut = [Shard("alignment", n, 2 * n, 2 * n + 2) for n in range(3)]
    used = {0: 0, 1: 2, 2: 4}
    make = shards.make_archive_maker(settings, SEEING, lambda shard: used[shard.number])
    whole = [make(shard).records for shard in cut]
    prompts = [r.segments[0].text for records in whole for r in records]
    assert prompts == [f"{n} dogs" for n in range(6)]
    again = shards.make_archive_maker(settings, SEEING, lambda shard: used[shard.number])
    assert [again(cut[n]).records for n in (2, 0, 1)] == [whole[n] for n in (2, 0, 1)]


class Slow(Trusting):
    """A judge that waits before each answer; at the tenth call the server is gone."""

    def __init__(self):
        self.calls, self.lock = 0, threading.Lock()

    def judge_picture(self, plan, picture, previous=None):
        with self.lock:
            self.calls += 1
            number = self.calls
        time.sleep(0.02)
        if number == 10:
            raise TeacherError("the server is gone")
        return Verdict(accept=True, analysis="It is as planned.")


def test_requests_stop_once_a_teacher_is_gone():
    settings = DatasetSettings(multi_turn=MultiTurn(count=60, fault_rate=0))
    judge = Slow()
    with pytest.raises(TeacherError, match="the server is gone"):
        make_samples(settings, Teachers(ShapesPainter(32), judge, RulesWriter()), "multi_turn", range(60), threads=4)
    assert judge.calls <= 10 + 2 * 4


def test_a_file_of_prompts_is_read_and_bad_ones_are_named(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \n")
    settings = DatasetSettings(teachers=TeacherSettings(prompts=str(path)))
    assert shards.read_prompts(settings) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(SettingsError, match=r"teachers.prompts: .*prompts.txt: holds no prompt"):
        shards.read_prompts(settings)
    path.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        shards.read_prompts(settings)
