"""Packing documents into rows of three budgets: text, ViT and VAE tokens.

This is vector bin packing on token counts. Each window of the stream of documents is planned independently. A pack
takes the oldest document of the window until its fullest stream is half full. After that it takes the document that
leaves the least room, measured by the sum of squares over the streams (the norm-based greedy of Panigrahy et al.,
"Heuristics for Vector Bin Packing", 2011). Finally the window's packs are shuffled.

The number of packs of a window depends on its documents. To find pack n, all windows before it are planned, many at a
time, and only their numbers of packs are stored.
"""

import bisect
import collections
import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from pdgen.data.documents import Documents
from pdgen.data.stream import Stream, Window
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.layout import STREAMS, Budgets
from pdgen.sequence.segments import ConditionDropout, stream_lengths

POOL = 256  # documents that a pack chooses from; twice as many gain less than 1 % of fill
BY_AGE = 0.5  # fill up to which age decides; with 0, the documents left at a window's end fill packs badly
PARALLEL_WINDOWS = 128  # windows planned at a time to find a distant pack
_PLANS = 4  # windows kept in memory


class Document(NamedTuple):
    """A document in a pack.

    Attributes:
      epoch: epoch of its subset, from 0.
      number: number of the document in ``Documents``.
      record: number of its record.
      turns: the turns [first, stop) of the record that are targets.
      keep: which of its units remain after condition dropout.
    """

    epoch: int
    number: int
    record: int
    turns: tuple[int, int]
    keep: tuple[bool, ...]


def make_document_rng(seed: int, document: Document) -> np.random.Generator:
    """Make the random generator for a document's latents."""
    return np.random.default_rng((seed, 1, document.epoch, document.number))


def plan_packs(lengths: Int32[np.ndarray, "B W 3"], sizes: Int64[np.ndarray, "3"]) -> Int64[np.ndarray, "B W"]:
    """Plan the packs of B independent windows at once.

    Args:
      lengths: tokens of W documents in the text, vit and vae stream, oldest first; none exceeds ``sizes``.
      sizes: the budgets of a pack.

    Returns:
      For each document, the number of its pack within the window.
    """
    windows, documents, _ = lengths.shape
    waiting = np.ascontiguousarray(np.moveaxis(lengths, 2, 0), np.float32)  # exact: below 2 ** 24
    full = sizes.astype(np.float32)[:, None]
    per_token = (1 / np.maximum(full, 1)).astype(np.float32)
    number = np.tile(np.arange(min(POOL, documents)), (windows, 1))  # documents in the pool; the lowest is the oldest
    pool = waiting[:, :, : number.shape[1]].copy()
    drawn = np.full(windows, number.shape[1])
    result = np.zeros((windows, documents), np.int64)
    pack, unplaced = np.zeros(windows, np.int64), np.full(windows, documents)
    room = np.tile(full, windows)
    rows = np.arange(windows)
    while unplaced.any():
        left = room[:, :, None] - pool
        fits = (left >= 0).all(axis=0)
        left *= per_token[:, :, None]
        left *= left
        chosen = np.where(fits, left.sum(axis=0), np.inf).argmin(axis=1)
        oldest = number.argmin(axis=1)
        young = ((full - room) * per_token).max(axis=0) < BY_AGE
        chosen = np.where(young & fits[rows, oldest], oldest, chosen)
        found = fits[rows, chosen]
        row, place = rows[found], chosen[found]
        result[row, number[row, place]] = pack[row]
        room[:, row] -= pool[:, row, place]
        unplaced[row] -= 1
        more = drawn[row] < documents
        number[row, place] = np.where(more, drawn[row], documents)
        pool[:, row, place] = np.where(more, waiting[:, row, np.minimum(drawn[row], documents - 1)], np.inf)
        drawn[row] += 1
        closed = rows[~found & (unplaced > 0)]
        pack[closed] += 1
        room[:, closed] = full
    return result


class Packer:
    """The documents of pack n, for any n. Can be shared between threads.

    Args:
      documents, subsets, dropout, seed, mixture: see ``Stream``.
      budgets: size of a pack; every document must fit.

    Raises:
      PackingError: the mixture does not match the subsets.
    """

    def __init__(
        self,
        documents: Documents,
        subsets: Mapping[str, Sequence[int] | Int64[np.ndarray, " n"]],
        budgets: Budgets,
        dropout: ConditionDropout,
        seed: int,
        mixture: Mapping[str, float] | None = None,
    ) -> None:
        self.stream = Stream(documents, subsets, mixture or {}, dropout, seed)
        self._table, self._seed = documents, seed
        self._sizes = np.array(dataclasses.astuple(budgets))
        self._ends: list[int] = []  # total number of packs of windows 0 .. w
        # By window: the window and, for each of its packs, the positions of the pack's documents in the window.
        self._plans: collections.OrderedDict[int, tuple[Window, list[np.ndarray]]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def choose_documents(self, number: int) -> tuple[Document, ...]:
        """Return the documents of a pack, in order."""
        window, places = self._find(number)
        return tuple(self._document(window, place) for place in places.tolist())

    def count_tokens(self, document: Document) -> Int64[np.ndarray, "3"]:
        """Count a document's tokens in the text, vit and vae stream, after condition dropout."""
        own = slice(*self._table.starts[[document.number, document.number + 1]])
        lengths = stream_lengths(self._table.kinds[own], self._table.tokens[own])
        return lengths[np.array(document.keep)].sum(axis=0, dtype=np.int64)

    def count_used(self, number: int) -> Int64[np.ndarray, "3"]:
        """Count the used slots in each stream of a pack."""
        window, places = self._find(number)
        return window.lengths[places].sum(axis=0, dtype=np.int64)

    def measure_fill(self, numbers: Iterable[int]) -> dict[str, float]:
        """Measure the share of used slots of each stream over the given packs; 1 for a budget of 0."""
        used = np.mean([self.count_used(number) for number in numbers], axis=0)
        return {name: float(tokens / size) if size else 1.0 for name, tokens, size in zip(STREAMS, used, self._sizes)}

    def seek(self, number: int) -> None:
        """Plan all windows up to pack ``number``, with a progress bar if that takes long."""
        with self._lock:
            self._seek(number)

    def _document(self, window: Window, place: int) -> Document:
        number = int(window.number[place])
        return Document(
            epoch=int(window.epoch[place]),
            number=number,
            record=int(self._table.record[number]),
            turns=(int(self._table.first[number]), int(self._table.stop[number])),
            keep=tuple(window.keep[window.starts[place] : window.starts[place + 1]].tolist()),
        )

    def _find(self, number: int) -> tuple[Window, np.ndarray]:
        with self._lock:
            self._seek(number)
            position = bisect.bisect_right(self._ends, number)
            if position not in self._plans:
                self._plan([position])
            self._plans.move_to_end(position)
            window, packs = self._plans[position]
        return window, packs[number - (self._ends[position - 1] if position else 0)]

    def _seek(self, number: int) -> None:
        known = self._ends[-1] if self._ends else 0
        with ProgressBar(
            total=number,
            initial=known,
            desc="planning packs",
            unit="pack",
            leave=False,
            disable=number - known < 100_000,
        ) as bar:
            while known <= number:
                ahead = (number - known) * len(self._ends) // max(known, 1)
                planned = range(len(self._ends), len(self._ends) + min(max(ahead, 1), PARALLEL_WINDOWS))
                for count in self._plan(planned):
                    self._ends.append(known := known + count)
                bar.update(min(known, number) - bar.n)

    def _plan(self, numbers: Sequence[int]) -> list[int]:
        """Plan windows and store the last plans. Returns the number of packs of each window."""
        windows = [self.stream.make_window(number) for number in numbers]
        placed = plan_packs(np.stack([window.lengths for window in windows]), self._sizes)
        counts = placed.max(axis=1) + 1
        for number, window, own, count in list(zip(numbers, windows, placed, counts))[-_PLANS:]:
            packs = np.split(np.argsort(own, kind="stable"), np.cumsum(np.bincount(own))[:-1])
            order = np.random.default_rng((self._seed, 4, number)).permutation(count)
            self._plans[number] = window, [packs[i] for i in order]
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        return counts.tolist()
