"""Packing documents into rows of three budgets: text, ViT and VAE tokens.

A vector bin packing that knows token counts alone. Documents come in an endless stream of shuffled epochs
into a pool, a window that slides over the stream. A pack takes the oldest documents until its fullest
stream is half full, then again and again the one that leaves the least room, measured by the sum of squares
over the streams (the norm-based greedy of Panigrahy et al., "Heuristics for Vector Bin Packing", 2011). So
no document waits for much longer than a pool, no epoch has a ragged end, and pack n depends on (index,
budgets, dropout, seed, n) alone.
"""

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from tqdm import tqdm

from pdgen.data.lengths import LengthIndex
from pdgen.interleave.layout import STREAMS, VAE, VIT, Budgets
from pdgen.interleave.segments import ConditionDropout, kept, stream_lengths

POOL = 256  # documents a pack chooses from; twice as many gain less than 1 % of fill
BY_AGE = 0.5  # of a pack: with 0, small documents wait for ten pools, and packs fill worse


class PackingError(ValueError):
    """Documents do not fit into a pack; the line names one and the budgets they need."""


class Document(NamedTuple):
    """A record in an epoch, each counted from 0."""

    epoch: int
    record: int


def document_rng(seed: int, document: Document) -> np.random.Generator:
    """The generator of a document's condition dropout and latents."""
    return np.random.default_rng((seed, 1, *document))


class Packer:
    """Which documents stand in pack n, for any n.

    Packs are found in order and remembered, so the first access to pack n costs that of all packs before
    it (some 50 microseconds a document); safe to share between threads.

    Args:
      index: token counts.
      budgets: size of a pack.
      dropout: decides each document's length in each epoch.
      seed: of shuffling and dropout.

    Raises:
      PackingError: a whole document exceeds a budget.
    """

    def __init__(self, index: LengthIndex, budgets: Budgets, dropout: ConditionDropout, seed: int) -> None:
        self.index, self.budgets, self.dropout, self.seed = index, budgets, dropout, seed
        self._sizes = np.array([budgets.text, budgets.vit, budgets.vae])
        _refuse_long(index, self._sizes)
        self._units = stream_lengths(index.kinds, index.tokens)
        self._packs: list[tuple[Document, ...]] = []
        self._used: list[np.ndarray] = []
        self._pool: list[Document] = []
        self._lengths = np.zeros((0, 3), np.int64)
        self._drawn = 0
        self._order = np.zeros(0, np.int64)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def documents(self, number: int) -> tuple[Document, ...]:
        """The documents of a pack, in the order in which they stand there."""
        with self._lock:
            missing = range(len(self._packs), number + 1)
            for _ in tqdm(missing, desc="packing", unit="pack", disable=len(missing) < 2000, leave=False):
                self._next_pack()
            return self._packs[number]

    def lengths(self, document: Document) -> Int64[np.ndarray, "3"]:
        """The document's tokens in the text, vit and vae stream, after condition dropout."""
        own = self.index.units(document.record)
        keep = kept(self.index.kinds[own].tolist(), self.dropout, document_rng(self.seed, document))
        return self._units[own][keep].sum(axis=0, dtype=np.int64)

    def fill(self, numbers: Iterable[int]) -> dict[str, float]:
        """The share of each stream's slots that hold tokens, over the given packs; 1 for a budget of 0."""
        numbers = list(numbers)
        self.documents(max(numbers))
        used = np.mean([self._used[n] for n in numbers], axis=0)
        return {name: float(tokens / size) if size else 1.0 for name, tokens, size in zip(STREAMS, used, self._sizes)}

    def _draw(self) -> Document:
        epoch, place = divmod(self._drawn, len(self.index))
        if place == 0:
            self._order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.index))
        self._drawn += 1
        return Document(epoch, int(self._order[place]))

    def _next_pack(self) -> None:
        new = [self._draw() for _ in range(POOL - len(self._pool))]
        self._pool += new
        self._lengths = np.concatenate([self._lengths, [self.lengths(document) for document in new]])
        chosen = _choose(self._lengths, self._sizes)
        self._packs.append(tuple(self._pool[i] for i in chosen))
        self._used.append(self._lengths[chosen].sum(axis=0))
        left = np.setdiff1d(np.arange(POOL), chosen)
        self._pool = [self._pool[i] for i in left]
        self._lengths = self._lengths[left]


def _choose(lengths: Int64[np.ndarray, "pool 3"], sizes: Int64[np.ndarray, "3"]) -> list[int]:
    """Numbers of the documents of one pack, given from oldest to newest; the first is always among them."""
    demand = lengths / np.maximum(sizes, 1)
    room = np.ones(3)
    chosen: list[int] = []
    while len(chosen) < len(lengths) and room.min() > 1 - BY_AGE and _fits(demand[len(chosen)], room):
        room = room - demand[len(chosen)]
        chosen.append(len(chosen))
    free = np.arange(len(chosen), len(lengths))
    while (free := free[_fits(demand[free], room)]).size:
        best = np.argmin(((room - demand[free]) ** 2).sum(axis=1))
        room = room - demand[free[best]]
        chosen.append(int(free[best]))
        free = np.delete(free, best)
    return chosen


def _fits(demand: Float[np.ndarray, "*n 3"], room: Float[np.ndarray, "3"]) -> Bool[np.ndarray, "*n"]:
    """Whether documents fit; shares of budgets add up with rounding errors far below a token's share."""
    return (demand <= room + 1e-9).all(axis=-1)


def _refuse_long(index: LengthIndex, sizes: Int64[np.ndarray, "3"]) -> None:
    totals = index.totals()
    long = np.flatnonzero((totals > sizes).any(axis=1))
    if not long.size:
        return
    needed = ", ".join(f"{name} {tokens}" for name, tokens in zip(STREAMS, totals[long[0]]))
    largest = ", ".join(f"{name} {tokens}" for name, tokens in zip(STREAMS, totals.max(axis=0)))
    budgets = ", ".join(f"{name} {size}" for name, size in zip(STREAMS, sizes))
    raise PackingError(
        f"record {index.ids[long[0]]} needs {needed} tokens, a pack holds {budgets} ({long.size} of "
        f"{len(index)} records are too long; budgets of {largest} hold every record)"
    )


def mean_lengths(index: LengthIndex, dropout: ConditionDropout) -> Float[np.ndarray, "3"]:
    """Expected tokens of a record in each stream under condition dropout.

    Dropout of texts is taken as independent of the rest; texts that no image follows stay.
    """
    last_image = np.full(len(index), -1)
    image_units = np.flatnonzero(index.kinds != 0)
    owner = np.repeat(np.arange(len(index)), np.diff(index.starts))
    last_image[owner[image_units]] = image_units
    trailing = np.arange(len(owner)) > last_image[owner]
    rates = np.array([dropout.text, 0.0, dropout.vae, dropout.vit])[index.kinds]
    rates = np.where((index.kinds == 0) & trailing, 0.0, rates)
    return (stream_lengths(index.kinds, index.tokens) * (1 - rates)[:, None]).sum(axis=0) / len(index)


def balanced_budgets(index: LengthIndex, dropout: ConditionDropout, total: int) -> Budgets:
    """Budgets of together at most ``total`` tokens in the proportions of the data, so that all three fill.

    Where all images of a stream have sizes with a common divisor, its budget is a multiple of that: a
    fraction of an image would stay empty. The text budget is a multiple of 16.

    Raises:
      PackingError: a whole document exceeds them.
    """
    mean = mean_lengths(index, dropout)
    tokens = stream_lengths(index.kinds, index.tokens)
    grain = np.array([16, *(max(1, np.gcd.reduce(tokens[:, stream])) for stream in (VIT, VAE))])
    documents = total / mean.sum()
    whole = np.floor(documents * mean / grain) * grain
    documents = np.min(whole[mean > 0] / mean[mean > 0])
    sizes = np.ceil(documents * mean / grain - 1e-9) * grain
    _refuse_long(index, sizes.astype(np.int64))
    return Budgets(*(int(size) for size in sizes))
