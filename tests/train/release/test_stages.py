"""Stages: a finished one is skipped, a failed one is named and runs again."""

import sys

import pytest

from pdgen.train.release.stages import Stage, StageError, run_stage


@pytest.fixture
def commands(tmp_path):
    """A folder of two commands: one counts its calls, one fails."""
    (tmp_path / "count.py").write_text("import sys; open(sys.argv[1], 'a').write('x')")
    (tmp_path / "fails.py").write_text("import sys; print('all is lost'); sys.exit(2)")
    return tmp_path


def test_a_finished_stage_is_skipped(commands):
    calls = commands / "calls"
    stage = Stage("count", commands / "cell", (str(calls),))
    lines = []
    run_stage(stage, commands, lines.append)
    run_stage(stage, commands, lines.append)
    assert calls.read_text() == "x" and len(lines) == 1
    with pytest.raises(StageError, match="was made with other arguments"):
        run_stage(stage._replace(arguments=(str(calls), "more")), commands, lines.append)


def test_a_stage_that_fails_is_named_and_runs_again(commands):
    stage = Stage("fails", commands / "cell", ())
    for _ in range(2):
        with pytest.raises(StageError, match=r"fails ended with status 2: all is lost .*fails\.log"):
            run_stage(stage, commands, lambda line: None)
    assert not (commands / "cell" / "fails.done").exists()


def test_commands_run_in_this_python(commands):
    (commands / "which.py").write_text("import sys; open(sys.argv[1], 'w').write(sys.executable)")
    run_stage(Stage("which", commands / "cell", (str(commands / "python"),)), commands, lambda line: None)
    assert (commands / "python").read_text() == sys.executable
