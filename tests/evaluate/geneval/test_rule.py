"""GenEval's rule against verdicts of the published code, and by hand."""

import json
import os
import pathlib

import pytest

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.metadata import decode_metadata
from pdgen.evaluate.geneval.rule import (
    Detection,
    GenEvalPrompt,
    Thresholds,
    check_prompts,
    filter_detections,
    judge_detections,
    make_result,
)

CASES = pathlib.Path(os.environ.get("PDGEN_GENEVAL_CASES", pathlib.Path(__file__).parent / "geneval_cases.jsonl"))


def known_color(noun, found):
    return [item.color for item in found]


def metadata(include, tag="any", **more):
    return decode_metadata(json.dumps({"tag": tag, "prompt": "a photo", "include": include, **more}))


def thing(box=(0, 0, 10, 10), score=0.95, color="red"):
    return Detection(box, score, color)


def verdict(include, objects, **more):
    wanted = metadata(include, **more)
    return judge_detections(wanted, filter_detections(objects, wanted.tag), known_color)


def test_verdict_cases():
    wrong, lines = [], CASES.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        case = json.loads(line)
        wanted = decode_metadata(json.dumps(case["metadata"]))
        detections = {
            noun: [Detection(tuple(o["box"]), o["score"], o["color"]) for o in objects]
            for noun, objects in case["detections"].items()
        }
        if judge_detections(wanted, filter_detections(detections, wanted.tag), known_color).correct != case["correct"]:
            wrong.append(number)
    assert lines and wrong == []


def test_scores_count_strictly_above_the_threshold_and_counting_has_its_own():
    dogs = {"dog": [thing(score=s) for s in (0.3, 0.31, 0.9, 0.91)]}
    assert [o.score for o in filter_detections(dogs, "two_object")["dog"]] == [0.91, 0.9, 0.31]
    assert [o.score for o in filter_detections(dogs, "counting")["dog"]] == [0.91]
    assert filter_detections({"dog": [thing(score=0.3)]}, "colors") == {}


def test_no_more_than_sixteen_of_a_class_count():
    many = {"dog": [thing(score=0.99)] * 20}
    assert len(filter_detections(many, "counting")["dog"]) == 16
    assert len(filter_detections(many, "counting", Thresholds(max_objects=3))["dog"]) == 3
    fifteen = [{"class": "dog", "count": 15}]
    assert not verdict(fifteen, many, exclude=[{"class": "dog", "count": 16}]).correct
    assert verdict(fifteen, many, exclude=[{"class": "dog", "count": 17}]).correct


def test_only_the_best_objects_are_looked_at_for_their_colour():
    red = [{"class": "dog", "count": 1, "color": "red"}]
    assert verdict(red, {"dog": [thing(score=0.5, color="blue"), thing(score=0.9)]}) == (True, "")
    blue_first = verdict(red, {"dog": [thing(score=0.5), thing(score=0.9, color="blue")]})
    assert blue_first == (False, "expected red dog>=1, found 0 red; and 1 blue")
    # Of equal scores the later one, as a reversed ascending order has it.
    assert not verdict(red, {"dog": [thing(), thing(color="blue")]}).correct
    two = [{"class": "dog", "count": 2, "color": "red"}]
    assert verdict(two, {"dog": [thing(), thing(color="pink"), thing()]}).reason == (
        "expected red dog>=2, found 1 red; and 1 red, 1 pink"
    )


LEFT = [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]


@pytest.mark.parametrize(
    ("dog", "correct", "reason"),
    [
        # The cup's box is 40 to 60 on both axes, its centre (50, 50); both boxes' sides are 20, the margin 4.
        ((10, 40, 30, 60), True, ""),
        ((70, 40, 90, 60), False, "expected dog left of target, found right of target"),
        ((36, 40, 56, 60), False, "expected dog left of target, found  target"),  # 4 to the left: none
        # 20 to the left and 20 down: (16, 16) / 28.3 = 0.57 along both axes.
        ((20, 60, 40, 80), True, ""),
        # 10 to the left and 20 up: 6 / 22.4 = 0.27 and 16 / 22.4 = 0.72.
        ((30, 20, 50, 40), False, "expected dog left of target, found above target"),
    ],
)
def test_positions(dog, correct, reason):
    assert verdict(LEFT, {"cup": [thing((40, 40, 60, 60))], "dog": [thing(dog)]}) == (correct, reason)


@pytest.mark.parametrize(("target", "correct"), [(0, True), (1, False)])
def test_a_position_is_compared_with_the_object_it_names(target, correct):
    """The dog is left of the first, the cup, and right of the second, the cat."""
    include = [LEFT[0], {"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", target]}]
    boxes = {"cat": (0, 40, 20, 60), "dog": (40, 40, 60, 60), "cup": (80, 40, 100, 60)}
    assert verdict(include, {noun: [thing(box)] for noun, box in boxes.items()}).correct == correct


def test_a_position_needs_its_target():
    red_cup = [LEFT[0] | {"color": "red"}, LEFT[1]]
    found = verdict(red_cup, {"cup": [thing(color="blue")], "dog": [thing()]})
    assert found.reason.splitlines()[1] == "no target for dog to be left of"
    assert verdict(LEFT, {"dog": [thing()]}).reason.splitlines()[0] == "expected cup>=1, found 0"


def test_an_excluded_class_may_not_reach_its_count():
    asked = {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}], "tag": "counting"}
    assert verdict(objects={"dog": [thing()] * 2}, **asked).correct
    assert verdict(objects={"dog": [thing()] * 3}, **asked).reason == "expected dog<3, found 3"
    assert verdict(objects={"dog": [thing(), thing(), thing(score=0.5)]}, **asked).correct


def test_colours_are_asked_for_only_where_they_matter():
    asked = []

    def colors(noun, found):
        asked.append((noun, len(found)))
        return ["red"] * len(found)

    include = [
        {"class": "cup", "count": 1},
        {"class": "dog", "count": 1, "color": "red"},
        {"class": "cat", "count": 1, "color": "red"},
    ]
    assert not judge_detections(metadata(include), {"cup": [thing()], "dog": [thing()] * 5}, colors).correct
    assert asked == [("dog", 1)]


def test_the_line_of_the_official_file():
    raw = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"}
    prompt = GenEvalPrompt(decode_metadata(json.dumps(raw)), raw)
    objects = filter_detections({"dog": [thing((1.5, 2, 3, 4), 0.75)], "cup": [thing(score=0.1)]}, "colors")
    line = make_result(
        "a/00000/samples/00000.png", prompt, objects, judge_detections(prompt.metadata, objects, known_color)
    )._asdict()
    assert list(line) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(line["metadata"]) == raw
    assert json.loads(line["details"]) == {"dog": [[1.5, 2, 3, 4, 0.75]]}
    assert (line["correct"], line["reason"], line["prompt"]) == (True, "", "a photo of a red dog")


@pytest.mark.parametrize(
    ("include", "words"),
    [
        ([{"class": "unicorn", "count": 1}], "prompt 0 ('a photo'): class 'unicorn' is unknown to detector coco"),
        ([{"class": "dog", "count": 1, "color": "teal"}], "color 'teal' is none of red, "),
        (
            [{"class": "dog", "count": 1, "position": ["above", 1]}, {"class": "dog", "count": 1}],
            "refers to a later object",
        ),
    ],
)
def test_metadata_that_cannot_be_judged_is_an_error(include, words):
    with pytest.raises(EvaluationError) as caught:
        check_prompts([GenEvalPrompt(metadata(include), {})], ("dog",), "coco")
    assert words in str(caught.value)


def test_an_excluded_class_must_be_known_too():
    asked = metadata([{"class": "dog", "count": 1}], exclude=[{"class": "unicorn", "count": 1}])
    with pytest.raises(EvaluationError, match="unicorn"):
        check_prompts([GenEvalPrompt(asked, {})], ("dog",), "coco")
