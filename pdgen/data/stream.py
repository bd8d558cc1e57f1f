"""The endless stream of documents, divided into windows of a fixed number of documents.

Each subset is repeated in epochs, each in its own random order. The stream takes documents from the subsets in fixed
shares. So the number of documents of a subset before window w has a closed form, and the window's documents and their
condition dropout depend only on (documents, shares, dropout, seed, w).
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from pdgen.data.documents import Documents, PackingError, expand_ranges, sum_units
from pdgen.sequence.segments import ConditionDropout, dropout_mask, stream_lengths

WINDOW = 2048  # documents; the last pack of a window is only partly filled, which costs about 0.1 % of fill
SMALLEST_WINDOW = 256  # for data sets with fewer documents than a window
_EPOCHS = 4  # epochs of each subset in memory


def compute_shares(
    subsets: Mapping[str, Sequence[int] | Int64[np.ndarray, " n"]], mixture: Mapping[str, float]
) -> dict[str, float]:
    """Compute the share of each subset among the documents of the stream. The shares sum to 1.

    Args:
      subsets: document numbers of each subset.
      mixture: weight of each subset; 0 excludes it. Empty: in proportion to the numbers of documents.

    Raises:
      PackingError: a subset is unknown, has no weight or no documents, a weight is negative or not finite, or all
        weights are 0.
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


@dataclasses.dataclass(frozen=True)
class Window:
    """W documents of the stream after condition dropout, in order.

    Attributes:
      epoch: epoch of the document's subset.
      number: number of the document.
      keep: which units remain after dropout, concatenated over documents.
      starts: document i has keep[starts[i] : starts[i + 1]].
      lengths: tokens in the text, vit and vae stream.
    """

    epoch: Int64[np.ndarray, " W"]
    number: Int64[np.ndarray, " W"]
    keep: Bool[np.ndarray, " units"]
    starts: Int64[np.ndarray, " boundaries"]
    lengths: Int32[np.ndarray, "W 3"]


class _Subset:
    """The endless stream of one subset."""

    def __init__(self, documents: Documents, members: np.ndarray, seed: tuple[int, int]) -> None:
        self.members = members
        self._seed = seed  # (seed of the run, number of the subset)
        self._units = np.concatenate([[0], np.cumsum(np.diff(documents.starts)[members])])
        self._epochs: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = collections.OrderedDict()

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return epochs and numbers of documents start .. stop - 1, and the random numbers of their units."""
        size, parts = len(self.members), []
        while start < stop:
            epoch, place = divmod(start, size)
            count = min(stop - start, size - place)
            order, draws = self._draw_epoch(epoch)
            ranks = order[place : place + count]
            units, _ = expand_ranges(self._units[ranks], np.diff(self._units)[ranks])
            parts.append((np.full(count, epoch), self.members[ranks], draws[units]))
            start += count
        epochs, numbers, uniform = (np.concatenate(arrays) for arrays in zip(*parts))
        return epochs, numbers, uniform

    def _draw_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " documents"], Float32[np.ndarray, " units"]]:
        """Return the documents of an epoch in random order, and a uniform random number for each unit."""
        if epoch not in self._epochs:
            seed, subset = self._seed
            order = np.random.default_rng((seed, 0, subset, epoch)).permutation(len(self.members))
            draws = np.random.default_rng((seed, 2, subset, epoch)).random(self._units[-1], np.float32)
            self._epochs[epoch] = order, draws
            if len(self._epochs) > _EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class Stream:
    """Random access to the stream's windows. Not thread-safe.

    Args:
      documents, dropout: all documents of the data set and their condition dropout.
      subsets, mixture: see ``compute_shares``.
      seed: seed of orders and dropout.

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
        # The subset with the largest share is last, because it absorbs the rounding of the others.
        self._names = sorted(self.shares, key=lambda name: self.shares[name])
        numbers = {name: number for number, name in enumerate(sorted(subsets))}
        self._subsets = [
            _Subset(documents, np.asarray(subsets[name], np.int64), (seed, numbers[name])) for name in self._names
        ]

    def count_taken(self, position: int) -> list[int]:
        """Count how many of the stream's first ``position`` documents come from each subset, in order of share."""
        smaller = [math.floor(position * self.shares[name] + 0.5) for name in self._names[:-1]]
        return [*smaller, position - sum(smaller)]

    def make_window(self, number: int) -> Window:
        """Make window ``number``."""
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
        keep = dropout_mask(self._documents.kinds[units], starts, self._dropout, draws)
        lengths = sum_units(self._lengths[units] * keep[:, None], starts)
        return Window(epoch, documents, keep, starts, lengths.astype(np.int32))
