"""A run's folder: it begins, continues with the missing trajectories, and refuses other folders."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import msgspec
import pytest

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.runs.folder import (
    PAGE,
    RUN,
    RunFolderError,
    SampleRun,
    find_missing,
    list_trajectories,
    lock_run,
    name_branch,
    open_run,
    read_run,
)
from pdgen.sample.runs.jobs import GivenImage, PromptLine, make_jobs
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.trajectory import TextStage, Trajectory
from pdgen.sequence.trajectory_folder import save_trajectory

PLAN = Trajectory(
    prompt="a", stages=[TextStage("plan", "<ins>a</ins> <des>b</des>")], stop_reason="step limit", seed=0, checkpoint=""
)
LONG = "a fence, a gate, a road, a cart and before all of that one very small"


@pytest.fixture
def run():
    settings = SampleSettings(image=ImageSettings(interval=(0.25, 1.0)), refine=ImageSettings(text_scale=2.5))
    jobs = make_jobs([PromptLine("a cat"), PromptLine(f"{LONG} dog")], 2, 0)
    return SampleRun(
        checkpoint="x", model_hash="beef", settings=settings, jobs=jobs, strategy="best_of_n", options={"n": 4}
    )


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_settings_of_a_run_are_read_back(tmp_path, run):
    with open_run(tmp_path / "run", run):
        assert read_run(tmp_path / "run") == run
        save_trajectory(tmp_path / "run" / "000", PLAN)


def test_a_run_of_version_0_3_is_read(tmp_path, run):
    """Its settings called the batch size ``together``."""
    with open_run(tmp_path, run):
        save_trajectory(tmp_path / "000", PLAN)
    content = (tmp_path / "run.json").read_text()
    assert content.count('"batch_size": 0') == 1
    (tmp_path / "run.json").write_text(content.replace('"batch_size": 0', '"together": 4'))
    assert read_run(tmp_path).settings == dataclasses.replace(run.settings, batch_size=4)


def test_a_run_continues_with_the_missing_trajectories(tmp_path, run):
    with open_run(tmp_path, run):
        assert find_missing(tmp_path, run.jobs) == run.jobs
        save_trajectory(tmp_path / "001", PLAN)
    (tmp_path / ".002.partial-77").mkdir()
    (tmp_path / ".002.partial-77" / "01_sketch.png").write_text("half")
    (tmp_path / ".index.html.partial").write_text("half")
    with open_run(tmp_path, msgspec.structs.replace(run, checkpoint="moved")):
        assert [job.name for job in find_missing(tmp_path, run.jobs)] == ["000", "002", "003"]
        assert files(tmp_path) == ["001/trajectory.json", RUN]
    assert files(tmp_path) == ["001/trajectory.json", RUN]


def test_a_folder_in_the_place_of_a_trajectory_is_named(tmp_path, run):
    (tmp_path / "003").mkdir()
    with pytest.raises(RunFolderError, match=r"003: exists and is no trajectory .*; remove it"):
        find_missing(tmp_path, run.jobs)


def test_a_run_of_other_settings_is_refused(tmp_path, run):
    with open_run(tmp_path, run):
        save_trajectory(tmp_path / "000", PLAN)
    before = files(tmp_path)
    cow = [msgspec.structs.replace(job, prompt=f"{LONG} cow") if job.name == "002" else job for job in run.jobs]
    warmer = dataclasses.replace(run.settings, refine=ImageSettings(text_scale=3.0))
    others = {
        "refine.text_scale=2.5, now it is 3.0": {"settings": warmer},
        "best_of_n.n=4, now it is 8": {"options": {"n": 8}},
        "strategy=best_of_n, now it is None": {"strategy": "", "options": {}},
        "advisers.model=None, now it is judge": {"advisers": {"model": "judge"}},
        "model_hash=beef, now it is cafe": {"model_hash": "cafe"},
        "number of trajectories=4, now it is 3": {"jobs": run.jobs[:3]},
        f"trajectory 002='{LONG} dog' with seed 2, now it is '{LONG} cow' with seed 2": {"jobs": cow},
        "trajectory 000='a cat' with seed 0, now it is 'a cat' with seed 0, image abcd0123": {
            "jobs": [msgspec.structs.replace(run.jobs[0], images=[GivenImage("x.png", "abcd0123ff")]), *run.jobs[1:]]
        },
    }
    for words, changes in others.items():
        other = msgspec.structs.replace(run, **changes)
        with (
            pytest.raises(RunFolderError, match=f"was begun with {words}; pass --overwrite"),
            open_run(tmp_path, other),
        ):
            pytest.fail("it went on")
    assert files(tmp_path) == before


def test_a_given_image_may_move_and_lists_stay_the_same(tmp_path, run):
    def with_image(path):
        return [msgspec.structs.replace(run.jobs[0], images=[GivenImage(path, "abcd")]), *run.jobs[1:]]

    parm = msgspec.structs.replace(run, strategy="parm", options={"judged": (0.25, 0.5)}, jobs=with_image("x.png"))
    with open_run(tmp_path, parm):
        save_trajectory(tmp_path / "000", PLAN)
    with open_run(tmp_path, msgspec.structs.replace(parm, jobs=with_image("moved/y.png"))):
        assert list_trajectories(tmp_path) == ["000"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, run):
    (tmp_path / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match=r"is no sampled run \(run.json"), open_run(tmp_path, run, overwrite):
            pytest.fail("it began")
    with pytest.raises(RunFolderError, match="is no sampled run"), open_run(tmp_path / "precious", run):
        pytest.fail("it began")
    assert files(tmp_path) == ["precious"]


@pytest.fixture
def old(tmp_path, run):
    """The folder of a run with a branch, a page and a foreign file, and the contents of all files."""
    with open_run(tmp_path, run):
        for name in ("000", "000-1", "mine"):
            save_trajectory(tmp_path / name, PLAN)
        (tmp_path / PAGE).write_text("old page")
    return tmp_path, content(tmp_path)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_new_trajectory_replaces_the_old_run(old, run):
    folder, before = old
    other = msgspec.structs.replace(run, model_hash="cafe")
    with open_run(folder, other, overwrite=True):
        assert list_trajectories(folder) == [] and read_run(folder) == other
        save_trajectory(folder / "001", PLAN)
    assert files(folder) == ["001/trajectory.json", "mine/trajectory.json", RUN] and read_run(folder) == other
    assert before["mine/trajectory.json"] == (folder / "mine" / "trajectory.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"001", "mine", RUN}


def test_the_old_run_is_restored_if_nothing_was_sampled(old, run):
    folder, before = old
    for fault in (KeyboardInterrupt, ValueError):
        with pytest.raises(fault), open_run(folder, msgspec.structs.replace(run, model_hash="cafe"), overwrite=True):
            raise fault
        assert content(folder) == before
    with open_run(folder, run):  # and the old run continues
        assert list_trajectories(folder) == ["000", "000-1"]


class Killed(BaseException):
    """A kill: from here on nothing reaches the disk."""


@contextlib.contextmanager
def killed_after(steps):
    """Allow this many changes of names in the file system, then kill; the result tells whether it did."""
    names, done = ("mkdir", "rename", "replace", "rmdir", "unlink"), itertools.count()
    dead = []

    def counted(change):
        def call(*arguments, **keywords):
            if next(done) >= steps:
                dead.append(change)
                raise Killed
            return change(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(Killed):
            yield dead


@pytest.mark.parametrize("sampled", [False, True])
def test_a_kill_at_any_moment_of_overwriting_leaves_one_run_or_the_other(tmp_path, run, sampled):
    """A process is killed at any moment, and so is the next one, which repairs the folder."""
    template, new = tmp_path / "template", msgspec.structs.replace(run, model_hash="cafe")
    with open_run(template, run):
        for name in ("000", "000-1"):
            save_trajectory(template / name, PLAN)
        (template / PAGE).write_text("old page")
    before, ends = content(template), set()
    for first, second in itertools.product(range(30), range(12)):
        folder = tmp_path / f"{first}-{second}"
        shutil.copytree(template, folder)
        with killed_after(first) as dead, open_run(folder, new, overwrite=True):
            if sampled:
                save_trajectory(folder / "001", PLAN)
        with killed_after(second), lock_run(folder):
            pass
        with lock_run(folder):
            left = content(folder)
        if set(left) == {"001/trajectory.json", RUN}:
            assert read_run(folder) == new
            ends.add("new")
        else:
            assert left == before
            ends.add("old")
        assert {path.name for path in folder.iterdir()} == {pathlib.Path(name).parts[0] for name in left}
    assert not dead  # the last processes finished
    assert ends == ({"old", "new"} if sampled else {"old"})


def test_a_kill_before_the_run_begins_leaves_a_usable_folder(tmp_path, run):
    (tmp_path / ".run.json.partial").write_text("half")
    (tmp_path / ".run.json.partial-12").write_text("half")
    with open_run(tmp_path, run):
        save_trajectory(tmp_path / "000", PLAN)
    assert files(tmp_path) == ["000/trajectory.json", RUN]
    (tmp_path / "000" / "trajectory.json").unlink()
    (tmp_path / "000").rmdir()
    (tmp_path / PAGE).write_text("page")
    for _ in range(2):  # an existing run stays when it is stopped again
        with pytest.raises(KeyboardInterrupt), open_run(tmp_path, run):
            raise KeyboardInterrupt


def test_a_foreign_hidden_folder_is_left_alone(tmp_path):
    (tmp_path / ".before").mkdir()
    (tmp_path / ".before" / "precious").write_text("x")
    with lock_run(tmp_path):
        assert files(tmp_path) == [".before/precious"]
    with (
        pytest.raises(RunFolderError, match="nowhere: No such file or directory; expected"),
        lock_run(tmp_path / "nowhere"),
    ):
        pytest.fail("it was there")


def test_nothing_sampled_leaves_nothing(tmp_path, run):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", run):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_share_a_folder(tmp_path, run):
    script = (
        "import sys, pathlib; from pdgen.sample.runs.folder import lock_run, RunFolderError\n"
        "try:\n  with lock_run(pathlib.Path(sys.argv[1])): print('in')\n"
        "except RunFolderError as fault: print(fault)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with open_run(tmp_path, run):
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
    with pytest.raises(RunFolderError, match=words) as fault:
        read_run(tmp_path)
    assert str(fault.value).startswith(str(tmp_path / RUN))


def test_branches_have_names_of_their_own(tmp_path):
    for name in ("000", "000-1", "000-1-1", "001"):
        save_trajectory(tmp_path / name, PLAN)
    assert list_trajectories(tmp_path) == ["000", "000-1", "000-1-1", "001"]
    (tmp_path / "001-1").write_text("in the way")
    assert [name_branch(tmp_path, name) for name in ("000", "000-1", "001")] == ["000-2", "000-1-2", "001-2"]
