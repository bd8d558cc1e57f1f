"""Runs compared side by side, from hand-written results with known differences."""

import json
import pathlib

import pytest

from pdgen.evaluate.comparison import (
    collect_scores,
    compute_differences,
    find_judge_differences,
    make_comparison_tables,
    read_evaluations,
    read_network_evaluations,
)
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.wise import CATEGORIES, ORIGINAL, PROMPTS_FILE, VERIFIED

JUDGE = {"model": "gpt", "questions": 1, "rules": {"graded": "aaaaaaaa"}, "parameters": {"temperature": 0.0}}


def summary(folder, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"findings": [], "tables": []} | facts))


def geneval_run(folder, right, prompts=("a", "b", "c", "d"), costs=None, detector="shapes"):
    """``right``: by task, whether each prompt's only image is right."""
    table = {"title": "Costs", "columns": ["cost", "value"], "rows": [["network_evaluations", costs]], "note": ""}
    summary(folder, benchmark="geneval", detector=detector, tables=[table] if costs else [])
    lines = []
    for task, outcomes in right.items():
        for prompt, correct in zip(prompts, outcomes):
            lines.append(
                {
                    "filename": f"{folder}/{task}{prompt}/samples/0.png",
                    "tag": task,
                    "prompt": prompt,
                    "correct": bool(correct),
                    "reason": "",
                    "metadata": json.dumps({"prompt": prompt}),
                    "details": "{}",
                }
            )
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def wise_run(folder, grades, without=(), categories=ORIGINAL, judge=JUDGE, prompts="d1"):
    """``grades``: consistency by category; realism and aesthetic quality are 2. ``without``: ids without an answer."""
    summary(folder, benchmark="wise", judge=judge, prompts=prompts)
    named = [(i, name) for name, ids in categories.items() for i in ids]
    asked = [{"prompt_id": i, "Prompt": "p", "Explanation": "e", "Category": n, "Subcategory": "s"} for i, n in named]
    (folder / PROMPTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in asked))
    if grades is not None:
        lines = [
            {"prompt_id": i, "Subcategory": "s", "consistency": grades[name], "realism": 2, "aesthetic_quality": 2}
            for i, name in named
            if i not in without
        ]
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_differences_by_prompt(tmp_path):
    one, two = runs = read_evaluations(
        [
            geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0], "position": [1, 1, 1, 1]}, costs=98),
            geneval_run(tmp_path / "two", {"colors": [1, 1, 1, 0], "position": [1, 1, 1, 1]}),
        ]
    )
    found = compute_differences(one, two)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "colors": 0.5,
        "position": 0.0,
        "overall": 0.25,
    }
    # The second is better on two prompts and never worse: paired, the interval does not reach below 0.
    assert found["colors"].low >= 0 and collect_scores(one)["colors"].high > collect_scores(two)["colors"].low
    side, apart = make_comparison_tables(runs)
    assert side.rows[0][0] == "colors" and side.rows[0][1] == 0.25 and side.rows[0][4] == 0.75
    assert apart.columns == ("score", "two", "two low", "two high", "prompts") and side.note == ""
    assert apart.rows[-1] == ("overall", 0.25, found["overall"].low, found["overall"].high, 8)
    assert (read_network_evaluations(one), read_network_evaluations(two)) == (98.0, None)
    assert find_judge_differences(runs) == []


def test_few_prompts_and_intervals_without_width_claim_nothing(tmp_path):
    """Both of two prompts are reversed: the interval is [1, 1], and claims nothing about other prompts."""
    few = read_evaluations(
        [geneval_run(tmp_path / "a" / "x", {"colors": [0, 0]}), geneval_run(tmp_path / "a" / "y", {"colors": [1, 1]})]
    )
    note = make_comparison_tables(few)[1].note
    assert "this says nothing about other prompts" in note and "hardly" not in note
    nine = read_evaluations(
        [
            geneval_run(tmp_path / "n" / "x", {"colors": [0] * 9}, "abcdefghi"),
            geneval_run(tmp_path / "n" / "y", {"colors": [1] * 8 + [0]}, "abcdefghi"),
        ]
    )
    apart = make_comparison_tables(nine)[1]
    assert 0 < apart.rows[0][2] < apart.rows[0][3] and "hardly" not in apart.note
    same = "abcdefghijklmnopqrst"  # twenty prompts, all reversed: still no width
    flat = read_evaluations(
        [
            geneval_run(tmp_path / "b" / "x", {"colors": [0] * 20}, same),
            geneval_run(tmp_path / "b" / "y", {"colors": [1] * 20}, same),
        ]
    )
    assert "hardly" not in make_comparison_tables(flat)[1].note
    many = read_evaluations(
        [
            geneval_run(tmp_path / "c" / "x", {"colors": [0] * 20}, same),
            geneval_run(tmp_path / "c" / "y", {"colors": [1] * 15 + [0] * 5}, same),
        ]
    )
    note = make_comparison_tables(many)[1].note
    assert "at least 10 prompts, and both its ends" in note and "hardly change the difference" in note
    # One task and the total; of 95 % intervals, one in twenty.
    assert "Differences compared: 2, not corrected for multiple comparisons; about one interval in 20 misses" in note


def test_wise_scorings(tmp_path):
    one, two = read_evaluations(
        [
            wise_run(tmp_path / "one", dict.fromkeys(CATEGORIES, 1)),
            wise_run(tmp_path / "two", dict.fromkeys(CATEGORIES, 1) | {"culture": 2}),
        ]
    )
    # (7 * 1 + 2 * 2 + 2) / 20, and culture at 1: weights 0.4 of A, a sixth of C.
    scores = collect_scores(one)
    assert (scores["A overall"].value, scores["C overall"].value) == pytest.approx((0.65, 0.65))
    assert scores["B overall"] is None and scores["A space"].value == pytest.approx(0.65)
    found = compute_differences(one, two)
    assert found["A overall"].value == pytest.approx(0.35 * 0.4)
    assert found["C overall"].value == pytest.approx(0.35 / 6)
    assert found["A culture"].value == pytest.approx(0.35) and found["A time"].value == 0
    assert list(found) == [
        *(f"A {name}" for name in CATEGORIES),
        "A overall",
        "C overall",
    ]  # no B; C's categories are A's


def test_wise_without_some_answers_is_compared_by_category(tmp_path):
    runs = read_evaluations(
        [
            wise_run(tmp_path / "one", dict.fromkeys(CATEGORIES, 1), without=[7, 8, 9, 450]),
            wise_run(tmp_path / "two", dict.fromkeys(CATEGORIES, 1) | {"space": 2}, without=[900]),
        ]
    )
    side, apart = make_comparison_tables(runs)
    figures = {row[0]: row[1:] for row in side.rows}
    assert figures["A culture"][0] is None and figures["A culture"][3] == pytest.approx(0.65)
    assert figures["A physics"][0] == pytest.approx(0.65) and figures["A physics"][3] is None
    assert figures["A culture"][-1] == 400 and "A overall" not in figures
    assert [row[0] for row in apart.rows] == ["A space", "A biology", "A chemistry"]
    assert apart.rows[0][1] == pytest.approx(0.35)
    assert side.note.splitlines()[:2] == [
        "one: A, C: no total: 4 ids have no score: 7-9, 450.",
        "two: A, C: no total: 1 ids have no score: 900.",
    ]
    assert [line[:3] for line in side.note.splitlines()[2:]] == ["A: ", "C: "]


def test_wise_with_nothing_in_common_is_one_line(tmp_path):
    one = wise_run(tmp_path / "one", dict.fromkeys(CATEGORIES, 1))
    with pytest.raises(EvaluationError, match=r"nothing to compare: none: A, C: not judged; evaluate again"):
        make_comparison_tables(read_evaluations([one, wise_run(tmp_path / "none", None)]))
    # Another list than A's and C's: ids 401-520 and 521-567 are of two of its categories, and of one of theirs.
    other = [wise_run(tmp_path / name, dict.fromkeys(CATEGORIES, 1), categories=VERIFIED) for name in ("three", "four")]
    with pytest.raises(EvaluationError, match=r"three: A, C: no figures: ids 521 and 568 are both in space"):
        make_comparison_tables(read_evaluations(other))


def test_different_judges_are_reported(tmp_path):
    grades = dict.fromkeys(CATEGORIES, 1)
    other = JUDGE | {"model": "qwen"}
    both = JUDGE | {"rules": {"graded": "aaaaaaaa", "binary": "bbbbbbbb"}}
    runs = [wise_run(tmp_path / name, grades, judge=judge) for name, judge in (("a", JUDGE), ("b", other), ("c", both))]
    assert find_judge_differences(read_evaluations(runs)) == [
        "Judged differently (graded): a, c by gpt (questions 1, rules aaaaaaaa, temperature 0.0); "
        "b by qwen (questions 1, rules aaaaaaaa, temperature 0.0). The differences include the judges'."
    ]
    assert find_judge_differences(read_evaluations([runs[0], runs[2]])) == []
    for change in ({"rules": {"graded": "cccccccc"}}, {"parameters": {"temperature": 1.0}}, {"questions": 2}):
        changed = wise_run(tmp_path / "changed", grades, judge=JUDGE | change)
        assert len(find_judge_differences(read_evaluations([runs[0], changed]))) == 1
    images = [geneval_run(tmp_path / name, {"colors": [1, 0]}, detector=name) for name in ("shapes", "mask2former x")]
    assert find_judge_differences(read_evaluations(images)) == [
        "Judged differently: shapes by shapes; mask2former x by mask2former x. The differences include the judges'."
    ]


def test_runs_are_named_by_what_distinguishes_them(tmp_path):
    folders = [geneval_run(tmp_path / name / "0" / "scores", {"colors": [1, 0]}) for name in ("plain", "rewritten")]
    assert [run.name for run in read_evaluations(folders)] == ["plain/0/scores", "rewritten/0/scores"]
    other = geneval_run(tmp_path / "x", {"colors": [1]})
    assert [run.name for run in read_evaluations([folders[0], other])] == ["scores", "x"]
    with pytest.raises(EvaluationError, match="scores: given twice"):
        read_evaluations([folders[0], folders[1], folders[0] / ".." / "scores"])


def test_runs_that_cannot_be_compared(tmp_path):
    one = geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]})
    other = geneval_run(tmp_path / "other", {"colors": [1, 0, 0, 0]}, prompts="wxyz")
    grades = dict.fromkeys(CATEGORIES, 1)
    first = wise_run(tmp_path / "wise", grades)
    for folders, words in (
        ([one, other], "do not have the same prompts"),
        ([one, first], "has benchmark wise"),
        ([first, wise_run(tmp_path / "list", grades, prompts="d2")], "list: was judged on another list of prompts"),
        ([one], "at least two"),
    ):
        with pytest.raises(EvaluationError, match=words) as caught:
            make_comparison_tables(read_evaluations(folders))
        assert "\n" not in str(caught.value)


def lacks(name, benchmark="geneval"):
    kept = {"benchmark": benchmark, "findings": [], "tables": [], "detector": "x", "judge": JUDGE, "prompts": "d"}
    return json.dumps({key: value for key, value in kept.items() if key != name})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; name an output folder"),
        ("[", "no summary of an evaluation .*; evaluate again"),
        ("[]", "no summary of an evaluation .*Expected `object`"),
        (lacks("benchmark"), "required field `benchmark`"),
        (lacks("findings"), "required field `findings`"),
        (lacks("tables"), "required field `tables`"),
        (lacks("detector"), "no 'detector'"),
        (lacks("judge", "wise"), "no 'judge'"),
        (lacks("prompts", "wise"), "no 'prompts'"),
        (lacks("", "other"), "Invalid enum value 'other'"),
        (lacks("", "wise"), "prompts.jsonl: missing; evaluate again"),
    ],
)
def test_an_incomplete_summary_is_one_line(tmp_path, content, words):
    if content is not None:
        (pathlib.Path(tmp_path) / "summary.json").write_text(content)
    with pytest.raises(EvaluationError, match=words) as caught:
        read_evaluations([tmp_path])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
