"""The command line that compares: its page and files, and one line with status 2 on bad input."""

import json
import pathlib
import subprocess
import sys

from tests.evaluate.test_comparison import geneval_run

ROOT = pathlib.Path(__file__).parents[2]


def compare(*arguments):
    command = [sys.executable, "launch/compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_compare(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]}, costs=98)
    geneval_run(tmp_path / "two", {"colors": [1, 1, 1, 0]}, costs=131)
    done = compare(tmp_path / "one", tmp_path / "two", f"--output={tmp_path / 'both'}")
    assert done.returncode == 0, done.stderr
    assert "two: overall" in done.stdout and "0.5000" in done.stdout
    page = (tmp_path / "both" / "index.html").read_text()
    assert "two: 0.750 at 131" in page and "Published" in page
    [scores, _] = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert scores["rows"][0][:2] == ["colors", 0.25]
    assert (tmp_path / "both" / "scores.csv").read_text().startswith("score,one,one low,one high,two,")


def test_faults_are_one_line(tmp_path):
    geneval_run(tmp_path / "one", {"colors": [1, 0, 0, 0]})
    for runs, words in (([tmp_path / "one"], "at least two"), ([tmp_path / "one", tmp_path / "no"], "summary.json")):
        done = compare(*runs, f"--output={tmp_path / 'out'}")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
