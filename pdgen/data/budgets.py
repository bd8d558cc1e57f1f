"""Pack budgets that suit a data set, found by planning packs."""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Int32

from pdgen.data.documents import Documents, PackingError
from pdgen.data.packing import plan_packs
from pdgen.data.stream import Stream
from pdgen.sequence.layout import STREAMS, TEXT, Budgets
from pdgen.sequence.segments import stream_lengths

TILE = 128  # tokens; attention and matrix products work on tiles, and a partial tile costs as much as a full one
_SAMPLE = 512  # documents planned for each candidate
_SHOWN = 5  # best candidates, which are planned again with whole windows


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Budgets and the fill of packs with them.

    Attributes:
      budgets: size of a pack.
      fill: share of used slots by stream.
      used: share of used slots over all streams.
      documents_per_pack: mean number of documents in a pack.
    """

    budgets: Budgets
    fill: dict[str, float]
    used: float
    documents_per_pack: float


def _measure_windows(lengths: Int32[np.ndarray, "B W 3"], budgets: Budgets) -> Proposal:
    sizes = np.array(dataclasses.astuple(budgets))
    packs = int((plan_packs(lengths, sizes).max(axis=1) + 1).sum())
    tokens = lengths.sum(axis=(0, 1), dtype=np.int64)
    fill = {name: float(n / (packs * size)) if size else 1.0 for name, n, size in zip(STREAMS, tokens, sizes)}
    return Proposal(budgets, fill, float(tokens.sum() / (packs * budgets.total)), lengths[..., 0].size / packs)


def propose_budgets(documents: Documents, stream: Stream, total: int) -> list[Proposal]:
    """Propose the five budgets of at most ``total`` tokens with the best fill, best first.

    Budgets are multiples of ``TILE`` in the proportions of the data after condition dropout. If the image sizes of a
    stream have a common divisor, the budget is a multiple of it, because slots for a part of an image stay empty.

    Raises:
      PackingError: no such budgets hold every document.
    """
    longest = documents.count_tokens().max(axis=0)
    choices = [_propose_sizes(documents, stream, number, total) for number in range(len(STREAMS))]
    candidates = [
        Budgets(*sizes)
        for sizes in itertools.product(*choices)
        if sum(sizes) <= total and np.all(np.array(sizes) >= longest)
    ]
    if not candidates:
        needed = [math.ceil(tokens / TILE) * TILE for tokens in longest]
        raise PackingError(
            f"packs of {total} tokens do not hold every document in the data's proportions; budgets of "
            f"{', '.join(f'{n} {size}' for n, size in zip(STREAMS, needed))} do"
        )
    windows = np.stack([stream.make_window(number).lengths for number in range(2)])
    quick = sorted((_measure_windows(windows[:1, :_SAMPLE], budgets) for budgets in candidates), key=lambda p: -p.used)
    return sorted((_measure_windows(windows, p.budgets) for p in quick[:_SHOWN]), key=lambda p: -p.used)


def _propose_sizes(documents: Documents, stream: Stream, number: int, total: int) -> list[int]:
    """Propose budgets of one stream around its share of ``total``."""
    mean = stream.make_window(0).lengths.mean(axis=0)
    share = total * mean[number] / mean.sum()
    lengths = stream_lengths(documents.kinds, documents.tokens)[:, number]
    grain = 1 if number == TEXT else max(1, int(np.gcd.reduce(lengths)))
    if grain < TILE:
        grain = math.lcm(grain, TILE) if TILE % grain == 0 else TILE
    steps = range(max(0, math.floor(share / grain) - 1), math.ceil(share / grain) + 2)
    return sorted({math.ceil(step * grain / TILE) * TILE for step in steps})
