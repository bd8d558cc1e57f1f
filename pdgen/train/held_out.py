"""Losses on records that are never trained on, beside those of predictors that know nothing of the sequence.

The same packs, noise and timesteps every time, nothing dropped: only the parameters differ from line to line.

unigram_ce      cross-entropy of the training texts' token frequencies
constant_mse    squared error of the best constant velocity: minus the training images' mean in each latent channel
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from pdgen.data.lengths import locate_record
from pdgen.data.loader import Batches
from pdgen.data.packing import Document, plan_packs
from pdgen.data.records import RecordError
from pdgen.flow.rectified import velocity_target
from pdgen.sequence.layout import Pack, stack
from pdgen.sequence.segments import list_turns, loss_targets, patched_latents
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.sharding import RULES, out_spec
from pdgen.train.loss import LossSums, draw_flow_inputs, loss_sums, no_loss
from pdgen.train.monitor.metrics import loss_metrics, present
from pdgen.train.state import Params, StepConfig, TrainState, model_params

SEED = 1  # folded into the run's key
SAMPLE = 2048  # training records, evenly spread, from which the simple predictors are made


class Simple(NamedTuple):
    """What the simple predictors know: -log p of every token id [N], float32, and a velocity [C]."""

    surprise: Float[Any, " N"]
    velocity: Float[Any, " C"]


class Sums(NamedTuple):
    """Over the held-out packs: the model's sums, and those of both simple predictors."""

    losses: LossSums
    unigram: Array
    constant: Array


class HeldOut:
    """Evaluates the held-out packs of a run, which are kept in host memory.

    Args:
      config: what is static in the run's steps.
      batches: of the run.
      key: the run's.
      mesh: of the run.
    """

    def __init__(self, config: StepConfig, batches: Batches, key: Array, mesh: Mesh) -> None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._ce_weight, self._sharding = config.ce_weight, NamedSharding(mesh, RULES.spec("batch"))
        self._packs = list(own_packs(batches, config.accumulate, (jax.process_index(), jax.process_count())))
        self._simple = jax.device_put(simple_predictors(batches), everywhere)
        self._key = jax.jit(lambda key: jax.random.fold_in(key, SEED))(key)
        self._nothing = jax.jit(lambda: Sums(no_loss(), jnp.zeros(()), jnp.zeros(())), out_shardings=everywhere)
        self._add = jax.jit(functools.partial(_add, config), donate_argnums=0)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Losses of the raw parameters as in ``pdgen.train.monitor.metrics``, ``unigram_ce`` and ``constant_mse``."""
        sums = self._nothing()
        for pack in self._packs:
            rows = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._sharding, leaf), pack)
            sums = self._add(sums, state.trained, state.frozen, rows, self._simple, self._key)
        sums = jax.device_get(sums)
        losses = loss_metrics(sums.losses, self._ce_weight)
        line = present({name: float(value) for name, value in losses.items()})
        for name, total, targets in (
            ("unigram_ce", sums.unigram, "ce_targets"),
            ("constant_mse", sums.constant, "mse_targets"),
        ):
            line |= {name: float(total) / line[targets]} if targets in line else {}
        return line


def _add(
    config: StepConfig, sums: Sums, trained: Params, frozen: Params, pack: Pack, simple: Simple, key: Array
) -> Sums:
    flow = draw_flow_inputs(config.model, pack, key)
    losses = loss_sums(config.model, config.compute, model_params(config, trained, frozen), pack, flow)
    surprise = simple.surprise.at[pack.text_targets].get(out_sharding=out_spec("batch", None))
    error = velocity_target(pack.vae_latents, flow.noise) - simple.velocity
    return Sums(
        jax.tree.map(jnp.add, sums.losses, losses),
        sums.unigram + jnp.sum(surprise * pack.text_weights),
        sums.constant + jnp.sum(jnp.mean(error * error, axis=-1) * pack.vae_weights),
    )


def held_out_documents(batches: Batches) -> list[list[Document]]:
    """The held-out documents by pack, nothing dropped, each once."""
    table = batches.documents
    documents = [
        Document(0, n, int(table.record[n]), (int(table.first[n]), int(table.stop[n])), (True,) * int(units))
        for n, units in zip(batches.held_out.tolist(), np.diff(table.starts)[batches.held_out])
    ]
    lengths = np.array([batches.packer.count_tokens(document) for document in documents], np.int32)
    budgets = batches.settings.budgets
    numbers = plan_packs(lengths[None], np.array([budgets.text, budgets.vit, budgets.vae]))[0]
    return [[documents[i] for i in np.flatnonzero(numbers == pack)] for pack in range(numbers.max() + 1)]


def own_packs(batches: Batches, accumulate: int, process: tuple[int, int]) -> Iterator[Pack]:
    """One process's rows of the held-out batches, each as large as a micro-batch; the last one is padded.

    Args:
      batches: of the run.
      accumulate: of the run.
      process: (index, count).

    Raises:
      RecordError: a record is broken and ``broken`` is "stop".
    """
    packs, rows = held_out_documents(batches), batches.settings.rows // accumulate
    index, count = process
    for first in range(0, len(packs), rows):
        made = []
        for number in range(first + index * rows // count, first + (index + 1) * rows // count):
            layouts, broken = batches.lay_out_all(packs[number] if number < len(packs) else [])
            made.append(batches.assemble(layouts, number))
            for record in broken:
                logging.warning("%s: broken, left out of the held-out records", locate_record(batches.source, record))
        yield stack(made)


def simple_predictors(batches: Batches) -> Simple:
    """Token frequencies, one added to each, and the mean latent of the records that are trained on."""
    config = batches.config
    documents = np.concatenate([batches.subsets[name] for name in batches.packer.stream.shares])
    records = np.unique(batches.documents.record[documents])
    chosen = records[np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).astype(int)]
    counts = np.ones(config.language.vocab_size)
    total, tokens = np.zeros(config.latent_dim), 0
    for number in tqdm(chosen.tolist(), desc="token frequencies", unit="record", leave=False, delay=5):
        try:
            record = batches.source[number]
        except RecordError:  # known as broken only now; the loader says so when it meets it
            if batches.settings.broken == "stop":
                raise
            continue
        counts += np.bincount(text_targets(record, batches.tokenizer), minlength=len(counts))
        for segment in record.segments:
            if isinstance(segment, Image) and segment.target:
                latents = patched_latents(segment, config, None, record.id)
                total, tokens = total + latents.sum(axis=0), tokens + len(latents)
    channels = (total / max(tokens, 1)).reshape(config.latent_patch_size**2, -1).mean(axis=0)
    velocity = -np.tile(channels, config.latent_patch_size**2)  # of noise, whose mean is 0, minus image
    return Simple((np.log(counts.sum()) - np.log(counts)).astype(np.float32), velocity.astype(np.float32))


def text_targets(record: Record, tokenizer: Tokenizer) -> list[int]:
    """Every token that a record's texts and switches teach, in order."""
    ids = []
    for segment, target, switch in zip(record.segments, *loss_targets(record, tokenizer, 0, len(list_turns(record)))):
        if target and isinstance(segment, Text):
            ids += [*tokenizer.encode(segment.text), tokenizer.im_end]
        ids += [] if switch is None else [switch]
    return ids
