"""Held-out records are never trained on, and their losses are compared with those of fitted baselines."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_NANO, ComputeConfig
from pdgen.data.loader import Batches, LoaderConfig, LoaderError, select_held_out
from pdgen.data.packing import Document
from pdgen.data.records import Origin, RecordSource, write_dataset
from pdgen.sequence.layout import Budgets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image
from pdgen.sharding import make_mesh
from pdgen.train import held_out as module
from pdgen.train.held_out import HeldOutEvaluator, fit_baselines, local_packs, pack_held_out
from pdgen.train.objectives import objective
from pdgen.train.objectives.loss import draw_flow_inputs, zero_loss_sums
from pdgen.train.optimizer import OptimizerConfig
from pdgen.train.state import StepConfig, TrainState
from tests.data.small_records import records

HELD = 6
BUDGETS = Budgets(512, 128, 352)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, records(20), Origin(seed=0))
    settings = LoaderConfig(rows=2, budgets=BUDGETS, held_out=HELD)
    return Batches(SHAPES_NANO, RecordSource(folder), load_tokenizer(shapes_folder()), settings)


@pytest.mark.parametrize(
    ("mixture", "count", "expected"),
    [
        ({}, 0, []),
        ({}, 3, [8, 9, 13]),  # two of ten, one of five
        ({"b": 1.0, "a": 0.0}, 2, [12, 13]),
        ({"a": 2.0, "b": 1.0}, 13, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13]),  # each keeps at least one
    ],
)
def test_the_last_records_of_every_subset(mixture, count, expected):
    subsets = {"a": [range(4), range(4, 10)], "b": [range(10, 14)]}
    assert select_held_out(subsets, mixture, count).tolist() == expected


def test_all_records_cannot_be_held_out():
    with pytest.raises(LoaderError, match="held_out is 4, but the subsets in the mixture hold 4 records"):
        select_held_out({"a": [range(9)], "b": [range(9, 13)]}, {"a": 0.0, "b": 1.0}, 4)


def test_held_out_records_are_in_no_batch(batches):
    """Over several epochs; every other record is in some batch."""
    ids = [batches.source[number].id for number in range(20)]
    trained = {name for step in range(20) for name in batches.list_record_ids(step)}
    assert trained == set(ids[:-HELD])


def test_record_ids_are_the_batch_s(batches):
    """Of both rows, in order, as ``launch/show.py pack`` reads them from the packer."""
    expected = [batches.source[document.record].id for n in (6, 7) for document in batches.packer.choose_documents(n)]
    assert batches.list_record_ids(3) == expected


def test_every_held_out_document_once_and_whole(batches):
    packs = pack_held_out(batches)
    documents = [document for pack in packs for document in pack]
    assert sorted(document.record for document in documents) == list(range(20 - HELD, 20))
    assert all(all(document.keep) for document in documents)
    for pack in packs:
        assert (sum(batches.packer.count_tokens(document) for document in pack) <= [512, 128, 352]).all()


def test_processes_share_the_rows(batches):
    """The rows of two processes are those of one; rows after the last pack are padding."""
    whole = list(local_packs(batches, 1, (0, 1)))
    halves = zip(local_packs(batches, 1, (0, 2)), local_packs(batches, 1, (1, 2)))
    for batch, parts in zip(whole, halves, strict=True):
        for leaf, *rows in zip(jax.tree.leaves(batch), *map(jax.tree.leaves, parts), strict=True):
            np.testing.assert_array_equal(leaf, np.concatenate(rows))
    count = len(pack_held_out(batches))
    filled = [bool(row.any()) for batch in whole for row in batch.k_end]
    assert filled == [True] * count + [False] * (count % 2)
    assert len(list(local_packs(batches, 2, (0, 1)))) == count  # of one row each


@pytest.fixture(scope="module")
def training_layouts(batches):
    table = batches.documents
    numbers = np.setdiff1d(np.arange(len(table)), batches.held_out)
    units = np.diff(table.starts)
    documents = [
        Document(0, int(n), int(table.record[n]), (int(table.first[n]), int(table.stop[n])), (True,) * int(units[n]))
        for n in numbers
    ]
    return [batches.lay_out(document) for document in documents]


def test_token_frequencies(batches, training_layouts):
    """Compared with counts of the laid-out training documents."""
    targets = np.concatenate([made.text_targets[made.text_weights > 0] for made in training_layouts])
    counts = 1 + np.bincount(targets, minlength=512)
    baselines = fit_baselines(batches)
    np.testing.assert_allclose(baselines.unigram_nll, -np.log(counts / counts.sum()), rtol=1e-5)
    np.testing.assert_allclose(np.exp(-baselines.unigram_nll).sum(), 1, rtol=1e-5)


def test_the_best_constant_velocity(batches):
    """Minus the scaled mean of each latent channel over the target images, repeated for the four values of a patch."""
    means = [
        np.frombuffer(segment.latent_mean, np.float16).reshape(-1, 16).astype(np.float64)
        for number in range(20 - HELD)
        for segment in batches.source[number].segments
        if isinstance(segment, Image) and segment.target
    ]
    autoencoder = SHAPES_NANO.autoencoder
    mean = autoencoder.scale_factor * (np.concatenate(means).mean(axis=0) - autoencoder.shift_factor)
    np.testing.assert_allclose(fit_baselines(batches).velocity.reshape(4, 16), -np.tile(mean, (4, 1)), rtol=1e-4)


def test_the_losses_of_the_baselines(batches, monkeypatch):
    """Compared with numpy, from the packs and their noise; the model itself is replaced."""
    monkeypatch.setattr(
        objective,
        "loss_sums",
        lambda *_: zero_loss_sums()._replace(
            ce_weight=jax.numpy.float32([2, 0, 0, 0, 0, 0]), mse_count=jax.numpy.float32([0, 4, 0, 0])
        ),
    )
    config = StepConfig(SHAPES_NANO, ComputeConfig(), OptimizerConfig(), num_steps=9)
    mesh, key = make_mesh((1, 2, 1), jax.devices()[:2]), jax.random.key(5)
    with jax.set_mesh(mesh):
        key = jax.device_put(key, jax.NamedSharding(mesh, PartitionSpec()))
        held_out = HeldOutEvaluator(config, batches, key, mesh)
        first, second = (held_out(TrainState(0, {}, {}, (), {}, {})) for _ in range(2))
    assert first == second
    baselines, packs = fit_baselines(batches), list(local_packs(batches, 1, (0, 1)))
    draw = jax.jit(functools.partial(draw_flow_inputs, SHAPES_NANO))
    unigram = constant = 0.0
    for pack in packs:
        unigram += (baselines.unigram_nll[pack.text_targets] * pack.text_weights).sum()
        noise = np.asarray(draw(pack, jax.random.fold_in(jax.random.key(5), module.SEED)).noise, np.float64)
        error = np.square(noise - pack.vae_latents - baselines.velocity).mean(axis=-1)
        constant += (error * pack.vae_weights).sum()
    np.testing.assert_allclose(first["unigram_ce"], unigram / (2 * len(packs)), rtol=1e-5)
    np.testing.assert_allclose(first["constant_mse"], constant / (4 * len(packs)), rtol=1e-5)
    assert {"ce_plan_targets", "mse_1_targets"} < set(first) and not {"ce_switch", "mse_0"} & set(first)
