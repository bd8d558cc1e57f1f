"""report_run as a command line: where the page goes, and what is refused in one line."""

import pathlib
import subprocess
import sys

import pytest

from tests.train.monitor.test_page import write_run

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "report_run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_page_appears_in_the_workdir_and_is_replaced(tmp_path):
    workdir = write_run(tmp_path / "red")
    page = workdir / "report.html"
    page.write_text("<!DOCTYPE html>old")
    done = run(workdir)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{page}: red at step 60\n"
    assert page.read_text().startswith("<!DOCTYPE html>\n") and "Run red" in page.read_text()


def test_several_runs_make_one_page_where_it_is_asked_for(tmp_path):
    workdirs = [write_run(tmp_path / name) for name in ("red", "blue")]
    target = tmp_path / "new" / "both.html"
    done = run(*workdirs, f"--output={target}")
    assert (done.returncode, done.stdout) == (0, f"{target}: red at step 60, blue at step 60\n")
    assert "Runs red, blue" in target.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the workdir of a training run"),
        (["{root}/none"], "none: no training run (config.json is missing); name the --workdir of launch/train.py"),
        (["{root}/red", "{root}/red"], "2 workdirs make one page; name it: --output=FILE"),
        (["{root}/red", "--output={root}"], "is a folder; name a file"),
        (["{root}/red", "--output={root}/red/config.json"], "exists and is no page, so it is not replaced"),
        (["{root}/red", "--file=x"], "Unknown command line flag 'file'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, arguments, words):
    workdir = write_run(tmp_path / "red")
    before = sorted(tmp_path.rglob("*"))
    done = run(*(argument.format(root=tmp_path) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith("report_run: ") and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before and "num_steps" in (workdir / "config.json").read_text()
