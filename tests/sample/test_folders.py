"""A run's folder: it begins, goes on with what is missing, and refuses what is something else."""

import dataclasses
import os
import subprocess
import sys

import msgspec
import pytest

from pdgen.flow.denoise import ImageSettings
from pdgen.interleave.trajectory import TextStage, Trajectory, save_trajectory
from pdgen.sample.folders import RUN, Run, RunError, missing, next_branch, opened, read_run, trajectories
from pdgen.sample.prompts import Given, Line, jobs_of
from pdgen.sample.settings import SampleSettings

PLAN = Trajectory(
    prompt="a", stages=[TextStage("plan", "<ins>a</ins> <des>b</des>")], stop_reason="step limit", seed=0, checkpoint=""
)


@pytest.fixture
def run():
    settings = SampleSettings(image=ImageSettings(interval=(0.25, 1.0)), refine=ImageSettings(text_scale=2.5))
    jobs = jobs_of([Line("a cat"), Line("a dog")], 2, 0)
    return Run(checkpoint="x", model_hash="beef", settings=settings, jobs=jobs, strategy="best_of_n", options={"n": 4})


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_a_run_began_with_is_read_again(tmp_path, run):
    with opened(tmp_path / "run", run):
        assert read_run(tmp_path / "run") == run
        save_trajectory(tmp_path / "run" / "000", PLAN)


def test_a_run_goes_on_with_what_is_missing(tmp_path, run):
    with opened(tmp_path, run):
        assert missing(tmp_path, run.jobs) == run.jobs
        save_trajectory(tmp_path / "001", PLAN)
    (tmp_path / ".002.partial-77").mkdir()
    (tmp_path / ".002.partial-77" / "01_sketch.png").write_text("half")
    (tmp_path / "003").mkdir()  # without trajectory.json it is none
    with opened(tmp_path, msgspec.structs.replace(run, checkpoint="moved")):
        assert [job.name for job in missing(tmp_path, run.jobs)] == ["000", "002", "003"]
        assert not (tmp_path / ".002.partial-77").exists()


def test_what_was_begun_otherwise_is_refused(tmp_path, run):
    with opened(tmp_path, run):
        save_trajectory(tmp_path / "000", PLAN)
    before = files(tmp_path)
    warmer = dataclasses.replace(run.settings, refine=ImageSettings(text_scale=3.0))
    others = {
        "refine.text_scale=2.5, now it is 3.0": {"settings": warmer},
        "best_of_n.n=4, now it is 8": {"options": {"n": 8}},
        "strategy=best_of_n, now it is None": {"strategy": "", "options": {}},
        "advisers.model=None, now it is judge": {"advisers": {"model": "judge"}},
        "model_hash=beef, now it is cafe": {"model_hash": "cafe"},
        "number of trajectories=4, now it is 3": {"jobs": run.jobs[:3]},
        "trajectory 002='a dog' with seed 2, now it is 'a cow' with seed 2": {
            "jobs": [job if job.name != "002" else msgspec.structs.replace(job, prompt="a cow") for job in run.jobs]
        },
        r"trajectory 000='a cat' with seed 0, now it is 'a cat' with seed 0, x.png \(abcd0123\)": {
            "jobs": [msgspec.structs.replace(run.jobs[0], images=[Given("x.png", "abcd0123ff")]), *run.jobs[1:]]
        },
    }
    for words, changes in others.items():
        other = msgspec.structs.replace(run, **changes)
        with pytest.raises(RunError, match=f"was begun with {words}; pass --overwrite"), opened(tmp_path, other):
            pytest.fail("it went on")
    assert files(tmp_path) == before
    with opened(tmp_path, msgspec.structs.replace(run, model_hash="cafe"), overwrite=True):
        assert files(tmp_path) == [RUN] and read_run(tmp_path).model_hash == "cafe"


def test_a_folder_of_something_else_is_left_alone(tmp_path, run):
    (tmp_path / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"is no sampled run \(run.json"), opened(tmp_path, run, overwrite):
            pytest.fail("it began")
    with pytest.raises(RunError, match="is no sampled run"), opened(tmp_path / "precious", run):
        pytest.fail("it began")
    assert files(tmp_path) == ["precious"]


def test_overwriting_spares_what_is_no_trajectory(tmp_path, run):
    with opened(tmp_path, run):
        save_trajectory(tmp_path / "000", PLAN)
        save_trajectory(tmp_path / "000-1", PLAN)
        save_trajectory(tmp_path / "mine", PLAN)
    with opened(tmp_path, run, overwrite=True):
        assert files(tmp_path) == ["mine/trajectory.json", RUN]


def test_nothing_sampled_leaves_nothing(tmp_path, run):
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "run", run):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_share_a_folder(tmp_path, run):
    script = (
        "import sys, pathlib; from pdgen.sample.folders import locked, RunError\n"
        "try:\n  with locked(pathlib.Path(sys.argv[1])): print('in')\n"
        "except RunError as fault: print(fault)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with opened(tmp_path, run):
        other = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        save_trajectory(tmp_path / "000", PLAN)
    assert other.stdout == f"{tmp_path}: another process is sampling into it; wait for its end\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout == "in\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "truncated"), ("{}", "missing required field"), (None, "expected the folder of a sampled run")],
)
def test_a_damaged_run_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / RUN).write_text(text)
    with pytest.raises(RunError, match=words) as fault:
        read_run(tmp_path)
    assert str(fault.value).startswith(str(tmp_path / RUN))


def test_branches_have_names_of_their_own(tmp_path):
    for name in ("000", "000-1", "000-1-1", "001"):
        save_trajectory(tmp_path / name, PLAN)
    assert trajectories(tmp_path) == ["000", "000-1", "000-1-1", "001"]
    assert [next_branch(tmp_path, name) for name in ("000", "000-1", "001")] == ["000-2", "000-1-2", "001-1"]
