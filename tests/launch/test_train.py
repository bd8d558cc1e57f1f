"""The training command: its exit statuses, and continuation after kills."""

import json
import pathlib
import re
import signal
import subprocess

import pytest

from benchmarks import kill_and_resume
from pdgen.checkpoints.runs.workdir import CHECKPOINTS, list_steps
from pdgen.train.stop import EXIT_STATUS
from tests.support.command_line import run_command
from tests.support.own_lines import own_lines

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config, small model and data of the benchmark."""
    return kill_and_resume.make_inputs(tmp_path_factory.mktemp("inputs"), STEPS)


@pytest.fixture(scope="module")
def alone(config):
    """An uninterrupted run."""
    workdir = config.parent / "alone"
    kill_and_resume.RunProcess(config, workdir).end()
    return workdir


def train(*arguments):
    return run_command("train", *arguments)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--config={config}"], ".*--workdir.*must have a value other than None.*"),
        (["--config={config}", "--workdir={out}", "--config.stepps=3"], "--config: the config has no key .*stepps.*"),
        (["--config={config}", "--workdir={out}", "--config.optimizer.b1=x"], ".*config.optimizer.b1=x: .* float.*"),
        (
            ["--config={config}", "--workdir={alone}", "--config.rows=2"],
            ".*alone/config.json: holds a run with other values of rows .*; name another --workdir",
        ),
        (["--config={config}", "--workdir={out}", "--config.init={out}/none"], ".*/none: no such folder; name .*"),
    ],
)
def test_bad_input(config, alone, arguments, line, tmp_path):
    done = train(*(a.format(config=config, alone=alone, out=tmp_path / "out") for a in arguments))
    assert done.returncode == 2, done.stderr
    said = own_lines(done.stderr, "train")
    assert "Traceback" not in said
    assert re.fullmatch(f"train: {line}", said.splitlines()[-1]), done.stderr
    assert not (tmp_path / "out").exists()


def test_two_kills_and_a_signal(config, alone, capsys):
    """Killed twice and stopped by a signal once, a run ends like the uninterrupted one."""
    workdir = config.parent / "killed"
    life = kill_and_resume.RunProcess(config, workdir)
    life.wait_for(3)
    life.process.send_signal(signal.SIGTERM)
    assert life.process.wait() == EXIT_STATUS
    step = list_steps(workdir / CHECKPOINTS)[-1]
    log = workdir.with_suffix(".log").read_text()
    assert log.endswith(f"train: SIGTERM: saved step {step} of {STEPS} to {workdir}; start again to resume\n")
    assert kill_and_resume.run_with_kills(config, workdir, 2, STEPS, seed=1) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert kill_and_resume.find_differences(alone, workdir) == []


def test_the_comparison_detects_differences(alone, tmp_path):
    """In copies of a run with changed metrics, values and exports."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(alone), str(copy)], check=True)
    assert kill_and_resume.find_differences(alone, copy) == []
    metrics = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(metrics[:-1]) + "\n")
    digests = copy / CHECKPOINTS / str(STEPS) / "digests.json"
    stated = json.loads(digests.read_text())
    name = next(name for name in stated if name.startswith("ema.") and "/c" in name)
    stated[name]["sha256"] = "0"
    digests.write_text(json.dumps(stated))
    manifest = copy / "export" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256":"', '"sha256":"0', 1))
    found = kill_and_resume.find_differences(alone, copy)
    assert found[:-1] == [f"the checkpoints differ in {STEPS}/{name}", "the exported checkpoints differ"]
    assert found[-1].startswith(f"metrics.jsonl differs: {STEPS} rows and {STEPS - 1}")
