"""Moving all tensors of a checkpoint from one form to another, in bounded memory."""

import concurrent.futures
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable

import numpy as np
from tqdm import tqdm

from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place

BLOCK_BYTES = 8 * 2**20
# Each reads, hashes and writes one block at a time, so the three overlap; more than 8 only wait for the disk.
WORKERS = max(2, min(8, os.cpu_count() or 1))

Read = Callable[[Place, int, np.ndarray], None]
Write = Callable[[Place, int, np.ndarray], None]


def block_rows(slot: tuple[int, ...], itemsize: int) -> int:
    """Rows (along axis 0) of a slot in one block: as many as fit ``BLOCK_BYTES``, at least 1."""
    return max(1, min(slot[0], BLOCK_BYTES // (math.prod(slot[1:]) * itemsize)))


class _Scratch(threading.local):
    """A block's memory, one per thread and used again, since fresh pages cost as much as reading into them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        if self._bytes.size < nbytes:
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes].view(dtype).reshape(shape)


def move(
    places: Iterable[tuple[Place, np.dtype, int]], read: Read, write: Write | None, *, title: str
) -> dict[str, str]:
    """Reads every tensor in blocks of rows, hashes it, and writes it.

    Args:
      places: the tensors in the order in which to read them, each with the dtype in which ``read`` gives it
        and the rows of a block.
      read: ``read(place, start, rows)`` fills ``rows``, [n, ...], with those of the slot from ``start`` on.
      write: ``write(place, start, rows)`` takes them, and is done with them when it returns; None to hash
        alone. Both run on several threads.
      title: what the progress bar says.

    Returns:
      SHA-256 (hex) of each tensor's bytes (C order, little endian), by PyTorch's name.

    Raises:
      CheckpointError: tensors that ``read`` finds damaged, all of them.
      Exception: anything else that ``read`` or ``write`` raises; the rest is then cancelled.
    """
    places = list(places)
    total = sum(math.prod(place.slot) * dtype.itemsize for place, dtype, _ in places)
    scratch = _Scratch()
    with (
        tqdm(total=total, desc=title, unit="B", unit_scale=True, mininterval=1.0) as bar,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
    ):

        def one(place: Place, dtype: np.dtype, rows: int) -> str:
            digest = hashlib.sha256()
            for start in range(0, place.slot[0], rows):
                count = min(rows, place.slot[0] - start)
                block = scratch.take((count, *place.slot[1:]), dtype)
                read(place, start, block)
                digest.update(block.reshape(-1).view(np.uint8).data)
                if write:
                    write(place, start, block)
                bar.update(block.nbytes)
            return digest.hexdigest()

        futures = {place.name: pool.submit(one, place, dtype, rows) for place, dtype, rows in places}
        digests, faults = {}, []
        try:
            for name, future in futures.items():
                try:
                    digests[name] = future.result()
                except CheckpointError as fault:
                    faults.append(str(fault))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if faults:
        raise CheckpointError("; ".join(faults))
    return digests
