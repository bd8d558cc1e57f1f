"""Batches of packs for training, read by Grain.

The loader's position is one integer, the step: batch s holds packs s * rows .. (s + 1) * rows - 1, of which
each process makes its share. So a run continues from its step alone, with any number of processes, workers
and threads, and sees the same packs.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterator
from typing import SupportsIndex

import grain
import jax
import numpy as np
from absl import flags

from pdgen.config import ModelConfig
from pdgen.data.lengths import length_index, record_name
from pdgen.data.packing import Document, Packer, document_rng
from pdgen.data.records import RecordError, RecordSource
from pdgen.interleave import layout
from pdgen.interleave.layout import Budgets, Layout, Pack
from pdgen.interleave.segments import ConditionDropout, SegmentError, record_segments
from pdgen.interleave.tokenizer import Tokenizer


class LoaderError(ValueError):
    """The loader's settings contradict each other or the machine; the line names the remedy."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What batches are made, and how.

    Attributes:
      rows: packs in a batch over all processes.
      budgets: size of a pack.
      seed: of shuffling, condition dropout and latents.
      dropout: condition dropout.
      balance_texts: see ``layout.lay_out``.
      workers: processes that make batches; 0 makes them in threads of this one.
      threads: in each process.
      prefetch: batches made ahead, in each process.
    """

    rows: int
    budgets: Budgets
    seed: int = 0
    dropout: ConditionDropout = dataclasses.field(default_factory=ConditionDropout)
    balance_texts: bool = False
    workers: int = 0
    threads: int = 4
    prefetch: int = 8


class Batches:
    """Random access to one process's part of every batch: ``batches[step]``, a ``Pack`` of [rows, ...].

    Args:
      config: sizes of the model.
      source: the records.
      tokenizer: the model's.
      settings: what batches to make.
      process: (index, count) of this process; it makes rows [index, index + 1) * rows / count of a batch.
      steps: the length, a bound for Grain.

    Raises:
      LoaderError: the rows cannot be shared equally among the processes.
      PackingError: a record does not fit into a pack.
      RecordError: a record is broken or does not suit the model; on access as well.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: RecordSource,
        tokenizer: Tokenizer,
        settings: LoaderConfig,
        process: tuple[int, int] = (0, 1),
        steps: int = sys.maxsize,
    ) -> None:
        index, count = process
        if settings.rows < 1 or settings.rows % count:
            raise LoaderError(f"{settings.rows} rows cannot be shared equally by {count} processes; "
                              f"set rows to a multiple of {count}")  # fmt: skip
        self._config, self._source, self._tokenizer, self._settings = config, source, tokenizer, settings
        self._rows = range(index * settings.rows // count, (index + 1) * settings.rows // count)
        self._steps = steps
        lengths = length_index(source, tokenizer, config)
        self.packer = Packer(lengths, settings.budgets, settings.dropout, settings.seed)

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"Batches({self._source!r}, {self._settings})"

    def __getitem__(self, step: SupportsIndex) -> Pack:
        first = step.__index__() * self._settings.rows
        return layout.stack([self.pack(first + row) for row in self._rows])

    def pack(self, number: int) -> Pack:
        """Pack ``number`` of the run."""
        layouts = [self.lay_out(document) for document in self.packer.documents(number)]
        return layout.assemble(layouts, self._settings.budgets, number)

    def lay_out(self, document: Document) -> Layout:
        """One document after condition dropout, with sampled latents."""
        rng = document_rng(self._settings.seed, document)
        try:
            record = self._source[document.record]
            segments = record_segments(record, self._tokenizer, self._config, rng, self._settings.dropout)
        except SegmentError as fault:
            raise RecordError(f"{record_name(self._source, document.record)}: {fault}") from None
        laid_out = layout.lay_out(segments, self._tokenizer, self._config, self._settings.balance_texts)
        if laid_out.lengths != tuple(self.packer.lengths(document)):
            raise RecordError(f"{record_name(self._source, document.record)}: is not the record whose tokens "
                              "were counted; start again and leave the data alone")  # fmt: skip
        return laid_out


def loader(
    config: ModelConfig,
    source: RecordSource,
    tokenizer: Tokenizer,
    settings: LoaderConfig,
    start_step: int = 0,
    stop_step: int | None = None,
) -> Iterator[Pack]:
    """This process's part of the batches of steps [start_step, stop_step), made ahead of use.

    Args:
      config, source, tokenizer, settings: see ``Batches``.
      start_step: the first batch's number; the whole position.
      stop_step: None goes on for ever.

    Returns:
      An iterator of ``Pack`` with leading axis rows / process count, in host memory.

    Raises:
      LoaderError: see ``Batches``; or worker processes are asked for before absl's flags are parsed.
      PackingError, RecordError: see ``Batches``; a broken record stops the iteration, workers or not.
    """
    if settings.workers and not flags.FLAGS.is_parsed():
        raise LoaderError("workers need parsed absl flags: run under absl.app, call "
                          "absl.flags.FLAGS.mark_as_parsed(), or set workers to 0")  # fmt: skip
    steps = sys.maxsize if stop_step is None else stop_step
    process = jax.process_index(), jax.process_count()
    batches = Batches(config, source, tokenizer, settings, process, steps)
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch)
    dataset = grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options)
    if settings.workers:
        workers = grain.MultiprocessingOptions(num_workers=settings.workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_leave_with_parent).map(_own)
    return iter(dataset)


def _own(batch: Pack) -> Pack:
    """A copy out of the shared memory in which a worker hands over its batch, so that it is freed at once."""
    return jax.tree.map(np.array, batch)


def _leave_with_parent(worker: int, count: int) -> None:
    """Ends this worker process when its parent is gone, even by SIGKILL, which Grain does not notice."""
    del worker, count
    parent = multiprocessing.parent_process()

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
