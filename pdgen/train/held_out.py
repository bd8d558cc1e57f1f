"""Losses on held-out records, beside those of two baselines that ignore the sequence.

Every evaluation uses the same packs, noise and timesteps, without condition dropout, so only the parameters differ.

unigram_ce      cross-entropy of a unigram model: the token frequencies of the training texts
constant_mse    squared error of the best constant velocity: minus the training images' mean in each latent channel
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from pdgen.data.lengths import locate_record
from pdgen.data.loader import Batches
from pdgen.data.packing import Document, plan_packs
from pdgen.data.records import RecordError
from pdgen.flow.rectified import velocity_target
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.layout import Pack, stack
from pdgen.sequence.segments import list_turns, loss_targets, patched_latents
from pdgen.sequence.tokenizer import Tokenizer
from pdgen.sequence.trajectory import Image, Record, Text
from pdgen.sharding import RULES, out_spec
from pdgen.train.monitor.metrics import drop_absent
from pdgen.train.objectives.loss import draw_flow_inputs
from pdgen.train.objectives.objective import make_objective
from pdgen.train.state import Params, StepConfig, TrainState, attach_params

SEED = 1  # folded into the run's key
BASELINE_RECORDS = 2048  # number of training records, evenly spread, that the baselines are fitted to


class Baselines(NamedTuple):
    """Predictors that ignore the sequence, float32.

    Attributes:
      unigram_nll: -log p of every token id, N ids.
      velocity: the best constant velocity, C values of a VAE token.
    """

    unigram_nll: Float[Any, " N"]
    velocity: Float[Any, " C"]


class HeldOutSums(NamedTuple):
    """Sums over the held-out packs: those of the run's objective, and of both baselines [], float32."""

    losses: Any
    unigram: Array
    constant: Array


class HeldOutEvaluator:
    """Evaluates a run's parameters on its held-out packs, which stay in host memory."""

    def __init__(
        self,
        config: StepConfig,
        batches: Batches,
        key: PRNGKeyArray,
        mesh: Mesh,
        reference: Params | None = None,
    ) -> None:
        replicated = NamedSharding(mesh, PartitionSpec())
        self._sharding = NamedSharding(mesh, RULES.spec("batch"))
        self._packs = list(local_packs(batches, config.accumulate, (jax.process_index(), jax.process_count())))
        self._baselines = jax.device_put(fit_baselines(batches), replicated)
        self._key = jax.jit(lambda key: jax.random.fold_in(key, SEED))(key)
        self._reference = reference
        objective = make_objective(config)
        self._init_sums = jax.jit(functools.partial(_init_sums, objective.zeros), out_shardings=replicated)
        self._add_pack = jax.jit(functools.partial(_add_pack, config), donate_argnums=0)
        self._metrics = jax.jit(objective.metrics)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Return losses of the raw parameters, named as in ``pdgen.train.monitor.metrics``, and of the baselines."""
        sums = self._init_sums()
        for pack in self._packs:
            rows = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._sharding, leaf), pack)
            sums = self._add_pack(sums, state.trained, state.frozen, rows, self._baselines, self._key, self._reference)
        losses = jax.device_get(self._metrics(sums.losses))
        line = drop_absent({name: float(value) for name, value in losses.items()})
        for name, total, targets in (
            ("unigram_ce", sums.unigram, "ce_targets"),
            ("constant_mse", sums.constant, "mse_targets"),
        ):
            line |= {name: float(total) / line[targets]} if targets in line else {}
        return line


def _init_sums(zeros: Callable[[], Any]) -> HeldOutSums:
    return HeldOutSums(zeros(), jnp.zeros(()), jnp.zeros(()))


def _add_pack(
    config: StepConfig,
    sums: HeldOutSums,
    trained: Params,
    frozen: Params,
    pack: Pack,
    baselines: Baselines,
    key: PRNGKeyArray,
    reference: Params | None,
) -> HeldOutSums:
    params = attach_params(config, trained, frozen)
    losses = make_objective(config).measure(params, frozen if reference is None else reference, pack, key)
    flow = draw_flow_inputs(config.model, pack, key)
    unigram_nll = baselines.unigram_nll.at[pack.text_targets].get(out_sharding=out_spec("batch", None))
    error = velocity_target(pack.vae_latents, flow.noise) - baselines.velocity
    return HeldOutSums(
        jax.tree.map(jnp.add, sums.losses, losses),
        sums.unigram + jnp.sum(unigram_nll * pack.text_weights),
        sums.constant + jnp.sum(jnp.mean(error * error, axis=-1) * pack.vae_weights),
    )


def pack_held_out(batches: Batches) -> list[list[Document]]:
    """Distribute the held-out documents over packs, each document once and without condition dropout."""
    table = batches.documents
    documents = [
        Document(0, n, int(table.record[n]), (int(table.first[n]), int(table.stop[n])), (True,) * int(units))
        for n, units in zip(batches.held_out.tolist(), np.diff(table.starts)[batches.held_out])
    ]
    lengths = np.array([batches.packer.count_tokens(document) for document in documents], np.int32)
    budgets = batches.settings.budgets
    numbers = plan_packs(lengths[None], np.array([budgets.text, budgets.vit, budgets.vae]))[0]
    return [[documents[i] for i in np.flatnonzero(numbers == pack)] for pack in range(numbers.max() + 1)]


def local_packs(batches: Batches, accumulate: int, process: tuple[int, int]) -> Iterator[Pack]:
    """Yield one process's rows of the held-out batches, each the size of a micro-batch; the last one is padded.

    Args:
      batches: the run's batches.
      accumulate: number of micro-batches of a training step.
      process: (index, count) of the process.

    Raises:
      RecordError: a record is broken and ``broken`` is "stop".
    """
    packs, rows = pack_held_out(batches), batches.settings.rows // accumulate
    index, count = process
    for first in range(0, len(packs), rows):
        local = []
        for number in range(first + index * rows // count, first + (index + 1) * rows // count):
            layouts, broken = batches.lay_out_all(packs[number] if number < len(packs) else [])
            local.append(batches.assemble(layouts, number))
            for record in broken:
                logging.warning("%s: broken, left out of the held-out records", locate_record(batches.source, record))
        yield stack(local)


def fit_baselines(batches: Batches) -> Baselines:
    """Fit both baselines to training records: token counts with add-one smoothing, and the mean latent."""
    config = batches.config
    documents = np.concatenate([batches.subsets[name] for name in batches.packer.stream.shares])
    records = np.unique(batches.documents.record[documents])
    sample = records[np.linspace(0, len(records) - 1, min(BASELINE_RECORDS, len(records))).astype(int)]
    counts = np.ones(config.language.vocab_size)
    total, tokens = np.zeros(config.latent_dim), 0
    for number in ProgressBar(sample.tolist(), desc="token frequencies", unit="record", leave=False, delay=5):
        try:
            record = batches.source[number]
        except RecordError:  # the loader reports it when it reads it
            if batches.settings.broken == "stop":
                raise
            continue
        counts += np.bincount(list_text_targets(record, batches.tokenizer), minlength=len(counts))
        for segment in record.segments:
            if isinstance(segment, Image) and segment.target:
                latents = patched_latents(segment, config, None, record.id)
                total, tokens = total + latents.sum(axis=0), tokens + len(latents)
    channels = (total / max(tokens, 1)).reshape(config.latent_patch_size**2, -1).mean(axis=0)
    velocity = -np.tile(channels, config.latent_patch_size**2)  # noise - image, and the noise has mean 0
    return Baselines((np.log(counts.sum()) - np.log(counts)).astype(np.float32), velocity.astype(np.float32))


def list_text_targets(record: Record, tokenizer: Tokenizer) -> list[int]:
    """Return all target tokens of a record's texts and switches, in order."""
    ids = []
    for segment, target, switch in zip(record.segments, *loss_targets(record, tokenizer, 0, len(list_turns(record)))):
        if target and isinstance(segment, Text):
            ids += [*tokenizer.encode(segment.text), tokenizer.im_end]
        ids += [] if switch is None else [switch]
    return ids
