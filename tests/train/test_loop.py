"""A whole run on a few records: it learns, resumes with the same bits, and refuses invalid configs."""

import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.config import get_preset
from pdgen.data.latents import add_latents
from pdgen.data.records import Origin, write_dataset
from pdgen.models import bagel
from pdgen.sequence.layout import Budgets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.train import loop
from pdgen.train.monitor.meter import TIMING_METRICS, Meter
from pdgen.train.monitor.run_monitor import truncate_log
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.run_config import RunConfig, RunError, read_run_config
from pdgen.train.stop import Stopped
from tests.support.shapes_records import trajectories


def _moments(pictures):
    """Moments of the right shape that depend on the picture: no autoencoder to compile."""
    mean = np.tile(pictures[:, ::8, ::8].astype(np.float32) / 255, 6)[..., :16]
    return mean, np.full_like(mean, -6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    records = add_latents(trajectories(60, seed=3), _moments)
    write_dataset(folder, records, Origin(seed=3, tokenizer=load_tokenizer(shapes_folder()).fingerprint))
    return folder


@pytest.fixture(scope="module")
def run(data):
    return RunConfig(
        data=str(data),
        num_steps=12,
        rows=1,
        budgets=Budgets(448, 96, 256),
        mesh=(1, 1, 1),
        save_every=4,
        log_every=2,
        held_out=8,
        held_out_every=4,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2),
    )


def _train(run, workdir, log=lambda line: None):
    """Train on one of the eight devices."""
    return loop.train(run, workdir, log, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, _train(run, workdir)


def _lines(workdir, name="metrics.jsonl"):
    rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})  # none twice
    return {row["step"]: {k: v for k, v in row.items() if k not in TIMING_METRICS} for row in rows}


@pytest.mark.slow
def test_it_learns(whole):
    metrics = _lines(whole[0])
    assert sorted(metrics) == [2, 4, 6, 8, 10, 12]
    assert abs(metrics[2]["ce"] - np.log(512)) < 1  # at the start all 512 pieces are equally likely
    assert metrics[12]["ce"] < metrics[2]["ce"] - 1


@pytest.mark.slow
def test_held_out_losses_fall(whole):
    """The targets are always the same; the unigram baseline is far better than chance."""
    lines = _lines(whole[0], "held_out.jsonl")
    assert sorted(lines) == [4, 8, 12]
    assert lines[12]["ce"] < lines[4]["ce"] - 0.5 and lines[12]["mse"] < lines[4]["mse"]
    assert lines[12]["unigram_ce"] < np.log(512) - 1
    assert 1 < lines[12]["constant_mse"] < 4
    fixed = {name for name in lines[4] if name.endswith("_targets")} | {"unigram_ce", "constant_mse"}
    assert {name: lines[4][name] for name in fixed} == {name: lines[12][name] for name in fixed}
    assert {"ce_plan", "ce_inspect", "ce_refine", "ce_switch", "mse_0", "mse_1", "mse_2", "mse_3"} <= set(lines[4])


@pytest.mark.slow
def test_export_holds_the_last_parameters(whole, run):
    config, params = load_checkpoint(whole[1])
    assert config == get_preset(run.model)
    assert set(params) == {"model", "autoencoder"}
    assert load_tokenizer(whole[1] / "tokenizer").fingerprint == load_tokenizer(shapes_folder()).fingerprint


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(run, whole, tmp_path, monkeypatch):
    """Killed after step 6 with step 4 saved, then stopped by SIGTERM after step 10, which saves that step."""
    original, lines = Meter.measure, []
    before = signal.getsignal(signal.SIGTERM)

    def live(last, leave):
        def interrupt(meter, step):
            line = original(meter, step)
            if step == last:
                leave()
            return line

        monkeypatch.setattr(Meter, "measure", interrupt)
        return _train(run, tmp_path, lines.append)

    def lose():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(6, lose)
    with pytest.raises(Stopped, match=r"SIGTERM: saved step 10 of 12 to .*; start again to resume"):
        live(10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before
    export = live(0, lose)
    assert [line for line in lines if "resuming" in line] == ["resuming from step 4", "resuming from step 10"]
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(export)[1], load_checkpoint(whole[1])[1])
    for name in ("metrics.jsonl", "held_out.jsonl"):
        assert _lines(tmp_path, name) == _lines(whole[0], name)


@pytest.mark.slow
def test_extending_a_finished_run_gives_the_bits_of_a_longer_one(run, whole, tmp_path):
    """The steps after the end of the first run's cosine have its last learning rate."""
    shutil.copytree(whole[0], tmp_path / "more")
    longer = dataclasses.replace(run, num_steps=16)
    export = _train(longer, tmp_path / "more", (lines := []).append)
    assert lines[:2] == [
        f"{tmp_path}/more: num_steps is raised from 12 to 16; those after step 12 have the cosine schedule's last "
        "learning rate",
        "resuming from step 12",
    ]
    ended = dataclasses.replace(longer, optimizer=dataclasses.replace(run.optimizer, decay_steps=12))
    expected = _train(ended, tmp_path / "begun")
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(export)[1], load_checkpoint(expected)[1])
    assert _lines(tmp_path / "more") == _lines(tmp_path / "begun")
    assert _lines(tmp_path / "more")[16]["learning_rate"] == pytest.approx(2e-4, rel=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_a_given_checkpoint(run, whole, tmp_path):
    still = dataclasses.replace(run, init=str(whole[1]), num_steps=2, optimizer=OptimizerConfig(learning_rate=0.0))
    lines = []
    export = _train(still, tmp_path, lines.append)
    count = f"{sum(leaf.size for leaf in jax.tree.leaves(load_checkpoint(export)[1]['model'])):,}"
    assert lines[0] == f"{count} of {count} parameters from {whole[1]}, 0 fresh"
    _train(still, tmp_path, lines.append)
    assert lines[-1] == "resuming from step 2"  # before what init says, and the export is up to date
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(export)[1], load_checkpoint(whole[1])[1])


@pytest.mark.slow
def test_fresh_parameters_take_only_the_autoencoder_of_init(run, whole, tmp_path):
    still = dataclasses.replace(
        run, init=str(whole[1]), fresh=True, seed=5, num_steps=1, optimizer=OptimizerConfig(learning_rate=0.0)
    )
    lines = []
    params, init = (load_checkpoint(folder)[1] for folder in (_train(still, tmp_path, lines.append), whole[1]))
    assert re.fullmatch(rf"0 of ([\d,]+) parameters from {whole[1]}, \1 fresh", lines[0])
    jax.tree.map(np.testing.assert_array_equal, params["autoencoder"], init["autoencoder"])
    embeddings = [tree["model"]["language"]["embed"]["embedding"] for tree in (params, init)]
    assert not np.array_equal(*embeddings)


def test_metrics_after_the_restored_step_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    truncate_log(path, 3)
    assert not path.exists()
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    truncate_log(path, 3)
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    wild = dataclasses.replace(run, optimizer=OptimizerConfig(learning_rate=1e30, clip_norm=1e30))
    with pytest.raises(RunError, match=r"step 1: .*param_norm.* not finite; .* records multi_turn-3-\d+,"):
        _train(wild, tmp_path)
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_never_saved(run, tmp_path):
    """Save every step and log none."""
    wild = dataclasses.replace(
        run, optimizer=OptimizerConfig(learning_rate=1e30, clip_norm=1e30), save_every=1, log_every=99
    )
    with pytest.raises(RunError, match="step 1: "):
        _train(wild, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_an_implicit_transfer_in_the_step_loop_raises(run, tmp_path, monkeypatch):
    """The device would wait for the array of a host."""
    monkeypatch.setattr(loop, "jit_step", lambda config: lambda state, batch, **_: jax.jit(jnp.square)(np.ones(3)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        _train(dataclasses.replace(run, held_out=0), tmp_path)


@pytest.mark.slow
def test_pictures_are_sampled_from_the_average(run, tmp_path):
    """Every second step, from the model's whole tree including the frozen tables."""
    drawn = {}

    def draw(step, params):
        drawn[step] = np.array(params["language"]["embed"]["embedding"])
        assert set(params) == set(bagel.spec(get_preset("nano")))

    still = dataclasses.replace(
        run,
        num_steps=4,
        pictures_every=2,
        prompts=("a circle",),
        held_out=0,
        optimizer=OptimizerConfig(learning_rate=1e-3, ema_decay=0.999),
    )
    export = loop.train(still, tmp_path, print, lambda base: draw, jax.devices()[:1])
    assert sorted(drawn) == [2, 4]
    raw = load_checkpoint(export)[1]["model"]["language"]["embed"]["embedding"]
    assert 0 < np.abs(drawn[4] - drawn[2]).max() < 0.1 * np.abs(raw - drawn[4]).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "no such key: steps"),
        ({"optimizer": {"lr": 1.0}}, "no such key: optimizer.lr"),
        ({"num_steps": "many"}, "num_steps"),
        ({"num_steps": 0}, "num_steps is 0, expected at least 1"),
        ({"mesh": (0, 1, 1)}, "mesh"),
        ({"budgets": {"text": 1}}, "vit"),
    ],
)
def test_config_faults_name_the_key(change, message):
    values = {"data": "d", "num_steps": 1, "rows": 1, "budgets": {"text": 1, "vit": 1, "vae": 1}}
    with pytest.raises(RunError, match=message):
        read_run_config(values | change)
