"""A run on pairs from a shipped model: it prefers what it is shown, and resumes with the same bits."""

import dataclasses
import json

import jax
import msgspec
import numpy as np
import PIL.ImageOps
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints.pdgen_checkpoint import load_checkpoint
from pdgen.data.latents import add_latents
from pdgen.data.records import Origin, write_dataset
from pdgen.sequence.images import decode_image, encode_png
from pdgen.sequence.layout import Budgets
from pdgen.sequence.pairs import make_pair
from pdgen.sequence.segments import NO_DROPOUT
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Text
from pdgen.train import loop
from pdgen.train.lora import LoraConfig
from pdgen.train.monitor.meter import TIMING_METRICS, Meter
from pdgen.train.objectives.preference import PreferenceConfig
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.run_config import RunConfig
from tests.support.shapes_records import trajectories


def _moments(pictures):
    """Moments of the right shape that depend on the picture: no autoencoder to compile."""
    mean = np.tile(pictures[:, ::8, ::8].astype(np.float32) / 255, 6)[..., :16]
    return mean, np.full_like(mean, -6)


def _pairs(count):
    """Trajectories, better than with the last picture upside down and a further sentence after it."""
    made = []
    for record in trajectories(count, seed=3, fault_rate=0.0):
        *before, drawn, last = record.segments
        assert isinstance(drawn, Image) and isinstance(last, Text)
        turned = msgspec.structs.replace(drawn, png=encode_png(PIL.ImageOps.flip(decode_image(drawn.png))))
        longer = msgspec.structs.replace(last, text=last.text + " Nothing else is to be said about it.")
        worse = msgspec.structs.replace(record, segments=[*before, turned, longer])
        made += make_pair(record.id, record, worse)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    origin = Origin(seed=3, tokenizer=load_tokenizer(shapes_folder()).fingerprint)
    write_dataset(folder, add_latents(_pairs(12), _moments), origin)
    return RunConfig(
        data=str(folder),
        init="shapes_base",
        model="",
        num_steps=6,
        rows=1,
        budgets=Budgets(900, 192, 384),
        mesh=(1, 1, 1),
        save_every=3,
        log_every=1,
        held_out=4,
        held_out_every=3,
        turns="pairs",
        dropout=NO_DROPOUT,
        preference=PreferenceConfig(beta=0.1),
        optimizer=OptimizerConfig(learning_rate=3e-5, schedule="constant", warmup_steps=1),
    )


def _train(run, workdir):
    return loop.train(run, workdir, lambda line: None, devices=jax.devices()[:1])


def _lines(workdir, name="metrics.jsonl"):
    rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING_METRICS} for row in rows]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, _train(run, workdir)


@pytest.mark.slow
def test_it_begins_at_the_reference_and_learns_the_preference(whole):
    lines = _lines(whole[0])
    first, last = lines[0], lines[-1]
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-3)
    assert abs(first["margin"]) < 1e-2 and first["text_kl"] < 1e-6 and first["flow_kl"] < 1e-6
    assert last["loss"] < first["loss"] - 0.05 and last["pair_accuracy"] == 1
    assert last["text_kl"] > 0 and last["flow_kl"] > 0 and first["better_length"] < first["worse_length"]
    held_out = _lines(whole[0], "held_out.jsonl")
    assert [line["step"] for line in held_out] == [3, 6]
    assert held_out[-1]["pairs"] == 2 and held_out[-1]["pair_accuracy"] == 1
    assert held_out[-1]["loss"] < held_out[0]["loss"] < np.log(2)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(run, whole, tmp_path, monkeypatch):
    """Killed after step 4 with step 3 saved: the reference is that of the first start, not the saved parameters."""
    original = Meter.measure

    def interrupt(meter, step):
        if step == 4:
            raise KeyboardInterrupt
        return original(meter, step)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _train(run, tmp_path)
    export = _train(run, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(export)[1], load_checkpoint(whole[1])[1])
    for name in ("metrics.jsonl", "held_out.jsonl"):
        assert _lines(tmp_path, name) == _lines(whole[0], name)


@pytest.mark.slow
def test_adapters_learn_it_too_in_two_micro_batches(run, tmp_path):
    """Their reference is the base under them; the first margin is 0, as new adapters change nothing."""
    adapted = dataclasses.replace(
        run, rows=2, accumulate=2, num_steps=4, held_out=0, lora=LoraConfig(rank=4, alpha=16.0)
    )
    adapted = dataclasses.replace(adapted, optimizer=dataclasses.replace(run.optimizer, learning_rate=1e-3))
    _train(adapted, tmp_path)
    lines = _lines(tmp_path)
    np.testing.assert_allclose(lines[0]["loss"], np.log(2), rtol=1e-3)
    assert lines[-1]["loss"] < np.log(2) - 0.01
