"""From records to documents: whole or one per turn, refused or cut where they exceed a pack.

A document is what stands in a pack as one sequence. A record gives one document, or with ``turns="single"``
one per turn that teaches anything: all that stands before the turn as context, then the turn itself.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64

from pdgen.data.lengths import LengthIndex
from pdgen.sequence.layout import STREAMS, Budgets
from pdgen.sequence.segments import NOISED, stream_lengths

Turns = Literal["whole", "single"]
TooLong = Literal["refuse", "cut"]


class PackingError(ValueError):
    """Documents do not fit into a pack, or cannot be mixed as asked for; the line names the remedy."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """All documents of a data set, one after the other.

    Attributes:
      record: the record that each document comes from.
      first, stop: the turns of the record that the document teaches.
      kinds, tokens: of the documents' units, as in ``LengthIndex``.
      starts: document i owns units [starts[i], starts[i + 1]).
      cut: numbers of the records whose last turns were left out because they exceed a pack.
    """

    record: Int32[np.ndarray, " documents"]
    first: Int32[np.ndarray, " documents"]
    stop: Int32[np.ndarray, " documents"]
    kinds: Int8[np.ndarray, " units"]
    tokens: Int32[np.ndarray, " units"]
    starts: Int64[np.ndarray, " documents+1"]
    cut: Int64[np.ndarray, " cut"]

    def __len__(self) -> int:
        return len(self.record)

    def count_tokens(self) -> Int64[np.ndarray, "documents 3"]:
        """Tokens of every document in the text, vit and vae stream, nothing dropped."""
        return sum_units(stream_lengths(self.kinds, self.tokens), self.starts)


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Documents as places in the index: turns [first, stop), units before ``end``, noised from ``own`` on."""

    record: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    own: np.ndarray
    end: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "_Cuts":
        return _Cuts(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def sum_units(values: np.ndarray, starts: Int64[np.ndarray, " documents+1"]) -> Int64[np.ndarray, "documents ..."]:
    """Sums of units' values over each document."""
    sums = np.cumsum(values, axis=0, dtype=np.int64)
    return np.diff(np.concatenate([np.zeros((1, *values.shape[1:]), np.int64), sums])[starts], axis=0)


def expand_ranges(
    begin: np.ndarray, counts: np.ndarray
) -> tuple[Int64[np.ndarray, " units"], Int64[np.ndarray, " n+1"]]:
    """The numbers begin[i] .. begin[i] + counts[i] - 1 of every i, one after the other, and where each i starts."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(begin - starts[:-1], counts) + np.arange(starts[-1]), starts


def make_documents(
    index: LengthIndex, budgets: Budgets | None = None, turns: Turns = "whole", too_long: TooLong = "refuse"
) -> Documents:
    """The documents of all records that are not broken.

    Args:
      index: token counts.
      budgets: size of a pack; None: packs hold everything.
      turns: "whole": a record is a document. "single": each of its turns that teaches anything is one, with
        all that stands before it as context; the record's targets are then spread over its documents.
      too_long: what a document that exceeds a pack does. "refuse" raises. "cut" leaves out the record's last
        turns, as many as must be; the document then teaches no end.

    Raises:
      PackingError: a document exceeds a pack ("cut": already the first turn does), or there are none.
    """
    cuts = _cut_whole(index) if turns == "whole" else _cut_single(index)
    if not len(cuts.record):
        raise PackingError("the data set holds no document: every record is broken or teaches nothing")
    documents = _build_documents(index, cuts)
    if budgets is None:
        return documents
    sizes = np.array([budgets.text, budgets.vit, budgets.vae])
    long = (documents.count_tokens() > sizes).any(axis=1)
    if not long.any():
        return documents
    if too_long == "refuse":
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

    def listed(tokens: np.ndarray) -> str:
        return ", ".join(f"{name} {number}" for name, number in zip(STREAMS, tokens))

    return (
        f"record {index.ids[documents.record[first]]} needs {listed(totals[first])} tokens, a pack holds "
        f"{listed(sizes)} ({long.sum()} of {len(documents)} documents are too long; budgets of "
        f"{listed(totals.max(axis=0))} hold every one)"
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


def _build_documents(index: LengthIndex, cuts: _Cuts) -> Documents:
    units, starts = expand_ranges(index.starts[cuts.record], cuts.end)
    offsets = units - np.repeat(index.starts[cuts.record], cuts.end)
    stays = (index.kinds[units] != NOISED) | (offsets >= np.repeat(cuts.own, cuts.end))
    return Documents(
        record=cuts.record.astype(np.int32),
        first=cuts.first.astype(np.int32),
        stop=cuts.stop.astype(np.int32),
        kinds=index.kinds[units[stays]],
        tokens=index.tokens[units[stays]],
        starts=np.concatenate([[0], np.cumsum(sum_units(stays, starts))]),
        cut=np.zeros(0, np.int64),
    )


def _shorten(index: LengthIndex, cuts: _Cuts, long: Bool[np.ndarray, " documents"], sizes: np.ndarray) -> _Cuts:
    """The documents that fit and, of whole records that do not, as many turns from the beginning as fit."""
    shorter = [
        (record, 0, turns, 0, index.turns[index.turn_starts[record] :][:turns, 1].max())
        for record, stop in zip(cuts.record[long], (cuts.stop - cuts.first)[long])
        for turns in range(1, stop)
    ]
    options = _Cuts(*np.array(shorter, np.int64).reshape(-1, 5).T)
    options = options[options.end > 0]
    options = options[(_build_documents(index, options).count_tokens() <= sizes).all(axis=1)]
    last = np.append(options.record[1:] != options.record[:-1], True)[: len(options.record)]  # the most turns
    joined = [
        np.concatenate([getattr(part, field.name) for part in (cuts[~long], options[last])])
        for field in dataclasses.fields(_Cuts)
    ]
    fitting = _Cuts(*joined)
    return fitting[np.lexsort([fitting.first, fitting.record])]
