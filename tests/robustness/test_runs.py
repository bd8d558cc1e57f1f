"""Files in which work continues: a training run's logs and config, a build's settings and finished shards."""

import json

import pytest

from pdgen.checkpoints.runs.workdir import CHECKPOINTS, CONFIG_FILE, EXPORTED
from pdgen.synthesis import build
from pdgen.train.export import read_workdir_config
from pdgen.train.monitor.run_log import read_run_log
from pdgen.train.monitor.run_monitor import HELD_OUT, METRICS, truncate_log
from pdgen.train.preflight import check_workdir
from pdgen.train.run_config import read_run_config, run_to_json
from tests.data.shards import SETTINGS, SHARDS, make
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate

pytestmark = pytest.mark.slow  # hundreds of damaged copies

LINES = "".join(json.dumps({"step": step, "loss": 1 / step, "ce": 0.5}) + "\n" for step in (10, 20, 30))


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    (folder / CHECKPOINTS / "10").mkdir(parents=True)
    (folder / CONFIG_FILE).write_text('{"data": "out/data", "optimizer": {"ema_decay": 0.5}}')
    (folder / EXPORTED).write_text('{"step": 10}')
    for name in (METRICS, HELD_OUT):
        (folder / name).write_text(LINES)
    return folder


def test_configs_of_runs(workdir, capfd):
    run = read_run_config({"data": "data", "num_steps": 1, "rows": 1, "budgets": {"text": 8, "vit": 8, "vae": 8}})
    file = workdir / CONFIG_FILE
    file.write_text(run_to_json(run))
    survey(file, mutate(file.read_bytes(), 74), lambda: read_workdir_config(workdir), capfd)
    survey(file, mutate(file.read_bytes(), 75), lambda: check_workdir(run, workdir), capfd, (str(workdir),))


@pytest.mark.parametrize("name", [CONFIG_FILE, EXPORTED, METRICS, HELD_OUT])
def test_runs(workdir, capfd, name):
    file = workdir / name
    survey(file, mutate(file.read_bytes(), 71), lambda: read_run_log(workdir).step, capfd)


def test_logs_that_are_continued(workdir, capfd):
    file = workdir / METRICS
    survey(file, mutate(file.read_bytes(), 72), lambda: truncate_log(file, 20), capfd)


@pytest.mark.parametrize("name", ["settings.json", "one-00000.json"])
def test_builds(tmp_path, capfd, name):
    folder = tmp_path / "build"

    def resume():
        with build.open_build(folder, {"seed": 0}, SETTINGS, overwrite=False):
            build.read_facts(folder, "one")

    with build.open_build(folder, {"seed": 0}, SETTINGS, overwrite=False):
        build.build_shards(folder, SHARDS[:1], make, map)
    (file,) = folder.rglob(name)
    survey(file, mutate(file.read_bytes(), 73), resume, capfd, ("build: ",))
