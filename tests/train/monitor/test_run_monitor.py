"""The monitor of a run on a full disk: the run continues, with one line for each part that is dropped."""

import contextlib
import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from pdgen.data.loader import Batches
from pdgen.sequence.layout import Budgets
from pdgen.sharding import make_mesh
from pdgen.train.monitor.run_monitor import RunMonitor
from pdgen.train.run_config import RunConfig
from pdgen.train.state import TrainState
from tests.support.disks import limit_file_size
from tests.train.cases import STEP

RUN = RunConfig(
    data="", num_steps=9, rows=1, budgets=Budgets(1, 1, 1), log_every=1, pictures_every=3, prompts=("a circle",)
)
METRICS = {name: jnp.float32(1) for name in ("loss", "tokens", "images", "flops")} | {"finite": jnp.bool(True)}


STATE = TrainState(step=0, trained={}, frozen={}, opt_state=(), ema={}, spikes={})


@pytest.fixture
def monitor(tmp_path):
    """(monitor, lines it logged, steps at which it sampled)."""
    lines, sampled = [], []

    def sample(step, params):
        sampled.append(step)
        (tmp_path / f"{step}.png").write_bytes(bytes(1000))

    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        monitor = RunMonitor(RUN, STEP, tmp_path, lines.append, mock.Mock(spec=Batches), None, sample)
        monitor._combine_params = lambda trained, frozen: {}  # nothing to compile or cache
        yield monitor, lines, sampled


def advance(monitor, steps):
    for step in steps:
        monitor.meter.add(step, METRICS)
        assert monitor.after_step(step, STATE)


def test_every_part_that_meets_a_full_disk_is_dropped_in_one_line(monitor, tmp_path):
    monitor, lines, sampled = monitor
    with pytest.raises(RuntimeError, match="out of memory"), monitor:
        monitor.start(0)
        advance(monitor, [1, 2])
        assert not lines
        with limit_file_size(400):
            advance(monitor, range(3, 8))
        advance(monitor, [8, 9])
        raise RuntimeError("out of memory")
    assert sampled == [3]
    assert sorted(line.split(":")[0] for line in lines) == [
        f"{tmp_path}/{name}" for name in ("metrics.jsonl", "pictures", "tensorboard")
    ]
    assert all("cannot be written (File too large); the run continues without it" in line for line in lines)
    whole = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]]
    assert whole == [1, 2]
    assert (tmp_path / "stopped.txt").read_text() == "out of memory\n"


def test_a_run_starts_and_ends_on_a_disk_that_is_already_full(monitor, tmp_path):
    monitor, lines, sampled = monitor
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 5}\n')
    with limit_file_size(0), pytest.raises(KeyboardInterrupt), monitor:
        monitor.start(2)
        advance(monitor, [3, 4])
        raise KeyboardInterrupt
    names = {f"{tmp_path}/{name}" for name in ("metrics.jsonl", "pictures", "stopped.txt", "tensorboard")}
    assert {line.split(":")[0] for line in lines} == names
    assert sampled == [3]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 5}\n'  # for the next start


def test_a_progress_bar_that_cannot_be_shown_is_dropped(monitor, monkeypatch):
    monitor, lines, sampled = monitor
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails as well
        monkeypatch.setattr(sys, "stderr", full)
        with monitor:
            monitor.start(0)
            advance(monitor, range(1, 10))
    assert (lines, sampled) == ([], [3, 6, 9])
