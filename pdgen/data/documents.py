"""Documents from records: one per record, per turn or per pair of records; too long ones are refused or shortened.

A document is one sequence of a pack. A record gives one document. With ``turns="single"`` it gives one per turn with
targets: everything before the turn as context, then the turn itself. With ``turns="pairs"`` two consecutive records,
the sides of a pair (``pdgen.sequence.pairs``), are packed as if they were one document, so that no pack separates them.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Int8, Int32, Int64, Shaped

from pdgen.data.lengths import LengthIndex
from pdgen.sequence.layout import STREAMS, Budgets
from pdgen.sequence.pairs import is_pair
from pdgen.sequence.segments import NOISED, stream_lengths

Turns = Literal["whole", "single", "pairs"]
TooLong = Literal["refuse", "cut"]


class PackingError(ValueError):
    """Documents that do not fit into a pack, or an impossible mixture. The message is one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """All documents of a data set, concatenated.

    Attributes:
      record: the record of each document; of a pair the better side.
      first, stop: the turns [first, stop) of the record that are targets.
      kinds, tokens: kind and token count of the documents' units, as in ``LengthIndex``.
      starts: document i has units [starts[i], starts[i + 1]).
      cut: numbers of the records whose last turns were dropped because they exceed a pack.
    """

    record: Int32[np.ndarray, " documents"]
    first: Int32[np.ndarray, " documents"]
    stop: Int32[np.ndarray, " documents"]
    kinds: Int8[np.ndarray, " units"]
    tokens: Int32[np.ndarray, " units"]
    starts: Int64[np.ndarray, " boundaries"]
    cut: Int64[np.ndarray, " cut"]

    def __len__(self) -> int:
        return len(self.record)

    def count_tokens(self) -> Int64[np.ndarray, "documents 3"]:
        """Count the tokens of each document in the text, vit and vae stream, before condition dropout."""
        return sum_units(stream_lengths(self.kinds, self.tokens), self.starts)


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Documents as ranges of the index: turns [first, stop), units before ``end``, noised copies from ``own`` on."""

    record: Int[np.ndarray, " documents"]
    first: Int[np.ndarray, " documents"]
    stop: Int[np.ndarray, " documents"]
    own: Int[np.ndarray, " documents"]
    end: Int[np.ndarray, " documents"]

    def __getitem__(self, selection: np.ndarray) -> "_Cuts":
        return _Cuts(*(getattr(self, field.name)[selection] for field in dataclasses.fields(self)))


def sum_units(
    values: Shaped[np.ndarray, "units ..."], starts: Int64[np.ndarray, " boundaries"]
) -> Int64[np.ndarray, "documents ..."]:
    """Sum the values of units over each document."""
    sums = np.cumsum(values, axis=0, dtype=np.int64)
    return np.diff(np.concatenate([np.zeros((1, *values.shape[1:]), np.int64), sums])[starts], axis=0)


def expand_ranges(
    begin: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " units"], Int64[np.ndarray, " n+1"]]:
    """Concatenate the ranges begin[i] .. begin[i] + counts[i] - 1. Returns them and the start of each range."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(begin - starts[:-1], counts) + np.arange(starts[-1]), starts


def make_documents(
    index: LengthIndex, budgets: Budgets | None = None, turns: Turns = "whole", too_long: TooLong = "refuse"
) -> Documents:
    """Make the documents of all records that are not broken.

    Args:
      index: token counts.
      budgets: size of a pack; None: unlimited.
      turns, too_long: see ``loader.LoaderConfig``. A shortened document has no end-of-trajectory target.

    Raises:
      PackingError: a document exceeds a pack (with "cut": its first turn does), there are no documents, or the records
        are no pairs.
    """
    cuts = {"whole": _cut_whole, "single": _cut_single, "pairs": _cut_pairs}[turns](index)
    if not len(cuts.record):
        raise PackingError("the data set holds no document: every record is broken or teaches nothing")
    documents = _build_documents(index, cuts)
    if budgets is None:
        return documents
    sizes = np.array(dataclasses.astuple(budgets))
    long = np.any(documents.count_tokens() > sizes, axis=1)
    if not long.any():
        return documents
    if too_long == "refuse" or turns == "pairs":
        raise PackingError(_explain_refusal(index, documents, long, sizes))
    fitting = _shorten(index, cuts, long, sizes)
    hopeless = long & ~np.isin(cuts.record, fitting.record)
    if hopeless.any():
        raise PackingError(
            _explain_refusal(index, documents, hopeless, sizes) + "; no turn of it fits, so it cannot be cut"
        )
    return dataclasses.replace(_build_documents(index, fitting), cut=np.unique(cuts.record[long]))


def _explain_refusal(index: LengthIndex, documents: Documents, long: np.ndarray, sizes: np.ndarray) -> str:
    totals, first = documents.count_tokens(), int(np.argmax(long))

    def join(tokens: np.ndarray) -> str:
        return ", ".join(f"{name} {number}" for name, number in zip(STREAMS, tokens))

    return (
        f"record {index.ids[documents.record[first]]} needs {join(totals[first])} tokens, a pack holds "
        f"{join(sizes)} ({long.sum()} of {len(documents)} documents are too long; budgets of "
        f"{join(totals.max(axis=0))} hold every one)"
    )


def _cut_whole(index: LengthIndex) -> _Cuts:
    record = np.setdiff1d(np.arange(len(index)), index.broken)
    zeros = np.zeros_like(record)
    return _Cuts(record, zeros, np.diff(index.turn_starts)[record], zeros, np.diff(index.starts)[record])


def _cut_single(index: LengthIndex) -> _Cuts:
    record = np.repeat(np.arange(len(index)), np.diff(index.turn_starts))
    turn = np.arange(len(record)) - index.turn_starts[record]
    own, end = index.turns.astype(np.int64).T
    return _Cuts(record, turn, turn + 1, own, end)[end > 0]


def _cut_pairs(index: LengthIndex) -> _Cuts:
    """Cut pairs of consecutive records, whose units are consecutive too, without those that have a broken side."""
    ids = [*index.ids.tolist(), ""]  # so that a last record without a partner is refused as well
    whole = ~np.isin(np.arange(len(ids)), index.broken)
    better = [n for n in range(0, len(index), 2) if whole[n] and whole[n + 1]]
    for n in better:
        if not is_pair(ids[n], ids[n + 1]):
            raise PackingError(
                f"records {n} and {n + 1}, {ids[n]} and {ids[n + 1] or 'none'}, are no pair; make the data with "
                "launch/build_data.py import --format=preferences, or set turns to 'whole'"
            )
    record = np.array(better, np.int64)
    zeros = np.zeros_like(record)
    return _Cuts(
        record, zeros, np.diff(index.turn_starts)[record], zeros, index.starts[record + 2] - index.starts[record]
    )


def _build_documents(index: LengthIndex, cuts: _Cuts) -> Documents:
    units, starts = expand_ranges(index.starts[cuts.record], cuts.end)
    offsets = units - np.repeat(index.starts[cuts.record], cuts.end)
    # Noised copies serve as targets only, so those before the document's own turns are left out.
    selected = (index.kinds[units] != NOISED) | (offsets >= np.repeat(cuts.own, cuts.end))
    return Documents(
        record=cuts.record.astype(np.int32),
        first=cuts.first.astype(np.int32),
        stop=cuts.stop.astype(np.int32),
        kinds=index.kinds[units[selected]],
        tokens=index.tokens[units[selected]],
        starts=np.concatenate([[0], np.cumsum(sum_units(selected, starts))]),
        cut=np.zeros(0, np.int64),
    )


def _shorten(index: LengthIndex, cuts: _Cuts, long: Bool[np.ndarray, " documents"], sizes: np.ndarray) -> _Cuts:
    """Keep the documents that fit, and of the others as many first turns as fit."""
    shorter = [
        (record, 0, turns, 0, index.turns[index.turn_starts[record] :][:turns, 1].max())
        for record, stop in zip(cuts.record[long], (cuts.stop - cuts.first)[long])
        for turns in range(1, stop)
    ]
    options = _Cuts(*np.array(shorter, np.int64).reshape(-1, 5).T)
    options = options[options.end > 0]
    options = options[np.all(_build_documents(index, options).count_tokens() <= sizes, axis=1)]
    last = np.append(options.record[1:] != options.record[:-1], True)[: len(options.record)]  # the most turns
    joined = [
        np.concatenate([getattr(part, field.name) for part in (cuts[~long], options[last])])
        for field in dataclasses.fields(_Cuts)
    ]
    fitting = _Cuts(*joined)
    return fitting[np.lexsort([fitting.first, fitting.record])]
