"""A folder judged by a detector: batches, resuming, the official files and figures, comparisons."""

import json

import numpy as np
import PIL.Image
import pytest

from pdgen.evaluate import folder as folders
from pdgen.evaluate.detectors.exact import ShapesDetector
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval import scoring
from pdgen.evaluate.geneval.metadata import decode_metadata
from pdgen.evaluate.geneval.rule import Detection, GenEvalPrompt, GenEvalResult, Thresholds
from tests.evaluate.painted import generate

RAW = [
    {"tag": "single_object", "include": [{"class": "heart", "count": 1}], "prompt": "a photo of a heart"},
    {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a photo of a star"},
    {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}], "prompt": "a photo of a red star"},
]
PROMPTS = [GenEvalPrompt(decode_metadata(json.dumps(raw)), raw) for raw in RAW]


class Scripted:
    """A detector that finds a star in the colour of the image's corner and records its batches."""

    name, identity, classes, thresholds = "scripted", "scripted 1", ("heart", "star"), Thresholds()
    batch, learned = 4, True

    def __init__(self, blind=False):
        self.blind, self.batches, self.colored = blind, [], 0

    def detect(self, images):
        self.batches.append(len(images))
        star = Detection((0.0, 0.0, 8.0, 8.0), 0.1 if self.blind else 0.9)
        return [{"star": [star]} for _ in images]

    def colors(self, image, noun, found):
        self.colored += 1
        return ["red" if image.getpixel((0, 0))[0] > 99 else "blue" for _ in found]


class Exact(Scripted):
    """The same without a network."""

    learned = False


@pytest.fixture
def images(tmp_path):
    """Two black images of every prompt, the second one of the last red."""
    paths = []
    for number in range(3):
        samples = tmp_path / "images" / f"0000{number}" / "samples"
        samples.mkdir(parents=True)
        paths.append([samples / f"0000{j}.png" for j in range(2)])
        for j, path in enumerate(paths[-1]):
            PIL.Image.new("RGB", (8, 8), (200 if number + j == 3 else 0, number, j)).save(path)
    return paths


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_images_are_detected_in_batches_and_judged_in_order(images, output):
    detector, told = Scripted(), []
    results = scoring.score_images(images, PROMPTS, detector, output, told.append)
    assert detector.batches == [4, 2] and told == [0, 4, 2] and detector.colored == 2
    assert [r.correct for r in results] == [False, False, True, True, False, True]
    assert [r.filename for r in results] == [str(path) for paths in images for path in paths]
    assert [r.tag for r in results] == ["single_object"] * 4 + ["colors"] * 2
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [GenEvalResult(**line) for line in lines] == results == scoring.read_results(output / "results.jsonl")
    assert json.loads(lines[5]["details"]) == {"star": [[0.0, 0.0, 8.0, 8.0, 0.9]]}


def test_judged_images_are_judged_again_only_after_a_change(images, output):
    first = scoring.score_images(images, PROMPTS, Scripted(), output)
    (output / "results.jsonl").unlink()
    log = output / "judged.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # the last line was being written when the run was killed
    detector, told = Scripted(), []
    assert scoring.score_images(images, PROMPTS, detector, output, told.append) == first
    assert detector.batches == [1] and told == [5, 1]
    PIL.Image.new("RGB", (8, 8), (0, 77, 0)).save(images[0][0])
    other = Scripted()
    other.identity = "scripted 2"
    for again, batches in ((Scripted(), [1]), (other, [4, 2])):
        scoring.score_images(images, PROMPTS, again, output)
        assert again.batches == batches


def test_a_truncated_log_is_continued(images, output):
    first = scoring.score_images(images, PROMPTS, Scripted(), output)
    log = output / "judged.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    for _ in range(2):  # the line after the cut one must count too
        detector = Scripted()
        assert scoring.score_images(images, PROMPTS, detector, output) == first
    assert detector.batches == []


def test_a_detector_that_sees_nothing_gives_no_score(images, output):
    with pytest.raises(EvaluationError, match="scripted detects nothing in any of 6 images") as caught:
        scoring.score_images(images, PROMPTS, Scripted(blind=True), output)
    assert "--device" in str(caught.value)
    assert list(output.iterdir()) == []


def test_an_exact_detector_that_sees_nothing_is_trusted(images, output):
    assert not any(one.correct for one in scoring.score_images(images, PROMPTS, Exact(blind=True), output))


def test_a_broken_image_ends_scoring_and_earlier_results_stay(images, output):
    images[2][1].write_bytes(b"no image")
    with pytest.raises(EvaluationError, match=r"00002/samples/00001\.png: not a readable PNG"):
        scoring.score_images(images, PROMPTS, Scripted(), output)
    assert not (output / "results.jsonl").exists()
    PIL.Image.new("RGB", (8, 8)).save(images[2][1])
    detector = Scripted()
    scoring.score_images(images, PROMPTS, detector, output)
    assert detector.batches == [2]


def test_a_class_that_the_detector_does_not_know_is_an_error(images, output):
    detector = Scripted()
    detector.classes = ("star",)
    with pytest.raises(EvaluationError, match="class 'heart' is unknown to detector scripted"):
        scoring.score_images(images, PROMPTS, detector, output)


def test_painted_images_are_right_and_swapped_ones_are_not(tmp_path, output):
    jobs = folders.make_geneval_jobs(PROMPTS, 2, 0)
    folders.generate_images(tmp_path / "images", tmp_path / "t", jobs, generate, 6)
    folders.write_metadata(tmp_path / "images", PROMPTS)
    files = folders.find_samples(tmp_path / "images", PROMPTS, 2)
    assert all(r.correct for r in scoring.score_images(files, PROMPTS, ShapesDetector(), output))
    swapped = scoring.score_images([files[1], files[0], files[2]], PROMPTS, ShapesDetector(), output)
    assert [r.correct for r in swapped] == [False] * 4 + [True] * 2
    assert swapped[0].reason == "expected heart>=1, found 0"


def test_an_image_that_the_shapes_detector_cannot_read_is_named(tmp_path):
    path = tmp_path / "wide.png"
    PIL.Image.new("RGB", (64, 32)).save(path)
    with pytest.raises(EvaluationError, match=r"wide\.png: a picture of 64 x 32 pixels"):
        ShapesDetector().detect([folders.read_image(path)])


def results_of(*tasks):
    """Results from (tag, rows of 0 and 1, one row a prompt)."""
    made = []
    for tag, rows in tasks:
        for number, row in enumerate(rows):
            metadata = json.dumps({"prompt": f"{tag} {number}"})
            made += [
                GenEvalResult(
                    f"x/{tag}{number}/samples/{j}.png", tag, f"{tag} {number}", bool(right), "", metadata, "{}"
                )
                for j, right in enumerate(row)
            ]
    return made


WORKED = results_of(("a", [[1, 1], [0, 1]]), ("b", [[0, 0], [1, 0], [0, 0], [0, 0]]))


def test_figures_of_a_worked_example():
    summary = scoring.summarise(scoring.group_by_task(WORKED))
    assert {tag: (one.value, one.n) for tag, one in summary.tasks.items()} == {"a": (0.75, 2), "b": (0.125, 4)}
    # The mean of the tasks, not of the images: 4 of 12 images, 3 of 6 prompts.
    assert summary.overall.value == 0.4375
    assert summary.images.value == pytest.approx(4 / 12) and summary.prompts.value == 0.5
    # The first images: a 1 of 2, b 1 of 4; the second ones: a 2 of 2, b none.
    assert (summary.seeds.least, summary.seeds.most, summary.seeds.n) == (0.375, 0.5, 2)
    assert summary.seeds.deviation == pytest.approx(0.125 / np.sqrt(2))


def test_all_intervals_draw_prompts_within_their_task():
    """If every prompt of one task is right and none of the other, every draw agrees."""
    summary = scoring.summarise(scoring.group_by_task(results_of(("easy", [[1]] * 30), ("hard", [[0]] * 10))))
    for one, value in ((summary.images, 0.75), (summary.prompts, 0.75), (summary.overall, 0.5)):
        assert (one.value, one.low, one.high, one.n) == (value, value, value, 40)


def test_the_official_summary():
    assert scoring.format_official_summary(WORKED) == (
        "Summary\n=======\nTotal images: 12\nTotal prompts: 6\n% correct images: 33.33%\n% correct prompts: 50.00%\n\n"
        "Task breakdown\n==============\na                = 75.00% (3 / 4)\nb                = 12.50% (1 / 8)\n\n"
        "Overall score (avg. over tasks): 0.43750"
    )


def test_the_table_states_n():
    table = scoring.make_summary_table(scoring.summarise(scoring.group_by_task(WORKED)), "geneval")
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("a", 2),
        ("b", 4),
        ("overall", 6),
        ("images", 6),
        ("prompts", 6),
    ]
    assert "(one image of every prompt each): 2;" in table.note


def test_prompts_with_other_numbers_of_images_have_no_score():
    with pytest.raises(EvaluationError, match=r"the prompts have \[1, 2\] images"):
        scoring.group_by_task(results_of(("a", [[1, 1], [0]])))


def test_two_runs_are_compared_prompt_by_prompt():
    better = results_of(("a", [[1, 1], [1, 1]]), ("b", [[0, 0], [1, 1], [0, 0], [0, 0]]))
    found = scoring.compare_results(WORKED, better)
    assert (found["a"].value, found["b"].value, found["overall"].value) == (0.25, 0.125, 0.1875)
    assert (found["overall"].n, scoring.compare_results(better, better)["overall"].high) == (6, 0)
    with pytest.raises(EvaluationError, match="do not have the same prompts"):
        scoring.compare_results(WORKED, results_of(("a", [[1, 1], [0, 1]])))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no results"),
        ('{"tag": 1}', "line 1 is no result"),
        ("[]", "line 1 is no result"),
        (json.dumps({**WORKED[0]._asdict(), "correct": None}), "line 1 is no result .* None, not true or false"),
        (None, "No such file"),
    ],
)
def test_another_file_is_no_results(tmp_path, content, words):
    path = tmp_path / "results.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=words):
        scoring.read_results(path)
