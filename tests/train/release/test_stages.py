"""Stages: a finished one is skipped, a failed one is named and runs again, and independent ones run side by side."""

import json
import os
import sys

import pytest

from pdgen.train.release.stages import Stage, StageError, run_stages

PROGRAMS = {
    "count": "import sys; open(sys.argv[1], 'a').write('x')",
    "fails": "import sys; print('all is lost'); sys.exit(2)",
    # Writes its CPUs, then waits until another command has done so too.
    "meet": """
import json, os, pathlib, sys, time
own, other = map(pathlib.Path, sys.argv[1:])
own.with_suffix(".part").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
own.with_suffix(".part").rename(own)
start = time.time()
while not other.exists():
    if time.time() > start + 60:
        sys.exit("nobody came")
    time.sleep(0.01)
""",
    # Fails once the other command runs, which ends only when it is terminated.
    "fails_later": """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
sys.exit(2)
""",
    "runs_on": """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1] + "_saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
""",
}


@pytest.fixture
def commands(tmp_path):
    """A folder of commands."""
    for name, program in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(program)
    return tmp_path


def test_a_finished_stage_is_skipped(commands, capfd):
    calls = commands / "calls"
    stage = Stage("count", commands / "cell", (str(calls),))
    run_stages([stage], commands)
    run_stages([stage], commands)
    assert calls.read_text() == "x" and "".join(capfd.readouterr()).count("count.py") == 1
    with pytest.raises(StageError, match="was made with other arguments"):
        run_stages([stage._replace(arguments=(str(calls), "more"))], commands)


def test_a_stage_that_fails_is_named_and_runs_again(commands):
    stage = Stage("fails", commands / "cell", ())
    for _ in range(2):
        with pytest.raises(StageError, match=r"fails ended with status 2: all is lost .*fails\.log"):
            run_stages([stage], commands)
    assert not stage.mark.exists()


def test_commands_run_in_this_python(commands):
    (commands / "which.py").write_text("import sys; open(sys.argv[1], 'w').write(sys.executable)")
    run_stages([Stage("which", commands / "cell", (str(commands / "python"),))], commands)
    assert (commands / "python").read_text() == sys.executable


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_independent_stages_run_side_by_side_on_cpus_of_their_own(commands):
    before, files = os.sched_getaffinity(0), (commands / "a", commands / "b")
    pair = [Stage("meet", commands / f"cell_{own.name}", (str(own), str(other))) for own, other in (files, files[::-1])]
    run_stages(pair, commands, jobs=2)
    shares = [set(json.loads(file.read_text())) for file in files]
    assert all(shares) and not shares[0] & shares[1] and shares[0] | shares[1] == before
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_stage_waits_for_what_it_needs(commands):
    lines, folders = commands / "lines", [commands / name for name in "abc"]
    (commands / "slow.py").write_text("import sys, time; time.sleep(0.5); open(sys.argv[1], 'a').write('slow ')")
    (commands / "fast.py").write_text("import sys; open(sys.argv[1], 'a').write('fast ')")
    first = Stage("slow", folders[0], (str(lines),))
    after = Stage("fast", folders[1], (str(lines),), needs=(first.mark,))
    free = Stage("fast", folders[2], (str(lines),))
    run_stages([first, after, free], commands, jobs=2)
    assert lines.read_text().split() == ["fast", "slow", "fast"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_failure_terminates_the_stages_beside_it(commands):
    running = commands / "running"
    stages = [Stage(name, commands / name, (str(running),)) for name in ("runs_on", "fails_later")]
    with pytest.raises(StageError, match="fails_later ended with status 2"):
        run_stages(stages, commands, jobs=2)
    assert (commands / "running_saved").exists() and not stages[0].mark.exists()


def test_more_jobs_than_cpus_are_refused(commands):
    with pytest.raises(ValueError, match=r"--jobs=1000, but this process may use \d+ CPUs"):
        run_stages([Stage("count", commands / "cell", (str(commands / "calls"),))], commands, jobs=1000)
    assert not (commands / "calls").exists()
