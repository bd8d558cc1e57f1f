"""Batches of packs for training, read by Grain.

The loader's only state is the step: batch s consists of packs s * rows .. (s + 1) * rows - 1, and each process makes
its share. A run can therefore resume at any step, with any number of processes, workers and threads, and sees the same
packs.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, SupportsIndex

import grain
import jax
import numpy as np
from absl import flags, logging
from jaxtyping import Int64

from pdgen.config import ModelConfig
from pdgen.data.documents import Documents, TooLong, Turns, make_documents
from pdgen.data.lengths import Broken, load_length_index, locate_record
from pdgen.data.packing import Document, Packer, make_document_rng
from pdgen.data.records import RecordError, RecordSource
from pdgen.sequence import layout
from pdgen.sequence.layout import Budgets, Layout, Pack
from pdgen.sequence.segments import ChangedError, ConditionDropout, SegmentError, record_segments
from pdgen.sequence.tokenizer import Tokenizer


class LoaderError(ValueError):
    """Settings that contradict each other, the machine or the data. The message is one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """The composition of batches, and how they are made.

    Attributes:
      rows: packs in a batch over all processes.
      budgets: size of a pack.
      seed: seed of shuffling, condition dropout and latents.
      dropout: condition dropout.
      mixture: weight of each subset by documents; 0 excludes it. Empty: in proportion to the numbers of documents.
      turns: "whole": one document per trajectory. "single": one document per turn with targets, with everything before
        it as context. "pairs": one document per pair of records, see ``data.documents``.
      too_long: for documents that exceed a pack, "refuse" stops before training, and "cut" drops as few of their
        last turns as possible.
      broken: for broken records, "stop" stops the run, and "skip" leaves them out and counts them.
      balance_texts: see ``layout.lay_out``.
      draws: noised copies of each image with a flow target, each with its own noise and timestep. They share the
        context, which lowers the cost per image. The paper uses 1.
      held_out: records that are in no pack: the last ones of each subset in the mixture, in proportion to its size.
      workers: processes that make batches; 0 uses threads of this process.
      threads: threads in each process.
      prefetch: batches made ahead in each process.
    """

    rows: int
    budgets: Budgets
    seed: int = 0
    dropout: ConditionDropout = dataclasses.field(default_factory=ConditionDropout)
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)
    turns: Turns = "whole"
    too_long: TooLong = "refuse"
    broken: Broken = "stop"
    balance_texts: bool = False
    draws: int = 1
    held_out: int = 0
    workers: int = 0
    threads: int = 4
    prefetch: int = 8


class LoaderBatch(NamedTuple):
    """One process's part of a batch: packs [rows, ...], and the numbers of broken records that were left out."""

    pack: Pack
    skipped: Int64[np.ndarray, " skipped"]


def group_by_subset(source: RecordSource, documents: Documents) -> dict[str, Int64[np.ndarray, " documents"]]:
    """Return the document numbers of each subset."""
    return {
        name: np.concatenate([np.arange(*np.searchsorted(documents.record, (r.start, r.stop))) for r in ranges])
        for name, ranges in source.subsets.items()
    }


def select_held_out(
    subsets: Mapping[str, Sequence[range]], mixture: Mapping[str, float], count: int
) -> Int64[np.ndarray, " count"]:
    """Select ``count`` record numbers to hold out, ascending. Fewer are selected if a subset would become empty.

    Args:
      subsets: record ranges of each subset.
      mixture: see ``LoaderConfig``; no record of a subset with weight 0 is selected.

    Raises:
      LoaderError: no record would be left for training.
    """
    own = [
        np.concatenate([np.arange(r.start, r.stop) for r in ranges])
        for name, ranges in subsets.items()
        if not mixture or mixture.get(name, 0) > 0
    ]
    ends = np.cumsum([0, *map(len, own)])
    if count and count >= ends[-1]:
        raise LoaderError(
            f"config: held_out is {count}, but the subsets in the mixture hold {ends[-1]} records; set it to less, a "
            "few hundred at most"
        )
    shares = np.minimum(np.diff(ends * count // max(ends[-1], 1)), np.diff(ends) - 1)
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(n[len(n) - share :] for n, share in zip(own, shares))]))


class Batches:
    """Random access to one process's part of every batch: ``batches[step]``.

    Args:
      config, tokenizer: those of the model.
      source, settings: the records and the composition of batches.
      process: (index, count) of this process, which makes rows [index, index + 1) * rows / count of a batch.
      steps: number of batches, which Grain requires.

    Attributes:
      held_out: numbers of the documents that are in no batch.
      subsets: numbers of the other documents by subset.

    Raises:
      LoaderError: the rows cannot be divided equally among the processes, or no document is left for training.
      PackingError: a record does not fit into a pack, or the mixture does not match the data set.
      RecordError: a record is broken or does not fit the model; also raised on access.
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
            raise LoaderError(
                f"{settings.rows} rows cannot be shared equally by {count} processes; set rows to a multiple of {count}"
            )
        self.config, self.source, self.tokenizer, self.settings = config, source, tokenizer, settings
        self._rows = range(index * settings.rows // count, (index + 1) * settings.rows // count)
        self._steps = steps
        self.index = load_length_index(source, tokenizer, config, settings.broken, settings.draws)
        self.documents = make_documents(self.index, settings.budgets, settings.turns, settings.too_long)
        held_out = select_held_out(source.subsets, settings.mixture, settings.held_out)
        held = np.isin(self.documents.record, held_out)
        self.held_out = np.flatnonzero(held)
        if settings.held_out and not held.any():
            raise LoaderError(
                f"config: held_out is {settings.held_out}, but the last records are broken or teach nothing; "
                "hold out more"
            )
        self.subsets = {name: n[~held[n]] for name, n in group_by_subset(source, self.documents).items()}
        self.packer = Packer(
            self.documents, self.subsets, settings.budgets, settings.dropout, settings.seed, settings.mixture
        )

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"Batches({self.source!r}, {self.settings})"

    def __getitem__(self, index: SupportsIndex) -> LoaderBatch:
        first = index.__index__() * self.settings.rows
        rows = [self.lay_out_pack(first + row) for row in self._rows]
        packs = [self.assemble(made, first + row) for row, (made, _) in zip(self._rows, rows)]
        return LoaderBatch(layout.stack(packs), np.array([n for _, skipped in rows for n in skipped], np.int64))

    def make_pack(self, number: int) -> Pack:
        """Make pack ``number`` of the run."""
        return self.assemble(self.lay_out_pack(number)[0], number)

    def lay_out_pack(self, number: int) -> tuple[list[Layout], list[int]]:
        """Lay out the documents of pack ``number``. Returns them and the numbers of broken records left out."""
        return self.lay_out_all(self.packer.choose_documents(number))

    def lay_out_all(self, documents: Iterable[Document]) -> tuple[list[Layout], list[int]]:
        """Lay out documents. Returns them and the numbers of broken records left out."""
        made, skipped = [], []
        for document in documents:
            try:
                made += self._lay_out_sides(document)
            except RecordError:
                if self.settings.broken == "stop":
                    raise
                skipped.append(document.record)
        return made, skipped

    def list_sides(self, document: Document) -> list[Document]:
        """Return the documents of both sides of a pair; any other document alone."""
        if self.settings.turns != "pairs":
            return [document]
        units, turns = np.diff(self.index.starts), np.diff(self.index.turn_starts)
        cut, better, worse = int(units[document.record]), document.record, document.record + 1
        return [
            document._replace(record=record, turns=(0, int(turns[record])), keep=keep)
            for record, keep in ((better, document.keep[:cut]), (worse, document.keep[cut:]))
        ]

    def _lay_out_sides(self, document: Document) -> list[Layout]:
        made = [self.lay_out(side) for side in self.list_sides(document)]
        if np.any(np.sum([side.lengths for side in made], axis=0) != self.packer.count_tokens(document)):
            raise LoaderError(self._describe_change(document.record))
        return made

    def lay_out(self, document: Document) -> Layout:
        """Lay out a document of one record after condition dropout, with sampled latents.

        The sides of a pair have the same random numbers, so that their common beginning has the same latents.
        """
        rng = make_document_rng(self.settings.seed, document)
        record = self.source[document.record]
        try:
            segments = record_segments(
                record, self.tokenizer, self.config, rng, document.keep, document.turns, self.settings.draws
            )
        except ChangedError:
            raise LoaderError(self._describe_change(document.record)) from None
        except SegmentError as fault:
            raise RecordError(f"{locate_record(self.source, document.record)}: {fault}") from None
        return layout.lay_out(segments, self.tokenizer, self.config, self.settings.balance_texts)

    def _describe_change(self, record: int) -> str:
        name = locate_record(self.source, record)
        return f"{name}: is not the record whose tokens were counted; start again and leave the data alone"

    def list_record_ids(self, step: int) -> list[str]:
        """List the ids of the records in the batch of ``step``, over all processes."""
        packs = range(step * self.settings.rows, (step + 1) * self.settings.rows)
        return [str(self.index.ids[document.record]) for n in packs for document in self.packer.choose_documents(n)]

    def assemble(self, layouts: Sequence[Layout], number: int) -> Pack:
        """Assemble laid-out documents to pack ``number``; without documents, a pack of padding."""
        if not layouts:
            return layout.empty_pack(self.settings.budgets, self.config, number)
        return layout.assemble(layouts, self.settings.budgets, number)


class Loader(Iterator[Pack]):
    """An endless or bounded iterator of packs; see ``make_loader``. Close it when no more batches are needed.

    Attributes:
      batches: the batches that are iterated.
      skipped: numbers of the broken records that were left out so far, including those known from the start.
    """

    def __init__(self, iterator: grain.DatasetIterator[LoaderBatch], batches: Batches) -> None:
        self.batches, self._source = batches, batches.source
        self._grain: grain.DatasetIterator[LoaderBatch] | None = iterator  # None after ``close``
        self.skipped = set(batches.index.broken.tolist())

    def __next__(self) -> Pack:
        if self._grain is None:
            raise StopIteration
        batch = next(self._grain)
        for number in set(batch.skipped.tolist()) - self.skipped:
            self.skipped.add(number)
            logging.warning(
                "%s: broken, left out (%d so far); python -m pdgen.data.records check %s says why",
                locate_record(self._source, number),
                len(self.skipped),
                self._source.folder,
            )
        return batch.pack

    def close(self) -> None:
        """End the workers and free the batches that they have made ahead.

        These lie in shared memory. If they are freed only when the interpreter ends, modules that free them are gone,
        and multiprocessing warns of leaked objects.
        """
        if self._grain is not None:
            self._grain.close()
            self._grain = None  # it holds batches even after its own close


def make_loader(
    config: ModelConfig,
    source: RecordSource,
    tokenizer: Tokenizer,
    settings: LoaderConfig,
    start_step: int = 0,
    stop_step: int | None = None,
) -> Loader:
    """Make an iterator over this process's part of the batches of steps [start_step, stop_step), with prefetching.

    It yields packs with leading axis rows / process count, in host memory, without end if ``stop_step`` is None. Other
    arguments are those of ``Batches``.

    Raises:
      LoaderError: see ``Batches``; or worker processes are requested before absl's flags are parsed.
      PackingError, RecordError: see ``Batches``; a broken record stops the iteration, workers or not.
    """
    if settings.workers and not flags.FLAGS.is_parsed():
        raise LoaderError(
            "workers need parsed absl flags: run under absl.app, call "
            "absl.flags.FLAGS.mark_as_parsed(), or set workers to 0"
        )
    steps = sys.maxsize if stop_step is None else stop_step
    process = jax.process_index(), jax.process_count()
    batches = Batches(config, source, tokenizer, settings, process, steps)
    _log_omissions(batches)
    batches.packer.seek(start_step * settings.rows)  # once here instead of in every worker
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch)
    dataset = grain.MapDataset.source(batches)[start_step:].to_iter_dataset(options)
    if settings.workers:
        workers = grain.MultiprocessingOptions(num_workers=settings.workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_exit_with_parent)
        # Copied out of the worker's shared memory, which is then freed at once.
        dataset = dataset.map(lambda batch: jax.tree.map(np.array, batch))
    return Loader(iter(dataset), batches)


def _log_omissions(batches: Batches) -> None:
    """Log which records are left out or shortened."""
    index, documents = batches.index, batches.documents
    if len(index.broken):
        logging.warning(
            "%d of %d records are broken and left out, first %s", len(index.broken), len(index), index.faults[0]
        )
    if len(documents.cut):
        logging.warning(
            "%d of %d records exceed a pack and lack their last turns, first record %s",
            len(documents.cut),
            len(index),
            index.ids[documents.cut[0]],
        )


def _exit_with_parent(worker: int, count: int) -> None:
    """Exit this worker process when its parent dies, even by SIGKILL, which Grain does not notice."""
    del worker, count
    parent = multiprocessing.parent_process()
    assert parent is not None  # called only in workers

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
