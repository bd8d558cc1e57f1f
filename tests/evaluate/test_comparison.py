"""Runs put side by side, from hand-written results whose differences are known."""

import json

import pytest

from pdgen.evaluate.comparison import comparison, differences, evaluations, read_run, scores_of
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.wise import NAMES, ORIGINAL


def geneval_run(folder, right, prompts=("a", "b", "c", "d"), costs=None):
    """``right``: by task, whether each prompt's only image is right."""
    folder.mkdir()
    tables = [{"title": "Costs", "columns": [], "rows": [["network_evaluations", costs]], "note": ""}] if costs else []
    (folder / "summary.json").write_text(json.dumps({"benchmark": "geneval", "findings": [], "tables": tables}))
    lines = []
    for task, outcomes in right.items():
        for prompt, correct in zip(prompts, outcomes):
            lines.append({
                "filename": f"{folder}/{task}{prompt}/samples/0.png", "tag": task, "prompt": prompt, "correct": correct,
                "reason": "", "metadata": json.dumps({"prompt": prompt}), "details": "{}",
            })  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


def wise_run(folder, grades):
    """``grades``: consistency by category; realism and aesthetic quality are 2."""
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"benchmark": "wise", "findings": []}))
    lines = [
        {"prompt_id": i, "Subcategory": "s", "consistency": grades[name], "realism": 2, "aesthetic_quality": 2}
        for name, ids in ORIGINAL.items()
        for i in ids
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


def test_differences_by_prompt(tmp_path):
    one = geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0], "position": [1, 1, 1, 1]}, costs=98)
    two = geneval_run(tmp_path / "two", {"colors": [1, 1, 1, 0], "position": [1, 1, 1, 1]})
    found = differences(one, two)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "colors": 0.5, "position": 0.0, "overall": 0.25}  # fmt: skip
    # The second is better on two prompts and never worse: paired, the interval does not reach below 0.
    assert found["colors"].low >= 0 and scores_of(one)["colors"].high > scores_of(two)["colors"].low
    side, apart = comparison([one, two])
    assert side.rows[0][0] == "colors" and side.rows[0][1] == 0.25 and side.rows[0][4] == 0.75
    assert apart.rows[-1][:2] == ("two: overall", 0.25)
    assert (evaluations(one), evaluations(two)) == (98.0, None)


def test_wise_scorings(tmp_path):
    one = wise_run(tmp_path / "one", dict.fromkeys(NAMES, 1))
    two = wise_run(tmp_path / "two", dict.fromkeys(NAMES, 1) | {"culture": 2})
    # (7 * 1 + 2 * 2 + 2) / 20, and culture at 1: weights 0.4 of A, a sixth of C.
    assert {name: one.value for name, one in scores_of(one).items()} == pytest.approx(
        {"scoring A": 0.65, "scoring C": 0.65}
    )
    found = differences(one, two)
    assert found["scoring A"].value == pytest.approx(0.35 * 0.4)
    assert found["scoring C"].value == pytest.approx(0.35 / 6)
    assert "scoring B" not in found


def test_what_cannot_be_compared(tmp_path):
    one = geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]})
    other = geneval_run(tmp_path / "other", {"colors": [1, 0, 0, 0]}, prompts="wxyz")
    with pytest.raises(EvaluationError, match="not of the same prompts"):
        comparison([one, other])
    with pytest.raises(EvaluationError, match="is of wise"):
        comparison([one, wise_run(tmp_path / "wise", dict.fromkeys(NAMES, 1))])
    with pytest.raises(EvaluationError, match="at least two"):
        comparison([one])
    with pytest.raises(EvaluationError, match=r"nothing/summary.json: No such file.*name an output folder"):
        read_run(tmp_path / "nothing")
    (tmp_path / "one" / "summary.json").write_text("[")
    with pytest.raises(EvaluationError, match="no summary of an evaluation"):
        read_run(tmp_path / "one")
