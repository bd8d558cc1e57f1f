"""Evaluated runs: results of GenEval, scores and prompts of WISE, summaries."""

import json

import pytest

from pdgen.evaluate.comparison import make_comparison_tables, read_evaluation, read_evaluations
from pdgen.evaluate.folder import RECORD, ImageJob, begin_generation
from pdgen.evaluate.page import write_summary
from pdgen.evaluate.wise import PROMPTS_FILE
from tests.evaluate.test_comparison import JUDGE, geneval_run, summary
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies


@pytest.mark.parametrize("name", ["results.jsonl", "summary.json"])
def test_runs_of_geneval(tmp_path, capfd, name):
    runs = [geneval_run(tmp_path / run, {"colors": [1, 0], "position": [0, 1]}, costs=98) for run in ("one", "two")]
    file = runs[1] / name
    read = lambda: make_comparison_tables(read_evaluations(runs))  # noqa: E731
    survey(file, mutate(file.read_bytes(), 51), read, capfd, ("two",))


@pytest.mark.parametrize("name", ["scores.jsonl", "scores_verified.jsonl", PROMPTS_FILE, "summary.json"])
def test_runs_of_wise(tmp_path, capfd, name):
    folder = tmp_path / "run"
    summary(folder, benchmark="wise", judge=JUDGE, prompts="d1")
    prompt = {"Prompt": "p", "Explanation": "e", "Category": "c", "Subcategory": "s"}
    grades = {"consistency": 1, "realism": 2, "aesthetic_quality": 0}
    for other, values in ((PROMPTS_FILE, prompt), ("scores.jsonl", grades), ("scores_verified.jsonl", {"score": 1})):
        lines = [json.dumps({"prompt_id": n, "Subcategory": "s", **values}) + "\n" for n in (1, 2)]
        (folder / other).write_text("".join(lines))
    file = folder / name
    survey(file, mutate(file.read_bytes(), 52), lambda: read_evaluation(folder, "run"), capfd)


def test_a_summary_that_is_replaced(tmp_path, capfd):
    """A summary lists its files; whatever a damaged one lists, no other file is removed."""
    file = tmp_path / "out" / "summary.json"
    summary(file.parent, benchmark="shapes", tables=[{"title": "Old", "columns": [], "rows": []}])
    (tmp_path / "kept.csv").write_text("a")
    damaged = file.read_bytes().replace(b"Old", b"../kept")
    mutated = [("a path", damaged), *mutate(file.read_bytes(), 53)]
    survey(file, mutated, lambda: write_summary(file.parent, {"findings": []}, []), capfd)
    assert (tmp_path / "kept.csv").exists()


def test_records_of_a_generation(tmp_path, capfd):
    made_by, jobs = {"benchmark": "shapes", "seed": 1}, [ImageJob("0/0", "a star", 0)]
    begin_generation(tmp_path, made_by, jobs)
    file = tmp_path / RECORD
    survey(
        file, mutate(file.read_bytes(), 54), lambda: begin_generation(tmp_path, made_by, jobs), capfd, (str(tmp_path),)
    )
