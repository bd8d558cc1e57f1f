"""WISE: worked examples of the three scorings, and judging by a misbehaving server on localhost."""

import io
import json
import struct
import threading
import zlib

import msgspec
import numpy as np
import PIL.Image
import pytest

from pdgen.evaluate import wise
from pdgen.evaluate.errors import EvaluationError
from pdgen.teachers.endpoint import Endpoint, EndpointSettings, RetryPolicy
from tests.support.chat_server import ChatServer, completion, refuses, says

GRADED = {"graded": wise.JUDGEMENTS["graded"]}
GRADES = '{"consistency": 2, "realism": 1, "aesthetic_quality": 0}'


def record(number, **changes):
    texts = {"Prompt": f"prompt {number}", "Explanation": f"shows {number}", "Subcategory": f"s{number}"}
    return {**texts, "Category": "c", "prompt_id": number, **changes}


# The two published lists: the last id of each category, and some subcategories with their last ids.
ORIGINAL = {
    400: "Cultural knowledge",
    567: "time",
    700: "Space",
    800: "Biology",
    900: "Physical Knowledge",
    1000: "Chemistry",
}
VERIFIED = dict(zip((400, 520, 640, 760, 880, 1000), ORIGINAL.values()))
HALVES = ("first", "second")


def listed(ends, coarse=False):
    """Make a list whose categories end at these ids, each of two subcategories; coarse: the last five are one."""
    made, start = [], 1
    for end, category in ends.items():
        for number in range(start, end + 1):
            half = HALVES[2 * (number - start) > end - start]
            outer = "Reasoning" if coarse and start > 1 else category
            made.append(wise.WisePrompt(number, f"prompt {number}", "e", outer, f"{category} {half}"))
        start = end + 1
    return made


def grades_in(body):
    """Answer as the usual judge: for image n, consistency n mod 3, or 1 if a binary score is requested."""
    number = int(body["messages"][1]["content"][0]["text"].split()[2])
    binary = body["response_format"]["json_schema"]["name"] == "Binary"
    return {"score": number % 2} if binary else {"consistency": number % 3, "realism": 2, "aesthetic_quality": 1}


def judges(handler, body):
    handler.send(completion(json.dumps(grades_in(body))))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    chat = ChatServer(judges)
    threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield chat
    chat.shutdown()
    chat.server_close()


@pytest.fixture
def settings(server, tmp_path):
    return EndpointSettings(
        server.url,
        "judge",
        str(tmp_path / "answers"),
        patience=RetryPolicy(attempts=2, backoff=0.01),
        concurrency=1,
        input_price=2.5,
        output_price=10.0,
    )


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([record(number) for number in (1, 2, 5)]))
    return wise.read_wise_prompts([path])


@pytest.fixture
def images(tmp_path, prompts):
    for prompt in prompts:
        PIL.Image.new("RGB", (8, 8), (prompt.prompt_id, 0, 0)).save(tmp_path / f"{prompt.prompt_id}.png")
    return wise.find_images(tmp_path, prompts)


def test_the_score_of_an_image():
    # (0.7 x 2 + 0.2 x 1 + 0.1 x 0) / 2.
    assert wise.Grades(2, 1, 0).score == pytest.approx(0.8)
    assert (wise.Grades(2, 2, 2).score, wise.Grades(0, 0, 0).score) == (1, 0)
    assert wise.Grades(0, 0, 1).score == pytest.approx(0.05)


def test_the_ids_of_the_categories():
    ends = [(ids[0], ids[-1]) for ids in wise.ORIGINAL.values()]
    assert ends == [(1, 400), (401, 567), (568, 700), (701, 800), (801, 900), (901, 1000)]
    ends = [(ids[0], ids[-1]) for ids in wise.VERIFIED.values()]
    assert ends == [(1, 400), (401, 520), (521, 640), (641, 760), (761, 880), (881, 1000)]
    assert list(wise.ORIGINAL) == list(wise.VERIFIED)
    assert [sum(s.weights) for s in wise.SCORINGS.values()] == pytest.approx([1, 1, 1])


def answers():
    """Culture gets (2, 1, 0), time (1, 1, 1), the others 0; every third image passes the binary judge."""
    graded = {i: wise.Grades(*(2, 1, 0) if i <= 400 else (1, 1, 1) if i <= 567 else (0, 0, 0)) for i in range(1, 1001)}
    return {"graded": graded, "binary": {i: wise.Binary(int(i % 4 == 0)) for i in range(1, 1001)}}


def test_the_three_scorings_of_a_worked_example():
    scored = wise.compute_all_figures(answers(), [])
    # A: 0.4 x 0.8 + 0.167 x 0.5; C: (0.8 + 0.5) / 6; B: a quarter of each category of 400 and 120.
    assert scored["A"].overall.value == pytest.approx(0.4035)
    assert scored["C"].overall.value == pytest.approx(1.3 / 6)
    assert scored["B"].overall.value == pytest.approx(0.25)
    assert scored["A"].categories["culture"].value == pytest.approx(0.8)
    assert scored["B"].categories["time"].n == 120 and scored["A"].categories["time"].n == 167
    only_time_of_b = {"binary": {i: wise.Binary(int(401 <= i <= 520)) for i in range(1, 1001)}}
    assert wise.compute_all_figures(only_time_of_b, [])["B"].overall.value == pytest.approx(0.12)


def test_the_table_shows_the_scorings_side_by_side():
    table = wise.make_wise_table(wise.compute_all_figures(answers(), []), "some-judge")
    assert table.columns[:6] == ("category", "A", "A low", "A high", "A prompts", "B")
    rows = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
    assert list(rows) == [*wise.CATEGORIES, "overall"]
    assert (rows["overall"]["A prompts"], rows["space"]["B prompts"], rows["space"]["C prompts"]) == (1000, 120, 133)
    assert rows["overall"]["C"] == pytest.approx(1.3 / 6)
    assert "Judged here by some-judge." in table.note and "No total" not in table.note
    assert "A: original weights, of the original 1,000 prompts; published figures: judged by gpt-4o" in table.note


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("ends", "fitting"), [(ORIGINAL, {"A", "C"}), (VERIFIED, {"B"})])
def test_a_scoring_of_another_list_has_no_figures(ends, fitting, coarse):
    prompts = listed(ends, coarse)
    scored = wise.compute_all_figures(answers(), prompts)
    assert {label for label, one in scored.items() if one.overall is not None} == fitting
    table = wise.make_wise_table(scored, "some-judge")
    for label, one in scored.items():
        figures = [row[table.columns.index(label)] for row in table.rows]
        assert all((figure is None) == (label not in fitting) for figure in figures)
        assert (one.mismatch == "") == (label in fitting)
    assert table.note.count("No figures: ids ") == 3 - len(fitting)


def test_the_clause_names_two_prompts_and_what_they_share():
    clause = wise.find_mismatch(wise.SCORINGS["A"], listed(VERIFIED))
    # 521-580 is the first half of Space there, 568 the first id that A has under space.
    assert clause == (
        "ids 521 and 568 are both in Space (Space first), but in time and space of this scoring, "
        "which belongs to another list"
    )
    assert wise.find_mismatch(wise.SCORINGS["B"], listed({1001: "c"})[1000:]) == "id 1001 is not in its list"


def test_a_part_of_a_list_matches_the_scorings_that_fit():
    """The ids 401-520 are time in both lists; with 521-567 it is the original one."""
    prompts = listed(ORIGINAL)
    assert wise.find_mismatch(wise.SCORINGS["B"], prompts[400:520]) == ""
    assert wise.find_mismatch(wise.SCORINGS["A"], prompts[400:567]) == ""
    assert "ids 485 and 521" in wise.find_mismatch(wise.SCORINGS["B"], prompts[400:567])


def test_the_digest_is_of_ids_texts_and_explanations(prompts):
    one = wise.digest_prompts(prompts)
    assert len(bytes.fromhex(one)) == 32 and wise.digest_prompts(prompts[::-1]) == one
    assert wise.digest_prompts([msgspec.structs.replace(p, subcategory="x") for p in prompts]) == one
    for change in ({"prompt_id": 9}, {"text": "x"}, {"explanation": "x"}):
        assert wise.digest_prompts([msgspec.structs.replace(prompts[0], **change), *prompts[1:]]) != one


def test_a_missing_id_is_named_and_there_is_no_total():
    given = answers()
    for number in (7, 8, 9, 900):
        del given["graded"][number]
    scored = wise.compute_all_figures(given, [])
    assert scored["A"].missing == [7, 8, 9, 900] and scored["A"].overall is None and scored["C"].overall is None
    assert scored["A"].categories["culture"] is None and scored["A"].categories["time"].value == pytest.approx(0.5)
    assert scored["B"].overall is not None
    table = wise.make_wise_table(scored, "some-judge")
    assert "No total: 4 ids have no score: 7-9, 900." in table.note
    assert dict(zip(table.columns, table.rows[-1]))["A"] is None


def test_a_scoring_without_answers_misses_every_id():
    scored = wise.compute_all_figures({"binary": answers()["binary"]}, [])
    assert scored["A"].missing == list(range(1, 1001)) and scored["B"].missing == []


def test_each_prompt_is_judged_on_its_own_image(prompts, images):
    """The red of an image is its prompt's number."""
    asked = list(wise.make_requests(prompts, images, wise.JUDGEMENTS))
    for number, request in zip((1, 1, 2, 2, 5, 5), asked, strict=True):
        text, png = request.content
        assert f"Prompt: prompt {number}\n" in text
        assert PIL.Image.open(io.BytesIO(png)).getpixel((0, 0)) == (number, 0, 0)


def test_rules_from_a_file_replace_the_default(prompts, images, tmp_path):
    (tmp_path / "rules.txt").write_text("Grade as the original says.\n")
    own = wise.JUDGEMENTS["graded"]._replace(rules=wise.read_rules(tmp_path / "rules.txt"))
    for request in wise.make_requests(prompts, images, {"graded": own}):
        assert request.system.startswith("Grade as the original says.\n") and request.answer is wise.Grades
        assert request.system.endswith("Answer with JSON of the given schema alone.\n")
    for name, content in (("none.txt", None), ("empty.txt", b" \n"), ("binary.txt", b"\xff\xfe\x00")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(EvaluationError, match=f"{name}: .*name a text file with the judge's rules"):
            wise.read_rules(tmp_path / name)


def test_every_image_is_judged_in_both_ways(server, settings, prompts, images, tmp_path):
    told = []
    judged = wise.judge_images(prompts, images, Endpoint(settings), progress=told.append)
    assert judged.answers == {
        "graded": {1: wise.Grades(1, 2, 1), 2: wise.Grades(2, 2, 1), 5: wise.Grades(2, 2, 1)},
        "binary": {1: wise.Binary(1), 2: wise.Binary(0), 5: wise.Binary(1)},
    }
    assert sum(told) == len(server.bodies) == 6
    body = server.bodies[0]
    assert (body["temperature"], body["model"]) == (0.0, "judge")
    text, picture = body["messages"][1]["content"]
    assert text["text"] == "Prompt: prompt 1\nExplanation: shows 1"
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    wise.write_scores(tmp_path, prompts, judged)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines[1] == {"prompt_id": 2, "Subcategory": "s2", "consistency": 2, "realism": 2, "aesthetic_quality": 1}
    lines = [json.loads(line) for line in (tmp_path / "scores_verified.jsonl").read_text().splitlines()]
    assert lines[2] == {"prompt_id": 5, "Subcategory": "s5", "score": 1}
    assert (tmp_path / "unanswered.jsonl").read_text() == ""
    assert wise.read_wise_prompts([tmp_path / wise.PROMPTS_FILE]) == prompts


def test_scores_of_an_earlier_request_are_removed(server, settings, prompts, images, tmp_path):
    (tmp_path / "scores_verified.jsonl").write_text("of other images\n")
    wise.write_scores(tmp_path, prompts, wise.judge_images(prompts, images, Endpoint(settings), GRADED))
    assert not (tmp_path / "scores_verified.jsonl").exists()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 3


def test_the_price_is_estimated_without_a_request(server, settings, prompts, images):
    estimate = Endpoint(settings, dry_run=True)
    wise.judge_images(prompts, images, estimate)
    assert server.bodies == [] and estimate.ledger.total().calls == 6
    # 255 tokens for a small picture, besides the text.
    assert estimate.ledger.total().input_tokens > 6 * 255
    assert estimate.ledger.price(estimate.ledger.total()) > 0


@pytest.mark.parametrize(
    "wrong", ["no idea", GRADES.replace("2", "3"), GRADES.replace("2", '"2"'), '{"consistency": 2}']
)
def test_a_malformed_answer_is_requested_again(server, settings, prompts, images, wrong):
    server.script.extend([says(wrong)])
    judged = wise.judge_images(prompts[:1], images[:1], Endpoint(settings), GRADED)
    assert judged.answers["graded"] == {1: wise.Grades(1, 2, 1)} and len(server.bodies) == 2


def test_answers_that_stay_malformed_are_listed_and_not_scored_0(server, settings, prompts, images, tmp_path):
    server.script.extend([judges] + [says("no idea")] * 3)
    judged = wise.judge_images(prompts, images, Endpoint(settings), GRADED)
    assert list(judged.answers["graded"]) == [1, 5] and list(judged.faults["graded"]) == [2]
    wise.write_scores(tmp_path, prompts, judged)
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2
    (line,) = (tmp_path / "unanswered.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt_id"] == 2 and "no idea" in json.loads(line)["reason"]
    assert 2 in wise.compute_all_figures(judged.answers, prompts)["A"].missing


def test_a_judge_that_fails_half_way_is_not_paid_twice(server, settings, prompts, images):
    server.script.extend([judges, judges] + [refuses(503)] * 20)
    with pytest.raises(EvaluationError, match=r"HTTP 503.* 2 of 6 answers are in .*answers .*run again") as caught:
        wise.judge_images(prompts, images, Endpoint(settings))
    assert "\n" not in str(caught.value)
    server.script.clear()
    before = len(server.bodies)
    again = Endpoint(settings)
    judged = wise.judge_images(prompts, images, again)
    assert len(judged.answers["graded"]) == len(judged.answers["binary"]) == 3
    assert len(server.bodies) - before == again.ledger.total().calls == 4


def test_an_unreachable_judge_is_named(settings, prompts, images, server):
    server.usual = refuses(401, "no key")
    with pytest.raises(EvaluationError, match="HTTP 401: no key; 0 of 6 answers"):
        wise.judge_images(prompts, images, Endpoint(settings))


def test_lists_are_read_in_every_form_and_order(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.jsonl"
    first.write_text(json.dumps([record(3), record(1)]))
    second.write_text("\n".join(json.dumps(record(n, Extra="x")) for n in (4, 2)))
    found = wise.read_wise_prompts([first, second])
    assert [p.prompt_id for p in found] == [1, 2, 3, 4]
    assert (found[0].text, found[0].explanation, found[0].subcategory) == ("prompt 1", "shows 1", "s1")
    assert [(j.name, j.seed) for j in wise.make_wise_jobs(found, 100)] == [
        ("1", 101),
        ("2", 102),
        ("3", 103),
        ("4", 104),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no prompts"),
        (None, "No such file"),
        ("[1]", "record 1 does not have WISE's form"),
        (json.dumps([record(1), record(1)]), "record 2: prompt_id 1 occurs twice"),
        (json.dumps([record(1, Prompt=None)]), "record 1 does not have WISE's form"),
        ('[{"Prompt": ', "name WISE's prompt files"),
        ('{"tag": "a", "include": [], "prompt": "b"}', "list of GenEval; pass --benchmark=geneval"),
    ],
)
def test_other_files_are_not_lists(tmp_path, content, words):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=words) as caught:
        wise.read_wise_prompts([path])
    assert str(path) in str(caught.value)


def test_missing_and_broken_images_are_named(settings, prompts, images, tmp_path):
    images[0].write_bytes(b"no image")
    with pytest.raises(EvaluationError, match=r"1\.png: not a readable PNG"):
        wise.judge_images(prompts, images, Endpoint(settings))
    images[1].unlink()
    images[0].unlink()
    with pytest.raises(EvaluationError, match=r"2 of 3 images <prompt_id>\.png are missing: 1-2;"):
        wise.find_images(tmp_path, prompts)


def test_a_picture_that_claims_to_be_huge_is_named(settings, prompts, images):
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    png = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    images[0].write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    with pytest.raises(EvaluationError, match=r"1\.png: 40000 x 40000 pixels are too many, .* scale it down$"):
        wise.judge_images(prompts, images, Endpoint(settings))


def test_ids_are_abbreviated_to_ranges():
    assert wise.format_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert wise.format_ranges(np.arange(5).tolist()) == "0-4" and wise.format_ranges([]) == ""
