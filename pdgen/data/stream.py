"""The endless stream of documents, cut into windows of a fixed number of documents.

Each subset's documents come in epochs, every epoch in an order of its own. The stream takes from the subsets
in fixed shares, so how many documents of a subset stand before window w is a formula, and the window's
documents and their condition dropout depend on (documents, shares, dropout, seed, w) alone.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from pdgen.data.documents import Documents, PackingError, expand_ranges, sum_units
from pdgen.sequence.segments import ConditionDropout, kept, stream_lengths

WINDOW = 2048  # documents; the last pack of a window is partly filled, which then costs about 0.1 % of fill
SMALLEST_WINDOW = 256  # for data sets of fewer documents than a window
_EPOCHS = 4  # of each subset kept in memory


def compute_shares(
    subsets: Mapping[str, Sequence[int] | Int64[np.ndarray, " n"]], mixture: Mapping[str, float]
) -> dict[str, float]:
    """The share of each subset among the documents of the stream; they add up to 1.

    Args:
      subsets: numbers of each subset's documents.
      mixture: weight of every subset, 0 leaves it out; empty: in proportion of the documents.

    Raises:
      PackingError: a subset is unknown, not mentioned or without documents, a weight is negative or not
        finite, or all are 0.
    """
    known = ", ".join(repr(name) for name in subsets)
    weights = dict(mixture) or {name: float(len(numbers)) for name, numbers in subsets.items()}
    for name, weight in weights.items():
        if name not in subsets:
            raise PackingError(f"mixture: the data set has no subset {name!r}, only {known}")
        if not (math.isfinite(weight) and weight >= 0):
            raise PackingError(f"mixture: the weight of subset {name!r} is {weight}, expected at least 0")
        if weight and not len(subsets[name]):
            raise PackingError(f"mixture: subset {name!r} has weight {weight} but no document; set it to 0")
    for name in subsets:
        if name not in weights:
            raise PackingError(f"mixture: subset {name!r} has no weight; 0 leaves it out (subsets: {known})")
    if not (total := sum(weights.values())):
        raise PackingError(f"mixture: every weight is 0; give one of {known} a weight")
    return {name: weight / total for name, weight in weights.items() if weight}


class _Epoch(NamedTuple):
    """A subset's epoch: its documents' ranks in order, and a uniform number for each of their units."""

    order: Int64[np.ndarray, " documents"]
    draws: Float32[np.ndarray, " units"]


@dataclasses.dataclass(frozen=True)
class Window:
    """W documents of the stream after condition dropout, in the order in which they come.

    Attributes:
      epoch, number: which document, and in which epoch of its subset.
      keep: of the documents' units, one document after the other, those that dropout leaves.
      starts: document i owns keep[starts[i] : starts[i + 1]].
      lengths: tokens in the text, vit and vae stream.
    """

    epoch: Int64[np.ndarray, " W"]
    number: Int64[np.ndarray, " W"]
    keep: Bool[np.ndarray, " units"]
    starts: Int64[np.ndarray, " W+1"]
    lengths: Int32[np.ndarray, "W 3"]


class _Subset:
    """One subset's own endless stream."""

    def __init__(self, documents: Documents, members: np.ndarray, seed: tuple[int, int]) -> None:
        self.members = members
        self._seed = seed  # of the run, and the subset's number
        self._units = np.concatenate([[0], np.cumsum(np.diff(documents.starts)[members])])
        self._epochs: collections.OrderedDict[int, _Epoch] = collections.OrderedDict()

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epoch, number) of documents start .. stop - 1 of the stream, and their units' uniform numbers."""
        size, parts = len(self.members), []
        while start < stop:
            epoch, place = divmod(start, size)
            taken = min(stop - start, size - place)
            order, draws = self._epoch(epoch)
            ranks = order[place : place + taken]
            units, _ = expand_ranges(self._units[ranks], np.diff(self._units)[ranks])
            parts.append((np.full(taken, epoch), self.members[ranks], draws[units]))
            start += taken
        return tuple(map(np.concatenate, zip(*parts)))

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            seed, subset = self._seed
            order = np.random.default_rng((seed, 0, subset, epoch)).permutation(len(self.members))
            draws = np.random.default_rng((seed, 2, subset, epoch)).random(self._units[-1], np.float32)
            self._epochs[epoch] = _Epoch(order, draws)
            if len(self._epochs) > _EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class Stream:
    """Random access to the stream's windows; not to be shared between threads.

    Args:
      documents: of the data set.
      subsets: numbers of each subset's documents.
      mixture: see ``compute_shares``.
      dropout: condition dropout.
      seed: of orders and dropout.

    Raises:
      PackingError: see ``compute_shares``.
    """

    def __init__(
        self,
        documents: Documents,
        subsets: Mapping[str, Sequence[int] | Int64[np.ndarray, " n"]],
        mixture: Mapping[str, float],
        dropout: ConditionDropout,
        seed: int,
    ) -> None:
        self.window_size = min(WINDOW, max(SMALLEST_WINDOW, len(documents)))
        self._documents, self._dropout, self._seed = documents, dropout, seed
        self._lengths = stream_lengths(documents.kinds, documents.tokens)
        self.shares = compute_shares(subsets, mixture)
        # The subset of the largest share comes last and takes what the others leave.
        self._names = sorted(self.shares, key=lambda name: self.shares[name])
        numbers = {name: number for number, name in enumerate(sorted(subsets))}
        self._subsets = [
            _Subset(documents, np.asarray(subsets[name], np.int64), (seed, numbers[name])) for name in self._names
        ]

    def count_taken(self, position: int) -> list[int]:
        """How many of the stream's first ``position`` documents each subset gives, in order of share."""
        smaller = [math.floor(position * self.shares[name] + 0.5) for name in self._names[:-1]]
        return [*smaller, position - sum(smaller)]

    def make_window(self, number: int) -> Window:
        """Window ``number``."""
        size = self.window_size
        before, after = self.count_taken(number * size), self.count_taken((number + 1) * size)
        taken = [s.take(start, stop) for s, start, stop in zip(self._subsets, before, after) if stop > start]
        epoch, documents, draws = map(np.concatenate, zip(*taken))
        if len(taken) > 1:
            mixed = np.random.default_rng((self._seed, 3, number)).permutation(size)
            counts = np.diff(self._documents.starts)[documents]
            draws = draws[expand_ranges((np.cumsum(counts) - counts)[mixed], counts[mixed])[0]]
            epoch, documents = epoch[mixed], documents[mixed]
        first = self._documents.starts[documents]
        units, starts = expand_ranges(first, self._documents.starts[documents + 1] - first)
        keep = kept(self._documents.kinds[units], starts, self._dropout, draws)
        lengths = sum_units(self._lengths[units] * keep[:, None], starts)
        return Window(epoch, documents, keep, starts, lengths.astype(np.int32))
