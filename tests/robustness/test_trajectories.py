"""Folders of sampled runs: trajectory.json, the latents, a picture, run.json."""

import dataclasses
import functools

import numpy as np
import pytest

from pdgen.sample.runs.folder import RUN, SampleRun, open_run, read_run
from pdgen.sample.runs.jobs import SampleJob
from pdgen.sample.settings import SampleSettings
from pdgen.sequence.trajectory_folder import load_trajectory, save_trajectory
from tests.robustness.calls import survey
from tests.robustness.mutations import mutate
from tests.sequence.test_trajectory import trajectory

pytestmark = pytest.mark.slow  # hundreds of damaged copies


@pytest.fixture
def folder(tmp_path):
    latents = {"02_sketch.png": np.arange(64, dtype=np.float32).reshape(8, 8)}
    save_trajectory(tmp_path / "000", trajectory("glirlin", latents=latents))
    return tmp_path / "000"


@pytest.mark.parametrize("name", ["trajectory.json", "latents.npz", "02_sketch.png"])
def test_trajectories(folder, capfd, name):
    file = folder / name
    survey(file, mutate(file.read_bytes(), 7), functools.partial(load_trajectory, folder), capfd, ("000",))


def test_runs(tmp_path, capfd):
    run = SampleRun(
        checkpoint="out/base",
        model_hash="ab",
        settings=dataclasses.replace(SampleSettings(), batch_size=1),
        jobs=[SampleJob("000", "a red circle", 0, [])],
    )
    file = tmp_path / "run" / RUN
    with open_run(file.parent, run):
        survey(file, mutate(file.read_bytes(), 8), lambda: read_run(file.parent), capfd)
