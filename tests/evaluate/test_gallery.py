"""An evaluation's images, from hand-written results: the selection, boxes and captions."""

import json

import PIL.Image
import pytest

from pdgen.evaluate.gallery import SHOWN, make_geneval_galleries, make_wise_galleries
from pdgen.evaluate.geneval.rule import GenEvalResult
from pdgen.evaluate.page import render_evaluation
from pdgen.evaluate.wise import Binary, Grades, JudgeAnswers, WisePrompt


def a_result(folder, number, task="colors", correct=True, details=None, size=(64, 48)):
    path = folder / "images" / f"{number:05d}" / "samples" / "00000.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size).save(path)
    reason = "" if correct else "expected red circle>=1, found 0 red; and 1 <b>blue</b>"
    return GenEvalResult(str(path), task, f"prompt {number}", correct, reason, "{}", json.dumps(details or {}))


@pytest.fixture
def results(tmp_path):
    marked = a_result(tmp_path, 0, correct=False, details={"circle": [[8.0, 6.0, 24.0, 30.0, 0.9]]})
    return [marked, *(a_result(tmp_path, n, correct=n % 2 == 0) for n in range(1, 60))]


def test_galleries_show_some_of_each_outcome(results, tmp_path):
    trajectory = tmp_path / "trajectories" / "00003" / "samples" / "00000" / "trajectory.json"
    trajectory.parent.mkdir(parents=True)
    trajectory.write_text("{}")
    [gallery] = make_geneval_galleries(results, tmp_path / "page", tmp_path / "trajectories")
    assert gallery.note == "29 right, 31 wrong"
    wrong = [one for one in gallery.images if not one.correct]
    assert len(wrong) == SHOWN and len(gallery.images) == 2 * SHOWN
    assert wrong[0].prompt == "prompt 0" and wrong[0].marks[0].box == (8.0, 6.0, 24.0, 30.0)
    assert wrong[0].notes == ("circle",)
    # Spread over all of them, not the first ones.
    assert wrong[-1].prompt == "prompt 59"
    linked = {one.prompt: one.trajectory for one in gallery.images}
    assert linked["prompt 3"] == "00003/samples/00000"
    assert linked["prompt 0"] == "" and wrong[0].source == "../images/00000/samples/00000.png"


@pytest.fixture
def wise(tmp_path):
    """Forty prompts of one category, consistency 0 to 2 in turns, and two of another: one without a valid answer."""
    prompts = [WisePrompt(n, f"prompt {n}", f"shows {n}", "Culture" if n <= 40 else "Time", "s") for n in range(1, 43)]
    paths = [tmp_path / "images" / f"{prompt.prompt_id}.png" for prompt in prompts]
    paths[0].parent.mkdir()
    for path in paths:
        PIL.Image.new("RGB", (64, 48)).save(path)
    graded = {n: Grades(n % 3, 1, 0) for n in range(1, 42)}
    judged = JudgeAnswers({"graded": graded, "binary": {1: Binary(1)}}, {"graded": {42: "no JSON"}, "binary": {}})
    trajectory = tmp_path / "trajectories" / "3" / "trajectory.json"
    trajectory.parent.mkdir(parents=True)
    trajectory.write_text("{}")
    return prompts, paths, judged


def test_wise_s_galleries_go_from_the_lowest_score_to_the_highest(wise, tmp_path):
    culture, time = make_wise_galleries(*wise, tmp_path / "page", tmp_path / "trajectories")
    # 13 zeros, 14 ones, 13 twos: 40 times 1 x 0.7 / 2 for consistency and 0.1 for realism each.
    assert (culture.task, culture.note) == ("Culture", "40 images, mean graded score 0.450")
    assert (time.task, time.note) == ("Time", "2 images, mean graded score 0.800, 1 without a valid answer")
    numbers = [int(one.prompt.split()[1]) for one in culture.images]
    assert len(numbers) == 2 * SHOWN and [n % 3 for n in numbers] == sorted(n % 3 for n in numbers)
    assert {n % 3 for n in numbers} == {0, 1, 2}
    assert [one.correct for one in culture.images] == [n % 3 == 2 for n in numbers]
    assert {one.prompt: one.trajectory for one in culture.images}["prompt 3"] == "3"
    assert [one.prompt for one in time.images] == ["prompt 41"] and time.images[0].source == "../images/41.png"
    assert time.images[0].notes == ("shows 41", "graded: consistency 2, realism 1, aesthetic quality 0, score 0.8")


def test_wise_s_images_on_the_page(wise, tmp_path):
    prompts, paths, judged = wise
    [only] = make_wise_galleries(prompts[:1], paths[:1], judged, tmp_path)
    assert only.images[0].notes[2] == "binary: score 1"
    page = render_evaluation("A run", [], {}, [], shown=[only])
    assert "Culture: 1 images, mean graded score 0.450" in page and 'src="images/1.png"' in page
    assert "binary: score 1" in page and "show detections" not in page


def test_wise_without_any_valid_answer_shows_nothing(wise, tmp_path):
    prompts, paths, _ = wise
    judged = JudgeAnswers({"binary": {}}, {"binary": dict.fromkeys(range(1, 43), "no JSON")})
    culture, time = make_wise_galleries(prompts, paths, judged, tmp_path)
    assert (culture.note, culture.images, time.images) == ("40 images, 40 without a valid answer", [], [])
