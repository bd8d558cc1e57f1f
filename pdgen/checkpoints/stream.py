"""Reads, hashes and writes all tensors of a checkpoint, block by block, in bounded memory."""

import concurrent.futures
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place
from pdgen.messages import name_some, shorten
from pdgen.progress_bar import ProgressBar

BLOCK_BYTES = 8 * 2**20
# Each worker handles one block at a time, so reading, hashing and writing overlap. More than 8 wait for the disk.
WORKERS = max(2, min(8, os.cpu_count() or 1))

# The bits of a value whose exponent says NaN or infinite. Comparing them is many times faster than ``np.isfinite``,
# which converts every bfloat16.
_EXPONENTS = {"float32": (np.uint32, 0x7F800000), "float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80)}

Read = Callable[[Place, int, np.ndarray], None]
Write = Callable[[Place, int, np.ndarray], None]


def block_rows(slot: tuple[int, ...], itemsize: int) -> int:
    """Return how many rows (along axis 0) of a slot fit into ``BLOCK_BYTES``, at least 1."""
    return max(1, min(slot[0], BLOCK_BYTES // (math.prod(slot[1:]) * itemsize)))


class _Scratch(threading.local):
    """A buffer for each thread. It is reused, since the kernel takes as long to supply pages as to read into them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        if self._bytes.size < nbytes:
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes].view(dtype).reshape(shape)


def move(
    places: Iterable[tuple[Place, np.dtype, int]], read: Read, write: Write | None, *, title: str, source: str
) -> dict[str, str]:
    """Read every tensor in blocks of rows, hash it, count values that are not finite, and write it.

    Args:
      places: the tensors in the order of reading, each with the dtype that ``read`` returns and the rows of a block.
      read: ``read(place, start, rows)`` fills ``rows`` [n, ...] with the slot's rows from ``start`` on.
      write: ``write(place, start, rows)`` writes them and must not keep them; None: nothing is written. Several
        threads call ``read`` and ``write``.
      title, source: title of the progress bar, and where the tensors come from, for messages.

    Returns:
      SHA-256 (hex) of each tensor's bytes (C order, little endian), by PyTorch's name.

    Raises:
      CheckpointError: ``read`` found damaged tensors, or values are NaN or infinite; the message names some.
      Exception: any other error of ``read`` or ``write``, which cancels the rest.
    """
    places = list(places)
    total = sum(math.prod(place.slot) * dtype.itemsize for place, dtype, _ in places)
    scratch = _Scratch()
    with (
        ProgressBar(total=total, desc=title, unit="B", unit_scale=True, mininterval=1.0) as bar,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
    ):

        def process(place: Place, dtype: np.dtype, rows: int) -> tuple[str, int]:
            digest, nonfinite = hashlib.sha256(), 0
            for start in range(0, place.slot[0], rows):
                count = min(rows, place.slot[0] - start)
                block = scratch.take((count, *place.slot[1:]), dtype)
                read(place, start, block)
                digest.update(block.reshape(-1).view(np.uint8).data)
                nonfinite += count_nonfinite(block)
                if write:
                    write(place, start, block)
                bar.update(block.nbytes)
            return digest.hexdigest(), nonfinite

        futures = {place.name: pool.submit(process, place, dtype, rows) for place, dtype, rows in places}
        digests, nonfinite, faults = {}, {}, {}
        try:
            for name, future in futures.items():
                try:
                    digests[name], nonfinite[name] = future.result()
                except CheckpointError as fault:
                    faults[name] = str(fault)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if faults:
        first, *others = faults.values()
        if not others:
            raise CheckpointError(first)
        counted = f"{len(faults):,} of {len(places):,} tensors cannot be read: {name_some(faults)}"
        raise CheckpointError(f"{source}: {counted}; {shorten(first, 150)}")
    refuse_nonfinite(source, nonfinite)
    return digests


def count_nonfinite(values: np.ndarray) -> int:
    """Return how many values are NaN or infinite."""
    if values.dtype == np.int8:
        return 0
    bits, exponent = _EXPONENTS[values.dtype.name]
    return int(np.count_nonzero((values.view(bits) & bits(exponent)) == exponent))


def refuse_nonfinite(source: str, counts: Mapping[str, int]) -> None:
    """Raise CheckpointError if tensors of ``source`` hold values that are NaN or infinite; ``counts`` are theirs."""
    wrong = [name for name, count in counts.items() if count]
    if wrong:
        raise CheckpointError(
            f"{source}: {sum(counts.values()):,} values are NaN or infinite, in {len(wrong):,} of {len(counts):,} "
            f"tensors: {name_some(wrong)}; fetch the weights again, or take an earlier step"
        )
