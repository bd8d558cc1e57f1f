"""The command line that compares: its page and files, and one line with status 2 on bad input."""

import json
import pathlib
import re
import subprocess
import sys

from pdgen.evaluate.wise import NAMES
from tests.evaluate.test_comparison import JUDGE, geneval_run, summary, wise_run

ROOT = pathlib.Path(__file__).parents[2]


def compare(*arguments):
    command = [sys.executable, "launch/compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_compare(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]}, costs=98)
    geneval_run(tmp_path / "two", {"colors": [1, 1, 1, 0]}, costs=131)
    done = compare(tmp_path / "one", tmp_path / "two", f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "both" / "index.html").read_text()
    assert "1. one: 0.250 at 98" in page and "2. two: 0.750 at 131" in page and "Published" in page
    [scores, apart] = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert scores["rows"][0][:2] == ["colors", 0.25]
    assert (tmp_path / "both" / "scores.csv").read_text().startswith("score,one,one low,one high,two,")
    assert apart["rows"][-1][:2] == ["overall", 0.5]
    assert re.search(r"^overall +0\.5000 \[", done.stdout[done.stdout.index("Differences") :], re.MULTILINE)


def test_runs_of_one_name_and_other_detectors(tmp_path):
    """As every run of an ablation is named; what differs in the judging stands at the head."""
    one = geneval_run(tmp_path / "plain" / "scores", {"colors": [1, 0, 0, 0]}, costs=98)
    two = geneval_run(tmp_path / "rewritten" / "scores", {"colors": [1, 1, 1, 0]}, costs=131, detector="mask2former")
    done = compare(one, two, f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    [_, apart] = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert apart["columns"][1] == "rewritten/scores"
    assert done.stdout.startswith("Judged differently: plain/scores by shapes; rewritten/scores by mask2former.")
    page = (tmp_path / "both" / "index.html").read_text()
    assert page.index("Judged differently") < page.index("<h2>") and "rewritten/scores: 0.750 at 131" in page


def test_wise_plots_a_total_that_all_have(tmp_path):
    table = {"title": "Costs", "columns": ["cost", "value"], "rows": [["network_evaluations", 98]], "note": ""}
    runs = [wise_run(tmp_path / name, dict.fromkeys(NAMES, 1)) for name in ("one", "two")]
    for folder in runs:
        summary(folder, benchmark="wise", judge=JUDGE, prompts="d1", tables=[table])
    done = compare(*runs, f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    assert "one, C overall: 0.650 at 98" in (tmp_path / "both" / "index.html").read_text()


def test_faults_are_one_line(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "summary.json").write_text('{"benchmark": "geneval"}')
    cases = {"one": "at least two", "one no": "summary.json", "one old": "missing required field", "one one": "twice"}
    for names, words in cases.items():
        runs = [tmp_path / name for name in names.split()]
        done = compare(*runs, f"--output={tmp_path / 'out'}")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
